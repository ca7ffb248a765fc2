"""Figures about compared criteria in Plotly's JSON form: agreement, layers, rank correlations, accuracy after removal, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.drawing import Figure, axis, layout, plotly_text, tail
from prunus.report.wording import is_number, percent

Row = Mapping[str, Any]
FAMILIES = {
    "weight": "var(--accent)",
    "gradient": "var(--second)",
    "activation": "var(--third)",
    "measured": "var(--good)",
    "functional": "var(--bad)",
    "sum": "var(--ink)",
    "control": "var(--frozen)",
}
"""What a criterion looks at -> its colour. Within a family, dashes and symbols tell criteria apart."""
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon")
REMOVAL = {"none": "plot-removal-none", "recalibrated": "plot-removal-recalibrated", "fine-tuned": "plot-removal-fine-tuned"}
KINDS = {"raw": "as they are", "l2": "L2-normalised within each layer"}
MOST_WRITTEN = 14  # criteria up to which the cells of a heat-map hold their figures


def comparison_figures(result: Row) -> dict[str, Figure]:
    """Every figure of the page by the id of its place; figures without data are absent."""
    compared = ranked(result)
    drawn = {
        "plot-agreement": agreement_figure(compared),
        "plot-layers": layers_figure(compared),
        **{f"plot-correlations-{kind}": correlation_figure(result["correlations"], kind) for kind in KINDS},
        **{place: removal_figure(result, recovery) for recovery, place in REMOVAL.items()},
    }
    return {place: figure for place, figure in drawn.items() if figure is not None}


def ranked(result: Row) -> list[Row]:
    """The criteria that could be compared with the oracle, the one that agrees best first."""
    rows = [r for r in result["criteria"] if not r["reference"] and r["not_applicable"] is None]
    return sorted(rows, key=lambda r: -best(r))


def best(row: Row) -> float:
    """The larger of a criterion's mean global correlations, raw and L2-normalised; below all others where it has none."""
    return max((v for kind in KINDS if is_number(v := row["spearman"][kind]["mean"])), default=-2.0)


