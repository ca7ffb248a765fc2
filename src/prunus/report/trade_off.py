"""Accuracy against cost: runs, their unpruned networks and their controls in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.drawing import SERIES, Figure, axis, large_markers, layout, line, plotly_text
from prunus.report.stages import first_and_last
from prunus.report.wording import MISSING, count, is_number, percent, speed_up

Result = Mapping[str, Any]
Point = dict[str, Any]
COSTS = {"macs": "MACs", "parameters": "parameters", "time": "share of the unpruned network's time"}
"""Times compare as shares alone: milliseconds of two runs were measured at different moments."""


def points_of(result: Result, name: str) -> list[Point]:
    """The full network, the pruned one and the controls of a run: ``kind``, ``name``, ``accuracy`` and costs (None: unknown).

    Accuracies are of one split, that of the last evaluation; a control that was judged on other images is left out.
    """
    first, last = ends(result)
    if last is None:
        return []
    networks = result["networks"]
    shares = {"before": 1.0, "after": _share_of_time(networks)}
    found = [_point("full", f"{name}, unpruned", first, networks["before"], shares["before"])] if first is not None else []
    found.append(_point("pruned", name, last["accuracy"], networks["after"], shares["after"]))
    split = (result.get("ladder") or [{}])[-1].get("split", last["split"])
    for row in result.get("controls") or () if split == last["split"] else ():
        like = "before" if row["row"] == "longer" else "after"
        found.append(_point("control", f"{name}: {row['row']}", row["accuracy"], networks[like], shares[like]))
    return found


def ends(result: Result) -> tuple[float | None, Result | None]:
    """Accuracy of the unpruned network and the last evaluation, on the same split."""
    known = first_and_last([stage for stage in result["stages"] if is_number(stage["accuracy"])])
    if not known:
        return None, None
    same = first_and_last([s for s in result["stages"] if is_number(s["accuracy"]) and s["split"] == known[-1]["split"]])
    return (same[0]["accuracy"] if len(same) > 1 else None), known[-1]


def _share_of_time(networks: Result) -> float | None:
    gained = speed_up(networks["before"]["latency"], networks["after"]["latency"])
    return 1 / gained if gained else None


def _point(kind: str, name: str, accuracy: float, network: Result, time: float | None) -> Point:
    return {
        "kind": kind,
        "name": name,
        "accuracy": accuracy,
        "macs": network["macs"],
        "parameters": network["parameters"],
        "time": time,
    }


def best(points: Sequence[Point], cost: str) -> list[Point]:
    """Those that no other beats in accuracy at no more of ``cost``, from cheap to dear."""
    known = sorted((p for p in points if p[cost] is not None), key=lambda p: (p[cost], -p["accuracy"]))
    kept = list[Point]()
    for point in known:
        if not kept or point["accuracy"] > kept[-1]["accuracy"]:
            kept.append(point)
    return kept


_KINDS = {"pruned": "pruned", "full": "unpruned", "control": "control"}


def trade_off_figure(points: Sequence[Point], cost: str) -> Figure | None:
    """Accuracy in percent against a cost of `COSTS`; a line joins the networks that none beats. None without two points."""
    known = [p for p in points if p[cost] is not None]
    if len({(p[cost], p["accuracy"]) for p in known}) < 2:
        return None
    frontier = best(known, cost)
    traces: list[Figure] = [
        line("none is better for less", ("var(--ink-soft)", "dot", "circle"))
        | {
            "mode": "lines",
            "x": [p[cost] for p in frontier],
            "y": [100 * p["accuracy"] for p in frontier],
            "hoverinfo": "skip",
        }
    ]
    for (kind, title), style in zip(_KINDS.items(), SERIES, strict=True):
        some = [p for p in known if p["kind"] == kind]
        if not some:
            continue
        traces.append(
            line(title, style)
            | {
                "mode": "markers",
                "x": [p[cost] for p in some],
                "y": [100 * p["accuracy"] for p in some],
                "customdata": [[plotly_text(p["name"]), percent(p["accuracy"]), _shown(p, cost)] for p in some],
                "hovertemplate": "%{customdata[0]}<br><b>%{customdata[1]}</b>, %{customdata[2]}<extra></extra>",
                "marker": large_markers(style),
                "cliponaxis": False,
            }
        )
    frame = layout(380)
    frame["xaxis"] = axis(COSTS[cost]) | {"rangemode": "tozero"} | ({"tickformat": ".0%"} if cost == "time" else {})
    frame["yaxis"] = axis("accuracy") | {"ticksuffix": " %", "automargin": True}
    return {"data": traces, "layout": frame}


def _shown(point: Point, cost: str) -> str:
    if point[cost] is None:
        return MISSING
    return f"{percent(point[cost])} of the time" if cost == "time" else f"{count(point[cost])} {COSTS[cost]}"
