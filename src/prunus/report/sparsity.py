"""Training with a sparsity method: what is left of the network, epoch by epoch, and what the method decides by."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.drawing import SERIES, Figure, axis, layout, line, place, tail
from prunus.report.wording import count, escape, folded, is_number, percent, ratio, table

Row = Mapping[str, Any]
MOST_GROUPS = 6  # lines beside the network's own


def sparsity(result: Mapping[str, Any]) -> str:
    """The two plots and a table; empty where no sparsity method trained."""
    rows = _epochs(result)
    if not rows:
        return ""
    full = result["networks"]["before"]["macs"]
    head = ["phase", "epoch", "MACs left", "share", "channels left"]
    cells = [
        [escape(phase), count(e["epoch"]), count(s["macs"]), percent(ratio(s["macs"], full)), count(sum(s["widths"].values()))]
        for phase, e, s in rows
    ]
    left = place("plot-sparsity", "What would be left if the network were cut at that epoch, in percent of the full network")
    strengths = place(
        "plot-strengths", "Strengths of the channels, by which the method decides, behind the first and the last epoch"
    )
    listed = folded("Every epoch as a table", table("Sparsity training", head, cells, (1, 2, 3, 4)))
    return f"<h3>Training towards removal</h3>{left}{strengths}{listed}"


def sparsity_figures(result: Mapping[str, Any]) -> dict[str, Figure | None]:
    """Both figures by the id of their place; None where no sparsity method trained."""
    rows = _epochs(result)
    if not rows:
        return {"plot-sparsity": None, "plot-strengths": None}
    return {"plot-sparsity": _left(result, rows), "plot-strengths": _strengths(rows)}


def _epochs(result: Mapping[str, Any]) -> list[tuple[str, Row, Row]]:
    """Phase, epoch and its sparsity, over all phases that have any."""
    return [(phase, e, e["sparsity"]) for phase, epochs in result["training"].items() for e in epochs if e.get("sparsity")]


def _left(result: Mapping[str, Any], rows: Sequence[tuple[str, Row, Row]]) -> Figure:
    full = result["networks"]["before"]["macs"]
    widths = {group["name"]: group["before"] for group in result["groups"]}
    last = rows[-1][2]["widths"]
    changed = sorted(last, key=lambda name: last[name] / max(widths.get(name) or 0, 1))[:MOST_GROUPS]
    traces = [
        _trace("MACs of the network", SERIES[0], [100 * s["macs"] / full for _, _, s in rows]) | {"line": _thick(SERIES[0])}
    ]
    for i, name in enumerate(changed):
        if is_number(widths.get(name)):
            shares = [100 * s["widths"].get(name, widths[name]) / widths[name] for _, _, s in rows]
            traces.append(_trace(tail(name), SERIES[1 + i % 2], shares))
    frame = layout(320)
    frame["xaxis"] = axis("epoch of this training") | {"tickformat": "d", "range": [0.5, len(rows) + 0.5]}
    frame["yaxis"] = axis("left") | {"ticksuffix": " %", "range": [-2, 104]}
    return {"data": traces, "layout": frame}


def _thick(style: tuple[str, str, str]) -> dict[str, Any]:
    return {"color": style[0], "dash": style[1], "width": 4}


def _trace(name: str, style: tuple[str, str, str], shares: Sequence[float]) -> dict[str, Any]:
    shape = {"x": list(range(1, len(shares) + 1)), "y": list(shares), "hovertemplate": "epoch %{x}<br><b>%{y:.1f} %</b>"}
    return line(name, style) | shape


def _strengths(rows: Sequence[tuple[str, Row, Row]]) -> Figure:
    shown = [rows[0], rows[-1]] if len(rows) > 1 else [rows[0]]
    traces: list[dict[str, Any]] = []
    for (_, epoch, found), (colour, _, _) in zip(shown, SERIES, strict=False):
        edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
        traces.append(
            {
                "type": "bar",
                "name": f"epoch {epoch['epoch']}",
                "x": [(a + b) / 2 for a, b in itertools.pairwise(edges)],
                "y": counts,
                "width": [b - a for a, b in itertools.pairwise(edges)],
                "marker": {"color": colour},
                "opacity": 0.6,
                "hovertemplate": "about %{x:.3g}<br><b>%{y} channels</b>",
            }
        )
    frame = layout(290)
    frame["barmode"] = "overlay"
    frame["xaxis"], frame["yaxis"] = axis("strength"), axis("channels")
    return {"data": traces, "layout": frame}
