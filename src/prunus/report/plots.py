"""The report's figures in Plotly's JSON form. Colours are names of CSS variables; the page puts in those of its colour scheme."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from prunus.report.wording import count, is_number, percent, plain

Figure: TypeAlias = "dict[str, Any]"

_INK, _GRID = "var(--ink-soft)", "var(--line)"
_PATTERN = {"size": 5, "fgcolor": "var(--card)", "fillmode": "overlay", "solidity": 0.25}
_SERIES = (("var(--accent)", "solid", "circle"), ("var(--second)", "dash", "square"), ("var(--third)", "dot", "diamond"))


def figures(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Every figure of the page by the id of its place; figures without data are absent."""
    drawn = {
        "plot-stages": stages_figure(result["stages"]),
        "plot-widths": widths_figure(result["groups"]),
        "plot-loss": curve_figure(result["training"], "loss", "training loss"),
        "plot-accuracy": curve_figure(result["training"], "accuracy", "validation accuracy"),
    }
    return {place: figure for place, figure in drawn.items() if figure is not None}


def widths_figure(groups: Sequence[Mapping[str, Any]]) -> Figure | None:
    """One row per group in network order: channels before as a pale bar, channels after on top of it, frozen ones grey."""
    if not groups:
        return None
    everything = list(range(len(groups)))
    frozen = [i for i in everything if groups[i]["frozen_because"]]
    mixing = [i for i in everything if groups[i]["mixing"] and i not in frozen]
    plain_ones = [i for i in everything if i not in frozen and i not in mixing]
    kinds = [
        ("after", "var(--accent)", "", plain_ones),
        ("after, mixing group", "var(--third)", "x", mixing),
        ("frozen", "var(--frozen)", "/", frozen),
    ]
    labels = [f"{count(g['after'])} of {count(g['before'])}" for g in groups]
    before = _bars("before", groups, everything, "before", {"color": "var(--before)"})
    before |= {"text": labels, "textposition": "outside", "cliponaxis": False, "textfont": {"color": _INK, "size": 11}}
    marked = [
        _bars(name, groups, rows, "after", {"color": colour, "pattern": _PATTERN | {"shape": shape}})
        for name, colour, shape, rows in kinds
        if rows
    ]
    row_height = 26 if len(groups) <= 40 else 19
    layout = _layout(row_height * len(groups) + 60, legend=False)  # the page has a legend that doesn't scroll away
    layout |= {
        "barmode": "overlay",
        "yaxis": {
            "tickvals": everything,
            "ticktext": [_label(g["name"]) for g in groups],
            "range": [len(groups) - 0.5, -0.5],
            "ticks": "outside",
            "ticklen": 5,
            "tickcolor": "var(--card)",
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
        },
        "xaxis": _axis("channels") | {"side": "top", "range": [0, 1.22 * max(g["before"] for g in groups)]},
    }
    layout["margin"] |= {"t": 50, "b": 10}
    return {"data": [before, *marked], "layout": layout}


