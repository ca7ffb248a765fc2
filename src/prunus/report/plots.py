"""The report's figures in Plotly's JSON form: accuracy at the stages, widths of the groups, curves of training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.confusion import confusion_figures
from prunus.report.drawing import INK, SERIES, Figure, axis, large_markers, layout, line, plotly_text, tail, wrapped
from prunus.report.rounds import rounds_figure
from prunus.report.scores import scores_figure
from prunus.report.sparsity import sparsity_figures
from prunus.report.trade_off import points_of, trade_off_figure
from prunus.report.wording import count, is_number, percent, plain

MOST_STAGES = 13  # in the plot; of a run with more rounds it shows the last one
MOST_PHASES = 3  # in a legend
LONGEST_NAME = 22  # of a stage that fits beside three others on a phone
_PATTERN = {"size": 5, "fgcolor": "var(--card)", "fillmode": "overlay", "solidity": 0.25}


def figures(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Every figure of the page by the id of its place; figures without data are absent."""
    drawn = {
        "plot-stages": stages_figure(stages_shown(result)),
        "plot-widths": widths_figure(result["groups"]),
        "plot-loss": curve_figure(result["training"], "loss", "training loss"),
        "plot-accuracy": curve_figure(result["training"], "accuracy", "validation accuracy"),
        "plot-scores": scores_figure(result),
        "plot-rounds": rounds_figure(result),
        "plot-trade-off": trade_off_figure(points_of(result, result["name"]), "macs") if result.get("controls") else None,
        **sparsity_figures(result),
        **confusion_figures(result),
    }
    return {place: figure for place, figure in drawn.items() if figure is not None}


