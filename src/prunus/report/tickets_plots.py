"""Figures about lottery tickets in Plotly's JSON form: accuracy against weights left, learning curves, signs, densities, bars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunus.report.drawing import Figure, axis, layout, plotly_text, tail
from prunus.report.wording import is_number, percent

Row = Mapping[str, Any]
COLOURS = ("accent", "second", "third", "good", "bad", "ink", "frozen")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
ARMS = {
    "ticket": "winning ticket",
    "reinit": "fresh weights, same mask",
    "reshuffled": "reshuffled weights, same mask",
    "random_mask": "random mask",
}
BAND = "26"
"""Opacity of a band, two hexadecimal digits."""
CURVES_AT = (0.5, 0.2, 0.05)
"""Shares of the weights whose learning curves are shown: the nearest rounds to these."""


def ticket_figures(result: Row) -> dict[str, Figure]:
    """Every figure of the page by the id of its place."""
    drawn: dict[str, Figure] = {}
    for number, cell in enumerate(result["lottery"]):
        for kind in ("accuracy", "early"):
            drawn[f"plot-lottery-{number}-{kind}"] = lottery_figure(cell, kind)
        for one in shown_rounds(cell):
            drawn[f"plot-curves-{number}-{one['round']}"] = curves_figure(one)
        drawn[f"plot-signs-{number}"] = signs_figure(cell)
        drawn[f"plot-densities-{number}"] = densities_figure(cell)
    for number, cell in enumerate(result["deconstruction"]):
        for family in FAMILIES:
            if cell[family]:
                drawn[f"plot-{family}-{number}"] = bars_figure(cell[family], cell["whole"])
    for name in networks(result["rethinking"]):
        drawn[f"plot-rethinking-{place_of(name)}"] = rethinking_figure([c for c in result["rethinking"] if c["network"] == name])
    return drawn


FAMILIES = {"criteria": "mask criteria", "kept_actions": "starts of kept weights", "pruned_actions": "what pruned weights are"}


def networks(cells: Iterable[Row]) -> list[str]:
    """Names of networks, each once."""
    return list(dict.fromkeys(cell["network"] for cell in cells))


def place_of(name: str) -> str:
    """A network's name as a part of an element's id."""
    return "".join(c if c.isalnum() else "-" for c in name)


def shown_rounds(cell: Row) -> list[Row]:
    """The rounds whose learning curves are shown."""
    pruned = [one for one in cell["rounds"] if one["round"]]
    nearest = [min(pruned, key=lambda one, at=at: abs(one["density"] - at)) for at in CURVES_AT if pruned]
    return list({one["round"]: one for one in nearest}.values())


def style(place: int) -> tuple[str, str, str]:
    """Colour, dash and symbol of the series at this place."""
    return f"var(--{COLOURS[place % len(COLOURS)]})", DASHES[place % len(DASHES)], SYMBOLS[place % len(SYMBOLS)]


def series(name: str, points: Sequence[tuple[float, Row]], place: int, unit: float = 100.0) -> list[dict[str, Any]]:
    """A line through the means of ``points`` (x, figure) on a band of one standard deviation either way."""
    known = [(x, f["mean"], f["std"] or 0.0) for x, f in points if is_number(f["mean"])]
    colour, dash, symbol = style(place)
    group = {"legendgroup": name, "x": [x for x, _, _ in known]}
    edges = [
        {
            **group,
            "type": "scatter",
            "mode": "lines",
            "y": [unit * (mean + side * std) for _, mean, std in known],
            "line": {"width": 0, "color": colour},
            "showlegend": False,
            "hoverinfo": "skip",
            **({"fill": "tonexty", "fillcolor": f"{colour}/{BAND}"} if side > 0 else {}),
        }
        for side in (-1, 1)
    ]
    told = [f"{unit * mean:.1f}" + (f" ± {unit * std:.1f}" if std else "") for _, mean, std in known]
    main = {
        **group,
        "type": "scatter",
        "mode": "lines+markers",
        "name": tail(name, 34),
        "y": [unit * mean for _, mean, _ in known],
        "line": {"color": colour, "dash": dash, "width": 2.2},
        "marker": {"color": colour, "symbol": symbol, "size": 6},
        "customdata": [[plotly_text(name), text] for text in told],
        "hovertemplate": "%{customdata[0]}<br>%{x:.3g}: <b>%{customdata[1]}</b><extra></extra>",
    }
    return [*edges, main]


def _frame(x: str, y: str, height: int = 400) -> dict[str, Any]:
    frame = layout(height)
    frame["legend"] = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "font": {"size": 11}}
    frame["margin"] |= {"t": 12}
    frame["xaxis"], frame["yaxis"] = axis(x), axis(y)
    return frame


def _remaining(frame: dict[str, Any], densities: Sequence[float]) -> None:
    """A logarithmic axis of the weights left, falling to the right."""
    ticks = [100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1]
    shown = [t for t in ticks if t >= 100 * min(densities) * 0.8]
    frame["xaxis"] |= {"type": "log", "autorange": "reversed", "tickvals": shown, "ticktext": [f"{t:g} %" for t in shown]}


def lottery_figure(cell: Row, kind: str) -> Figure:
    """Test accuracy against the share of weights left: final (``accuracy``) or ``early``, a band for every arm."""
    rounds = cell["rounds"]
    whole = rounds[0]["arms"]["ticket"]
    traces: list[dict[str, Any]] = []
    for place, arm in enumerate(rounds[-1]["arms"]):
        points = [(100.0, whole[kind])]
        points += [(100 * one["density"], one["arms"][arm][kind]) for one in rounds[1:]]
        traces += series(ARMS[arm], points, place)
    frame = _frame("weights left", "test accuracy")
    _remaining(frame, [one["density"] for one in rounds])
    frame["yaxis"] |= {"ticksuffix": " %"}
    return {"data": traces, "layout": frame}


def curves_figure(one: Row) -> Figure:
    """Test accuracy over the training steps at one sparsity."""
    traces: list[dict[str, Any]] = []
    for place, (arm, found) in enumerate(one["arms"].items()):
        traces += series(ARMS[arm], [(point["step"], point) for point in found["curve"]], place)
    frame = _frame("training steps", "test accuracy", 360)
    frame["yaxis"] |= {"ticksuffix": " %"}
    return {"data": traces, "layout": frame}


def signs_figure(cell: Row) -> Figure:
    """Kept weights that end with the sign they started with, and overlaps of masks, against the weights left."""
    rounds = cell["rounds"]
    told = {
        "sign_agreement": "kept weights that keep their sign",
        "overlap_one_shot": "overlap with the one-shot mask",
        "overlap_random": "overlap with a random mask",
    }
    traces = [
        trace
        for place, (key, name) in enumerate(told.items())
        for trace in series(name, [(100 * one["density"], one[key]) for one in rounds], place)
    ]
    frame = _frame("weights left", "share")
    _remaining(frame, [one["density"] for one in rounds])
    frame["yaxis"] |= {"ticksuffix": " %", "rangemode": "tozero"}
    return {"data": traces, "layout": frame}


def densities_figure(cell: Row) -> Figure:
    """The share of every layer's weights that is left, against that of all."""
    rounds = cell["rounds"]
    traces = [
        trace
        for place, name in enumerate(rounds[0]["layers"])
        for trace in series(name, [(100 * one["density"], one["layers"][name]) for one in rounds], place)
    ]
    frame = _frame("weights left", "weights left in the layer")
    _remaining(frame, [one["density"] for one in rounds])
    frame["yaxis"] |= {"ticksuffix": " %", "rangemode": "tozero"}
    return {"data": traces, "layout": frame}