def stages_figure(stages: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Accuracy in percent at every stage, one line per split: from left to right, or downwards where there are many stages."""
    known = [s for s in stages if is_number(s["accuracy"])]
    if not known:
        return None
    order = list(dict.fromkeys(s["stage"] for s in known))
    splits = list(dict.fromkeys(s["split"] for s in known))
    downwards = len(order) > 5
    along, across = ("y", "x") if downwards else ("x", "y")
    traces: list[dict[str, Any]] = []
    for split, style in zip(splits, _SERIES * len(splits), strict=False):
        rows = [s for s in known if s["split"] == split]
        trace: dict[str, Any] = _line(f"{split} accuracy", style) | {
            "mode": "lines+markers+text",
            along: [order.index(s["stage"]) for s in rows],
            across: [s["accuracy"] * 100 for s in rows],
            "text": [percent(s["accuracy"]) for s in rows],
            "textposition": _label_places([s["accuracy"] for s in rows], downwards),
            "textfont": {"color": "var(--ink)", "size": 13},
            "customdata": [[_text(s["stage"]), count(s["count"])] for s in rows],
            "hovertemplate": "%{customdata[0]}<br><b>%{text}</b> of %{customdata[1]} images<extra></extra>",
            "cliponaxis": False,
            "marker": {"color": style[0], "symbol": style[2], "size": 11, "line": {"color": "var(--card)", "width": 2}},
        }
        traces.append(trace)
    last = len(order) - 1
    layout = _layout(36 * len(order) + 80 if downwards else 320, legend=len(splits) > 1)
    shares = {"range": [-14, 118] if downwards else [0, 112], "tickvals": [0, 25, 50, 75, 100], "ticksuffix": " %"}
    layout[f"{across}axis"] = _axis("") | shares
    layout[f"{along}axis"] = _axis("") | {
        "tickvals": list(range(len(order))),
        "ticktext": [_wrapped(stage, 22 if downwards else 13) for stage in order],
        "tickfont": {"size": 11},
        "tickangle": 0,
        "range": [last + 0.5, -0.5] if downwards else [-0.4, last + 0.4],
        "showgrid": False,
        "zeroline": False,
        "automargin": True,
    }
    layout["margin"] |= {"l": 46, "r": 10}
    return {"data": traces, "layout": layout}


def curve_figure(training: Mapping[str, Sequence[Mapping[str, Any]]], field: str, title: str) -> Figure | None:
    """``field`` of every epoch; the phases follow one another on the axis. None where no epoch has it."""
    traces: list[dict[str, Any]] = []
    shown = 0
    styles = _SERIES * max(1, len(training))
    scale = 100 if field == "accuracy" else 1
    for (phase, epochs), style in zip(training.items(), styles, strict=False):
        rows = [(shown + n, e) for n, e in enumerate(epochs, start=1) if is_number(e[field])]
        shown += len(epochs)
        if not rows:
            continue
        traces.append(
            _line(phase, style)
            | {
                "x": [n for n, _ in rows],
                "y": [e[field] * scale for _, e in rows],
                "customdata": [[count(e["epoch"]), plain(e["lr"])] for _, e in rows],
                "hovertemplate": "epoch %{customdata[0]}<br><b>%{y:.4g}</b><br>learning rate %{customdata[1]}",
            }
        )
    if not traces:
        return None
    layout = _layout(290, legend=True)
    layout["xaxis"] = _axis("epoch, over all phases") | {"tickformat": "d", "range": [0.5, shown + 0.5]}
    layout["yaxis"] = _axis(title + (", %" if scale == 100 else ""))
    if scale == 1:
        layout["yaxis"] |= {"rangemode": "tozero"}
    return {"data": traces, "layout": layout}


def _line(name: object, style: tuple[str, str, str]) -> dict[str, Any]:
    colour, dash, symbol = style
    return {
        "type": "scatter",
        "name": _text(name),
        "mode": "lines+markers",
        "line": {"color": colour, "dash": dash, "width": 2.5},
        "marker": {"color": colour, "symbol": symbol, "size": 6},
    }


def _bars(name: str, groups: Sequence[Mapping[str, Any]], rows: list[int], field: str, marker: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "width": 0.72,  # else Plotly makes the bars of a sparse trace wider than those under them
        "name": name,
        "y": list(rows),
        "x": [groups[i][field] for i in rows],
        "customdata": [_hover(groups[i]) for i in rows],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": marker,
    }


def _label_places(shares: Sequence[float], downwards: bool) -> list[str]:
    """Labels of valleys go on their lower side, so that the line doesn't cross them."""
    inside = [min(a, c) > b for a, b, c in zip(shares, shares[1:], shares[2:], strict=False)]
    valleys = [False, *inside, False][: len(shares)]
    low, high = ("middle left", "middle right") if downwards else ("bottom center", "top center")
    return [low if valley else high for valley in valleys]


def _hover(group: Mapping[str, Any]) -> str:
    share = percent(group["after"] / group["before"]) if group["before"] else ""
    lines = [f"<b>{_text(group['name'])}</b>", f"{count(group['after'])} of {count(group['before'])} channels kept, {share}"]
    if group["frozen_because"]:
        lines.append(_wrapped(f"frozen: {group['frozen_because']}", 48))
    if group["mixing"]:
        lines.append("mixing: statistics over the channels")
    return "<br>".join(lines)


def _layout(height: int, *, legend: bool = True) -> dict[str, Any]:
    return {
        "height": height,
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 56, "r": 18, "t": 40, "b": 48},
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": _INK},
        "paper_bgcolor": "var(--card)",
        "plot_bgcolor": "var(--card)",
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}, "align": "left"},
        "hovermode": "closest",
        "dragmode": False,
    }


def _axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "gridcolor": _GRID, "linecolor": _GRID, "zerolinecolor": _GRID, "fixedrange": True}


def _text(value: object) -> str:
    """Plotly reads a little HTML in texts, so they are escaped as well."""
    return html.escape(str(value), quote=False)


def _label(name: object, longest: int = 22) -> str:
    text = str(name)
    return _text(text if len(text) <= longest else "…" + text[-longest + 1 :])


def _wrapped(text: object, width: int = 13) -> str:
    """Lines of at most ``width`` characters where words allow."""
    lines = [""]
    for word in str(text).split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(_text(line) for line in lines)