def stages_shown(result: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """All stages; or, where they are many and the plot of rounds tells the rest, those of the last round and of none."""
    stages = result["stages"]
    if len(stages) <= MOST_STAGES or rounds_figure(result) is None:
        return stages
    rounds = [re.match(r"round \d+:", str(s["stage"])) for s in stages]
    last = [found[0] for found in rounds if found][-1:]
    return [s for s, found in zip(stages, rounds, strict=True) if not found or found[0] in last]


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
    before |= {"text": labels, "textposition": "outside", "cliponaxis": False, "textfont": {"color": INK, "size": 11}}
    marked = [
        _bars(name, groups, rows, "after", {"color": colour, "pattern": _PATTERN | {"shape": shape}})
        for name, colour, shape, rows in kinds
        if rows
    ]
    row_height = 26 if len(groups) <= 40 else 19
    frame = layout(row_height * len(groups) + 60, legend=False)  # the page has a legend that doesn't scroll away
    frame |= {
        "barmode": "overlay",
        "yaxis": {
            "tickvals": everything,
            "ticktext": [tail(g["name"]) for g in groups],
            "range": [len(groups) - 0.5, -0.5],
            "ticks": "outside",
            "ticklen": 5,
            "tickcolor": "var(--card)",
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
        },
        "xaxis": axis("channels") | {"side": "top", "range": [0, max(1, *(g["before"] for g in groups))]},
    }
    # Labels stand to the right of bars that may be as long as the axis.
    frame["margin"] |= {"t": 50, "b": 10, "r": 10 + 7 * max(map(len, labels))}
    return {"data": [before, *marked], "layout": frame}


def stages_figure(stages: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Accuracy in percent at every stage, one line per split: from left to right, or downwards where names need the room."""
    known = [s for s in stages if is_number(s["accuracy"])]
    if not known:
        return None
    order = list(dict.fromkeys(s["stage"] for s in known))
    splits = list(dict.fromkeys(s["split"] for s in known))
    downwards = len(order) > 4 or any(len(str(stage)) > LONGEST_NAME for stage in order)
    along, across = ("y", "x") if downwards else ("x", "y")
    traces: list[dict[str, Any]] = []
    for split, style in zip(splits, SERIES * len(splits), strict=False):
        rows = [s for s in known if s["split"] == split]
        trace: dict[str, Any] = line(f"{split} accuracy", style) | {
            "mode": "lines+markers+text",
            along: [order.index(s["stage"]) for s in rows],
            across: [s["accuracy"] * 100 for s in rows],
            "text": [percent(s["accuracy"]) for s in rows],
            "textposition": _label_places([s["accuracy"] for s in rows], downwards),
            "textfont": {"color": "var(--ink)", "size": 13},
            "customdata": [[plotly_text(s["stage"]), count(s["count"])] for s in rows],
            "hovertemplate": "%{customdata[0]}<br><b>%{text}</b> of %{customdata[1]} images<extra></extra>",
            "cliponaxis": False,
            "marker": large_markers(style),
        }
        traces.append(trace)
    last = len(order) - 1
    frame = layout(36 * len(order) + 80 if downwards else 320, legend=len(splits) > 1)
    shares = {"range": [-3, 103] if downwards else [0, 112], "tickvals": [0, 25, 50, 75, 100], "ticksuffix": " %"}
    frame[f"{across}axis"] = axis("") | shares
    frame[f"{along}axis"] = axis("") | {
        "tickvals": list(range(len(order))),
        "ticktext": [wrapped(stage, 22 if downwards else 13) for stage in order],
        "tickfont": {"size": 11},
        "tickangle": 0,
        "range": [last + 0.5, -0.5] if downwards else [-0.5, last + 0.5],
        "showgrid": False,
        "zeroline": False,
        "automargin": True,
    }
    frame["margin"] |= {"l": 46, "r": 60 if downwards else 10}  # downwards, labels stand to the right of the last tick
    return {"data": traces, "layout": frame}


def curve_figure(training: Mapping[str, Sequence[Mapping[str, Any]]], field: str, title: str) -> Figure | None:
    """``field`` of every epoch; the phases follow one another on the axis. None where no epoch has it."""
    traces: list[dict[str, Any]] = []
    shown = 0
    many = len(training) > MOST_PHASES
    styles = (SERIES[:2] if many else SERIES) * max(1, len(training))  # many phases alternate and have no legend
    scale = 100 if field == "accuracy" else 1
    for (phase, epochs), style in zip(training.items(), styles, strict=False):
        rows = [(shown + n, e) for n, e in enumerate(epochs, start=1) if is_number(e[field])]
        shown += len(epochs)
        if not rows:
            continue
        traces.append(
            line(phase, style)
            | {
                "x": [n for n, _ in rows],
                "y": [e[field] * scale for _, e in rows],
                "customdata": [[count(e["epoch"]), plain(e["lr"])] for _, e in rows],
                "hovertemplate": f"{plotly_text(phase) + '<br>' if many else ''}"
                + "epoch %{customdata[0]}<br><b>%{y:.4g}</b><br>learning rate %{customdata[1]}",
            }
        )
    if not traces:
        return None
    frame = layout(290, legend=not many)
    frame["xaxis"] = axis("epoch, over all phases") | {"tickformat": "d", "range": [0.5, shown + 0.5]}
    frame["yaxis"] = axis(title + (", %" if scale == 100 else ""))
    if scale == 1:
        frame["yaxis"] |= {"rangemode": "tozero"}
    return {"data": traces, "layout": frame}


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
    """Labels of valleys go on their lower side where there is room, so that the line doesn't cross them."""
    inside = [min(a, c) > b for a, b, c in zip(shares, shares[1:], shares[2:], strict=False)]
    valleys = [False, *inside, False][: len(shares)]
    low, high = ("middle left", "middle right") if downwards else ("bottom center", "top center")
    least = 0.3 if downwards else 0.1
    return [low if valley and share > least else high for valley, share in zip(valleys, shares, strict=True)]


def _hover(group: Mapping[str, Any]) -> str:
    share = percent(group["after"] / group["before"]) if group["before"] else ""
    lines = [
        f"<b>{plotly_text(group['name'])}</b>",
        f"{count(group['after'])} of {count(group['before'])} channels kept, {share}",
    ]
    if group["frozen_because"]:
        lines.append(wrapped(f"frozen: {group['frozen_because']}", 48))
    if group["mixing"]:
        lines.append("mixing: statistics over the channels")
    return "<br>".join(lines)
