"""How the scores of every group are spread, and where between them the cut went."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.drawing import Figure, axis, layout, place, plotly_text, tail
from prunus.report.wording import count, escape, plain

PLOT = "plot-scores"
DECADES = 30  # scores of a smaller part of the largest one share the left edge of a logarithmic axis
_KINDS = (("removed", "var(--third)", "x"), ("kept", "var(--accent)", "circle"))


def scores(result: Mapping[str, Any]) -> str:
    """The figure with its explanation; empty where the result holds no scores."""
    if scores_figure(result) is None:
        return ""
    found = result["scores"]
    turn = f" of round {count(found['round'])}" if result["request"]["rounds"] != 1 else ""
    unit = "on one scale for all groups" if found["across_groups"] else "divided by the mean of their group"
    text = (
        f"Scores by <code>{escape(found['criterion'])}</code>{turn}, {unit}, one row per group: at most 25 of its kept and 25 of "
        "its removed channels, evenly spaced in rank. Where both overlap, the costs of the groups or a limit decided, not the "
        "score alone."
    )
    drawn = place(PLOT, "Scores of kept and removed channels", "plot tall")
    return f'<h3>Scores, and where the cut went</h3><p class="note">{text}</p>{drawn}'


def scores_figure(result: Mapping[str, Any]) -> Figure | None:
    """A row of marks per group; None where there are no scores, or all are the same."""
    found = result.get("scores") or {}
    rows: Mapping[str, Mapping[str, Sequence[float]]] = found.get("groups") or {}
    shown = {name: _scaled(row, found["across_groups"]) for name, row in rows.items()}
    values = [value for row in shown.values() for part in row.values() for value in part]
    if len(set(values)) < 2:
        return None
    logarithmic = min(values) >= 0
    floor = _floor(values) if logarithmic else None
    ticks = {"dtick": 1 if max(values) > 1e3 * (floor or 0.0) else "D2"} if logarithmic else {}
    traces = [_marks(kind, colour, symbol, shown, floor) for kind, colour, symbol in _KINDS]
    frame = layout(19 * len(shown) + 100)
    frame["xaxis"] = axis("score") | {"type": "log" if logarithmic else "linear", "exponentformat": "power"} | ticks
    frame["yaxis"] = {
        "tickvals": list(range(len(shown))),
        "ticktext": [tail(name) for name in shown],
        "range": [len(shown) - 0.5, -0.5],
        "automargin": True,
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }
    return {"data": traces, "layout": frame}


def _scaled(row: Mapping[str, Sequence[float]], across_groups: bool) -> dict[str, list[float]]:
    """As the global ranking compares them."""
    everything = [*row["kept"], *row["removed"]]
    mean = 1.0 if across_groups or not everything else statistics.fmean(everything) or 1.0
    return {kind: [value / mean for value in row[kind]] for kind in ("kept", "removed")}


def _floor(values: Sequence[float]) -> float:
    """Where zeros and what is next to nothing stand on a logarithmic axis."""
    largest = max(values)
    positive = [value for value in values if value > largest * 10.0**-DECADES]
    return min(positive) / 3


def _marks(
    kind: str, colour: str, symbol: str, shown: Mapping[str, Mapping[str, Sequence[float]]], floor: float | None
) -> dict[str, Any]:
    points = [(number, name, value) for number, (name, row) in enumerate(shown.items()) for value in row[kind]]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": kind,
        "x": [value if floor is None else max(value, floor) for _, _, value in points],
        "y": [number + (0.16 if kind == "removed" else -0.16) for number, _, _ in points],
        "customdata": [f"<b>{plotly_text(name)}</b><br>{kind}: {plain(float(value))}" for _, name, value in points],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"color": colour, "symbol": symbol, "size": 5, "opacity": 0.75},
    }