def signed(value: Any) -> str:
    """Two decimals with a true minus sign."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\u2212") if is_number(value) else "\u2013"


def spread(figure: Row) -> str:
    """``0.95 ± 0.01``: mean and standard deviation over the seeds."""
    return signed(figure["mean"]) + (f" ± {figure['std']:.2f}" if is_number(figure["std"]) else "")


def agreement_figure(rows: Sequence[Row]) -> Figure | None:
    """Global Spearman with the oracle of every criterion, one row each: raw scores and L2-normalised ones, with their spread."""
    if not rows:
        return None
    traces: list[dict[str, Any]] = []
    for kind, colour, symbol in (("raw", "var(--third)", "square"), ("l2", "var(--accent)", "circle")):
        known = [(n, r) for n, r in enumerate(rows) if is_number(r["spearman"][kind]["mean"])]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"scores {KINDS[kind]}",
                "x": [r["spearman"][kind]["mean"] for _, r in known],
                "y": [n for n, _ in known],
                "error_x": {"array": [r["spearman"][kind]["std"] or 0 for _, r in known], "color": colour, "thickness": 1.5},
                "marker": {"color": colour, "symbol": symbol, "size": 9},
                "customdata": [[plotly_text(r["name"]), spread(r["spearman"][kind])] for _, r in known],
                "hovertemplate": "%{customdata[0]}<br><b>%{customdata[1]}</b><extra></extra>",
            }
        )
    return {"data": traces, "layout": _rows_layout([r["name"] for r in rows], "rank correlation")}


def layers_figure(rows: Sequence[Row]) -> Figure | None:
    """A box a criterion: Spearman with the oracle within every layer, mean over the seeds; each point is a layer."""
    traces: list[dict[str, Any]] = []
    for n, row in enumerate(rows):
        known = [(name, f["mean"]) for name, f in row["layers"].items() if is_number(f["mean"])]
        if not known:
            continue
        colour = FAMILIES[row["family"]]
        traces.append(
            {
                "type": "box",
                "orientation": "h",
                "name": plotly_text(row["name"]),
                "x": [value for _, value in known],
                "y": [n] * len(known),
                "text": [f"{plotly_text(name)}: {signed(value)}" for name, value in known],
                "hovertemplate": "%{text}<extra></extra>",
                "hoveron": "points",
                "boxpoints": "all",
                "jitter": 0.5,
                "pointpos": 0,
                "width": 0.7,
                "fillcolor": "var(--page)",
                "line": {"color": colour, "width": 1.5},
                "marker": {"color": colour, "size": 4},
            }
        )
    if not traces:
        return None
    frame = _rows_layout([r["name"] for r in rows], "rank correlation", legend=False)
    return {"data": traces, "layout": frame}


def _rows_layout(names: Sequence[str], title: str, *, legend: bool = True) -> dict[str, Any]:
    """One named row each, the first on top; the axis is that of a correlation."""
    frame = layout(26 * len(names) + 120, legend=legend)
    frame["yaxis"] = {
        "tickvals": list(range(len(names))),
        "ticktext": [tail(name, 30) for name in names],
        "range": [len(names) - 0.4, -0.6],
        "automargin": True,
        "gridcolor": "var(--line)",
        "zeroline": False,
        "fixedrange": True,
    }
    frame["xaxis"] = axis(title) | {"range": [-1.05, 1.05], "dtick": 0.5, "zeroline": True, "zerolinewidth": 2}
    frame["margin"] |= {"l": 10, "t": 40 if legend else 10}
    return frame


def correlation_figure(tables: Row, kind: str) -> Figure | None:
    """Rank correlations between all criteria and the oracle, mean over the seeds; colours from -1 through 0 to 1."""
    names, matrix = tables["names"], tables[kind]
    if len(names) < 2:
        return None
    size = len(names)
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": matrix,
        "zmin": -1,
        "zmax": 1,
        "xgap": 1,
        "ygap": 1,
        "colorscale": [[0, "var(--second)"], [0.5, "var(--card)"], [1, "var(--accent)"]],
        "colorbar": {
            "thickness": 10,
            "outlinewidth": 0,
            "tickvals": [-1, -0.5, 0, 0.5, 1],
            "tickfont": {"color": "var(--ink-soft)"},
        },
        "customdata": [
            [[plotly_text(a), plotly_text(b), signed(v)] for b, v in zip(names, line, strict=True)]
            for a, line in zip(names, matrix, strict=True)
        ],
        "hovertemplate": "%{customdata[0]} and %{customdata[1]}<br><b>%{customdata[2]}</b><extra></extra>",
    }
    ticks: dict[str, Any] = {
        "tickvals": list(range(size)),
        "ticktext": [tail(name, 24) for name in names],
        "showgrid": False,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "automargin": True,
    }
    frame = layout(max(26 * size, 160) + 150, legend=False)
    frame["xaxis"] = axis("") | ticks | {"side": "top", "tickangle": -90}
    frame["yaxis"] = axis("") | ticks | {"range": [size - 0.5, -0.5]}
    frame["margin"] = {"l": 10, "r": 8, "t": 10, "b": 10}
    return {"data": [trace, *_written(matrix)], "layout": frame}


def _written(matrix: Sequence[Sequence[float | None]]) -> list[dict[str, Any]]:
    """The figures in the cells where there is room, in the colour that is legible there."""
    if len(matrix) > MOST_WRITTEN:
        return []
    cells = [(i, j, v) for i, line in enumerate(matrix) for j, v in enumerate(line) if is_number(v)]
    return [
        {
            "type": "scatter",
            "mode": "text",
            "x": [j for _, j, _ in cells],
            "y": [i for i, _, _ in cells],
            "text": [signed(v).replace("0.", ".", 1) for *_, v in cells],
            "textfont": {"size": 10, "color": ["var(--card)" if abs(v or 0) > 0.6 else "var(--ink)" for *_, v in cells]},
            "hoverinfo": "skip",
        }
    ]


def removal_figure(result: Row, recovery: str) -> Figure | None:
    """Accuracy over the share of channels removed, a line for each criterion, mean over the seeds, from the full network on."""
    removal = result["removal"]
    if removal is None or recovery not in removal["recoveries"]:
        return None
    families = {r["name"]: "measured" if r["reference"] else r["family"] for r in result["criteria"]}
    names = sorted(removal["curves"], key=lambda name: list(FAMILIES).index(families[name]))
    before = result["network"]["accuracy"]
    traces = [
        _curve(name, [{"share": 0.0, **before}, *removal["curves"][name][recovery]], style)
        for name, style in zip(names, _styles(names, families), strict=True)
    ]
    frame = layout(520)
    frame["legend"] = {"orientation": "h", "x": 0, "y": -0.09, "yanchor": "top", "font": {"size": 11}}
    frame["margin"] |= {"t": 12}
    shares = [point["share"] for point in removal["curves"][names[0]][recovery]]
    frame["xaxis"] = axis("") | {"ticksuffix": " %", "range": [-1, 100 * max(shares) + 2]}
    frame["yaxis"] = axis("") | {"ticksuffix": " %", "rangemode": "tozero"}
    return {"data": traces, "layout": frame}


def _styles(names: Sequence[str], families: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Colour of the family; dash and symbol by the place in it."""
    seen: dict[str, int] = {}
    found: list[tuple[str, str, str]] = []
    for name in names:
        place = seen[families[name]] = seen.get(families[name], -1) + 1
        found.append((FAMILIES[families[name]], _DASHES[place % len(_DASHES)], _SYMBOLS[place % len(_SYMBOLS)]))
    return found