def bars_figure(rows: Mapping[str, Row], whole: Row) -> Figure:
    """One row for every criterion or action: accuracy untrained and trained, with their spread; dotted: the whole network."""
    names = sorted(rows, key=lambda name: -(rows[name]["accuracy"]["mean"] or 0))
    traces: list[dict[str, Any]] = []
    for kind, told, place in (("untrained", "before training", 1), ("accuracy", "after training", 0)):
        colour, _, symbol = style(place)
        figures = [rows[name][kind] for name in names]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": told,
                "x": [100 * f["mean"] for f in figures],
                "y": list(range(len(names))),
                "error_x": {"array": [100 * (f["std"] or 0) for f in figures], "color": colour, "thickness": 1.5},
                "marker": {"color": colour, "symbol": symbol, "size": 8},
                "customdata": [[plotly_text(n), percent(f["mean"])] for n, f in zip(names, figures, strict=True)],
                "hovertemplate": "%{customdata[0]}<br><b>%{customdata[1]}</b><extra></extra>",
            }
        )
    at = 100 * whole["accuracy"]["mean"]
    frame = layout(24 * len(names) + 120)
    frame["shapes"] = [
        {
            "type": "line",
            "x0": at,
            "x1": at,
            "y0": -0.6,
            "y1": len(names) - 0.4,
            "line": {"color": "var(--ink-soft)", "dash": "dot"},
        }
    ]
    frame["xaxis"] = axis("test accuracy; dotted: the whole network") | {"ticksuffix": " %", "range": [0, 101]}
    frame["yaxis"] = axis("") | {
        "tickvals": list(range(len(names))),
        "ticktext": [tail(name, 34) for name in names],
        "range": [len(names) - 0.4, -0.6],
        "automargin": True,
        "zeroline": False,
    }
    frame["margin"] |= {"l": 10}
    return {"data": traces, "layout": frame}


def rethinking_figure(cells: Sequence[Row]) -> Figure:
    """Test accuracy against the learning rate: the full network and every way to train the small one."""
    ordered = sorted(cells, key=lambda cell: cell["lr"])
    traces = series("full network", [(cell["lr"], cell["full"]["accuracy"]) for cell in ordered], 5)
    for place, arm in enumerate(ordered[0]["arms"]):
        traces += series(arm, [(cell["lr"], cell["arms"][arm]["accuracy"]) for cell in ordered], place)
    frame = _frame("learning rate", "test accuracy")
    rates = [cell["lr"] for cell in ordered]
    frame["xaxis"] |= {"type": "log", "tickvals": rates, "ticktext": [f"{rate:g}" for rate in rates]}
    frame["yaxis"] |= {"ticksuffix": " %"}
    return {"data": traces, "layout": frame}
