"""The page about a network's latency on a machine: every layer's time against width and against what the machine can do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunus.errors import ExportError
from prunus.report.drawing import Figure, axis, layout, place, plotly_text, tail
from prunus.report.laboratory import laboratory_page
from prunus.report.offline import write_page
from prunus.report.wording import count, escape, milliseconds, pairs, percent, plain, short, table

Result = Mapping[str, Any]
CURVES, ROOFLINE = "plot-latency", "plot-roofline"
_DRAWN = 12
_COLOURS = ("accent", "second", "third", "good", "bad", "ink")
_DASHES = ("solid", "dash", "dot", "dashdot")
_MARKS = {"arithmetic": "circle", "memory": "square", "neither": "x"}
_BOUND = {
    "arithmetic": "arithmetic: fewer channels save time",
    "memory": "memory: what is read and written",
    "neither": "neither: the call, or a slow kernel",
}


def write_latency(result: Result, path: Path) -> None:
    """Write the page about a profile (the content of ``latency.json``), replacing an old one only when complete.

    Raises:
        ExportError: plotly isn't installed, ``result`` lacks something the page shows, or ``path`` can't be written.
    """
    write_page(render_latency(result), path, "page")


def render_latency(result: Result) -> str:
    """The page as text. Raises `ExportError` like `write_latency`."""
    try:
        drawn = {CURVES: curves_figure(result), ROOFLINE: roofline_figure(result)}
        title = f"Latency of {result['subject'].get('model', 'a network')}"
        return laboratory_page(title, _subtitle(result), _sections(result), drawn, result)
    except (KeyError, TypeError, ValueError) as error:
        told = f"{type(error).__name__} {error}".strip()
        raise ExportError(f"the profile can't be shown: {told}; was it written by this version?") from error


def heaviest(result: Result, most: int = _DRAWN) -> list[Result]:
    """The layers that take the most time."""
    return sorted(result["layers"], key=lambda row: -row["ms"])[:most]


def curves_figure(result: Result) -> Figure:
    """Milliseconds against the share of the widths that is kept, a line for each of the heaviest layers."""
    traces: list[Figure] = []
    for number, row in enumerate(heaviest(result)):
        look = {"color": f"var(--{_COLOURS[number % len(_COLOURS)]})", "dash": _DASHES[number // len(_COLOURS) % len(_DASHES)]}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": tail(row["name"]),
                "x": [100 * share for share, _ in row["curve"]],
                "y": [ms for _, ms in row["curve"]],
                "line": {**look, "width": 2},
                "marker": {"color": look["color"], "size": 5},
                "hovertemplate": f"{plotly_text(row['name'])}<br>%{{x:.0f}} % of its channels: %{{y:.3f}} ms<extra></extra>",
            }
        )
    frame = layout(520)
    frame["legend"] = {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top", "font": {"size": 11}}
    frame["margin"]["b"] = 150
    frame["xaxis"] = {**axis("channels kept of those read and written, %"), "range": [0, 103]}
    frame["yaxis"] = {**axis("ms"), "rangemode": "tozero"}
    return {"data": traces, "layout": frame}


def roofline_figure(result: Result) -> Figure:
    """Multiply-adds a second against multiply-adds a byte; the roof is what the machine reached on a product and on a copy."""
    peak, bandwidth = result["machine"]["macs_per_second"], result["machine"]["bytes_per_second"]
    intensity = [row["macs"] / row["bytes"] for row in result["layers"]]
    ends = [min([*intensity, peak / bandwidth]) / 2, peak / bandwidth, max([*intensity, peak / bandwidth]) * 2]
    roof = {
        "type": "scatter",
        "mode": "lines",
        "name": "the machine's roof",
        "x": ends,
        "y": [min(peak, bandwidth * x) / 1e9 for x in ends],
        "line": {"color": "var(--ink-soft)", "dash": "dot", "width": 2},
        "hoverinfo": "skip",
    }
    traces: list[Figure] = [roof]
    for (kind, symbol), colour in zip(_MARKS.items(), _COLOURS, strict=False):
        rows = [row for row in result["layers"] if row["bound"] == kind]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plotly_text(_BOUND[kind].partition(":")[0]),
                "x": [row["macs"] / row["bytes"] for row in rows],
                "y": [row["macs_per_second"] / 1e9 for row in rows],
                "text": [plotly_text(row["name"]) for row in rows],
                "marker": {"symbol": symbol, "size": 9, "color": f"var(--{colour})"},
                "hovertemplate": "%{text}<br>%{x:.3g} MACs a byte, %{y:.3g} billion MACs/s<extra></extra>",
            }
        )
    frame = layout(440)
    frame["xaxis"] = {**axis("multiply-adds per byte read or written"), "type": "log"}
    frame["yaxis"] = {**axis("billion multiply-adds per second"), "type": "log"}
    return {"data": traces, "layout": frame}


def _subtitle(result: Result) -> str:
    settings, network = result["settings"], result["network"]
    threads = f"{settings['threads']} thread{'s' * (settings['threads'] != 1)}"
    spread = f"{milliseconds(network['p10_ms'])} to {milliseconds(network['p90_ms'])} for 8 of 10 passes"
    text = f"{milliseconds(network['latency_ms'])} on {settings['runtime']}, {threads}, batch {settings['batch']} ({spread})"
    return escape(f"{text}; {count(network['macs'])} multiply-adds per input")


def _sections(result: Result) -> dict[str, str]:
    return {
        "Time against width": _lead(result)
        + place(CURVES, f"The {min(_DRAWN, len(result['layers']))} heaviest layers", "plot wide"),
        "What layers wait for": _machine(result) + place(ROOFLINE, "Every layer under the machine's roof", "plot wide"),
        "Every layer": _every_layer(result),
        "What was measured": _about(result),
    }


def _lead(result: Result) -> str:
    network, multiple = result["network"], result["multiple"]
    share = network["layers_ms"] / network["latency_ms"]
    told = f"Its layers, each timed alone, take {milliseconds(network['layers_ms'])}: {percent(share)} of the network's time."
    if multiple > 1:
        told += f" Widths that are multiples of {multiple} are the fast ones here."
    else:
        told += " No multiple of widths is faster than others here."
    return f'<p class="lead">{escape(told)}</p>'


def _machine(result: Result) -> str:
    machine = result["machine"]
    peak, bandwidth = short(machine["macs_per_second"]), short(machine["bytes_per_second"])
    told = (
        f"Measured peaks: {peak} multiply-adds per second (a large matrix product or the fastest layer), {bandwidth} bytes "
        "per second (a large copy). "
        "A layer near its roof can only do less work; one far below both pays for its call, or its kernel doesn't fit its widths."
    )
    return f"<p>{escape(told)}</p>"


def _every_layer(result: Result) -> str:
    head = [
        "layer",
        "reads",
        "writes",
        "time",
        "share",
        "at half the width",
        "MACs/s",
        "of peak",
        "bytes/s",
        "of peak",
        "bound by",
    ]
    rows = [
        [
            escape(row["name"]),
            count(row["reads"]),
            count(row["writes"]),
            milliseconds(row["ms"]),
            percent(row["share"]),
            percent(next(ms for share, ms in row["curve"] if share == 0.5) / row["ms"]),
            short(row["macs_per_second"]),
            percent(row["of_peak"]["macs_per_second"]),
            short(row["bytes_per_second"]),
            percent(row["of_peak"]["bytes_per_second"]),
            escape(row["bound"]),
        ]
        for row in result["layers"]
    ]
    note = "<p>" + "; ".join(escape(text) for text in _BOUND.values()) + ".</p>"
    return table("Layers in the order of the network", head, rows, range(1, 10)) + note


def _about(result: Result) -> str:
    asked = {**result["subject"], **result["settings"]}
    entries = [
        (str(name).replace("_", " "), escape(plain(value))) for name, value in asked.items() if value not in (None, "", [])
    ]
    return pairs(entries + [(name, escape(plain(value))) for name, value in result["environment"].items()])