def _curve(name: str, points: Sequence[Row], style: tuple[str, str, str]) -> dict[str, Any]:
    known = [p for p in points if is_number(p["mean"])]
    spreads = [f" ± {100 * p['std']:.1f}" if is_number(p["std"]) else "" for p in known]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": tail(name, 34),
        "x": [100 * p["share"] for p in known],
        "y": [100 * p["mean"] for p in known],
        "line": {"color": style[0], "dash": style[1], "width": 3 if name == "oracle" else 1.8},
        "marker": {"color": style[0], "symbol": style[2], "size": 6},
        "customdata": [[plotly_text(name), percent(p["mean"]) + s] for p, s in zip(known, spreads, strict=True)],
        "hovertemplate": "%{customdata[0]}<br>%{x:.0f} % removed: <b>%{customdata[1]}</b><extra></extra>",
    }


def scores_figure(by_group: Mapping[str, Sequence[float]], criterion: str) -> Figure:
    """One row a group in network order: every channel's score as a point behind a box. Logarithmic where all are positive and the
    largest is more than a hundred times the median."""
    values = sorted(value for scores in by_group.values() for value in scores)
    wide = values[0] > 0 and values[-1] > 100 * values[len(values) // 2]
    traces = [
        {
            "type": "box",
            "orientation": "h",
            "x": list(scores),
            "y": [n] * len(scores),
            "text": [f"{plotly_text(name)}, channel {c}: {value:.4g}" for c, value in enumerate(scores)],
            "hovertemplate": "%{text}<extra></extra>",
            "hoveron": "points",
            "boxpoints": "all",
            "jitter": 0.6,
            "pointpos": 0,
            "width": 0.7,
            "fillcolor": "var(--page)",
            "line": {"color": "var(--accent)", "width": 1.2},
            "marker": {"color": "var(--second)", "size": 4, "opacity": 0.7},
        }
        for n, (name, scores) in enumerate(by_group.items())
    ]
    frame = _rows_layout(list(by_group), f"score by {criterion}, higher = keep", legend=False)
    frame["xaxis"] = axis(plotly_text(f"score by {criterion}, higher = keep")) | {
        "type": "log" if wide else "linear",
        "exponentformat": "power",
    }
    return {"data": traces, "layout": frame}
