"""The page about a sensitivity scan: a curve for every group, and how much each bears; a single HTML file that works offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.errors import ExportError
from prunus.report.drawing import Figure, axis, layout, place, plotly_text, tail
from prunus.report.laboratory import laboratory_page
from prunus.report.offline import write_page
from prunus.report.wording import MISSING, below, bullets, count, escape, folded, is_number, pairs, percent, plain, points, table

Result = Mapping[str, Any]
_COLOURS = ("accent", "second", "third", "good", "bad", "ink", "frozen")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon")
CURVES = "plot-sensitivity"


def write_sensitivity(result: Result, path: Path) -> None:
    """Write the page about a scan (the content of ``sensitivity.json``), replacing an old one only when complete.

    Raises:
        ExportError: plotly isn't installed, ``result`` lacks something the page shows, or ``path`` can't be written.
    """
    write_page(render_sensitivity(result), path, "page")


def render_sensitivity(result: Result) -> str:
    """The page as text. Raises `ExportError` like `write_sensitivity`."""
    try:
        drawn = {CURVES: sensitivity_figure(result)}
        sections = {title: part for title, part in _sections(result).items() if part}
        return laboratory_page(
            f"Sensitivity of {result['subject'].get('model', 'a network')}", _subtitle(result), sections, drawn, result
        )
    except (KeyError, TypeError, ValueError) as error:
        told = f"{type(error).__name__} {error}".strip()
        raise ExportError(f"the scan can't be shown: {told}; was it written by this version?") from error


def curves(result: Result) -> dict[str, list[Result]]:
    """Group -> its scanned points by growing share, in network order."""
    found: dict[str, list[Result]] = {group["name"]: [] for group in result["groups"] if group["unscanned"] is None}
    for point in sorted((p for p in result["points"] if p["group"] in found), key=lambda p: p["removed"]):
        found[point["group"]].append(point)
    return found


def sensitivity_figure(result: Result) -> Figure:
    """Accuracy against the share removed, a line for each group from the whole network on; dotted: one point less than that."""
    whole = result["network"]["accuracy"]
    scanned = curves(result)
    traces = [_curve(name, whole, found, _style(place)) for place, (name, found) in enumerate(scanned.items())]
    largest = max(point["share"] for found in scanned.values() for point in found)
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "one point less",
            "x": [0, 100 * largest],
            "y": [100 * whole - 1] * 2,
            "line": {"color": "var(--ink-soft)", "dash": "dot", "width": 1},
            "hoverinfo": "skip",
        }
    )
    frame = layout(520 + 7 * len(scanned))
    frame["legend"] = {"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top", "font": {"size": 11}}
    frame["margin"] |= {"t": 12}
    frame["xaxis"] = axis("share of the group's channels removed") | {"ticksuffix": " %", "range": [-1, 100 * largest + 2]}
    frame["yaxis"] = axis("accuracy") | {"ticksuffix": " %", "rangemode": "tozero"}
    return {"data": traces, "layout": frame}


def _style(place: int) -> tuple[str, str, str]:
    """Colour, dash and symbol: neighbours differ in all three, and no two of the first 168 groups look alike."""
    return (
        f"var(--{_COLOURS[place % len(_COLOURS)]})",
        _DASHES[place % len(_DASHES)],
        _SYMBOLS[place % len(_SYMBOLS)],
    )


def _curve(name: str, whole: float, found: Sequence[Result], style: tuple[str, str, str]) -> dict[str, Any]:
    told = [f"{p['removed']} of {p['channels']} channels removed: {percent(p['accuracy'])}" for p in found]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": tail(name, 34),
        "x": [0.0, *(100 * p["share"] for p in found)],
        "y": [100 * whole, *(100 * p["accuracy"] for p in found)],
        "line": {"color": style[0], "dash": style[1], "width": 1.8},
        "marker": {"color": style[0], "symbol": style[2], "size": 6},
        "customdata": [[plotly_text(name), text] for text in (f"whole: {percent(whole)}", *told)],
        "hovertemplate": "%{customdata[0]}<br><b>%{customdata[1]}</b><extra></extra>",
    }


def _subtitle(result: Result) -> str:
    network = result["network"]
    images = f"{count(network['images'])} {network['split']} images of {result['subject'].get('data', 'the user')}"
    return escape(f"channels ranked by {result['criterion']}; accuracy {percent(network['accuracy'])} on {images}")


def _sections(result: Result) -> dict[str, str]:
    left_out = [[escape(g["name"]), count(g["channels"]), escape(g["unscanned"])] for g in result["groups"] if g["unscanned"]]
    return {
        "Accuracy against the share removed": _lead(result) + place(CURVES, _TITLE, "plot wide") + _every_point(result),
        "How much each group bears": _largest(result),
        "Not scanned": table("Groups that stayed whole", ["group", "channels", "why"], left_out, (1,)) if left_out else "",
        "Doubts": bullets(result["notes"]),
        "What was scanned": _about(result),
    }


_TITLE = "Accuracy when a single group loses this share of its channels, all others whole, nothing retrained"


def _lead(result: Result) -> str:
    ends = {name: found[-1] for name, found in curves(result).items() if found}
    worst = min(ends.values(), key=lambda point: point["accuracy"])
    best = max(ends.values(), key=lambda point: point["accuracy"])
    told = (
        f"{escape(worst['group'])} is the most sensitive: {percent(worst['accuracy'])} without {percent(worst['share'])} of its "
        f"channels; {escape(best['group'])} the least: {percent(best['accuracy'])} without {percent(best['share'])}."
    )
    return f'<p class="lead">{told}</p>' if len(ends) > 1 else ""


def _largest(result: Result) -> str:
    """Every scanned group with the largest share that costs at most a point."""
    whole, macs = result["network"]["accuracy"], result["network"]["cost"]["macs"]
    rows: list[list[str]] = []
    for group in (g for g in result["groups"] if g["unscanned"] is None):
        found, name = group["largest"], escape(group["name"])
        if found is None:
            rows.append([name, count(group["channels"]), "none", MISSING, MISSING, MISSING])
            continue
        share = percent(found["share"]) + below(f"{found['removed']} channels")
        change = points(found["accuracy"] - whole)
        rows.append(
            [name, count(group["channels"]), share, percent(found["accuracy"]), change, percent(1 - found["macs"] / macs)]
        )
    head = ["group", "channels", "share removed", "accuracy", "change", "MACs saved"]
    listed = table("The largest scanned share of each group that costs at most one point, alone", head, rows, range(1, 6))
    note = "Removed together, groups mostly cost more than each alone. On few images, small differences say nothing."
    return listed + f'<p class="note">{note}</p>'


def _every_point(result: Result) -> str:
    whole = result["network"]["accuracy"]
    rows = [
        [
            escape(name),
            f"{p['removed']} of {p['channels']}",
            percent(p["share"]),
            percent(p["accuracy"]),
            points(p["accuracy"] - whole),
        ]
        for name, found in curves(result).items()
        for p in found
    ]
    head = ["group", "channels removed", "share", "accuracy", "change"]
    return folded("Every point as a table", table("Every point of the scan", head, rows, range(1, 5)))


def _about(result: Result) -> str:
    asked = {**result["subject"], **result["settings"]}
    entries = [
        (str(name).replace("_", " "), escape(_setting(value))) for name, value in asked.items() if value not in (None, "", [], {})
    ]
    cost = result["network"]["cost"]
    entries += [("MACs", count(cost["macs"])), ("parameters", count(cost["parameters"]))]
    return pairs(entries + [(name, escape(plain(value))) for name, value in result["environment"].items()])


def _setting(value: Any) -> str:
    return ", ".join(plain(one) if is_number(one) else str(one) for one in value) if isinstance(value, list) else plain(value)
