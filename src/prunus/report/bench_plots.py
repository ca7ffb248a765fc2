"""Figures of a bench: speed-ups with their intervals, throughput by batch size, layers against multiply-adds and the roof."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunus.report.drawing import Figure, axis, layout, plotly_text

Result = Mapping[str, Any]
Figures = Callable[[Mapping[str, Any]], float]
_COLOURS = ("accent", "second", "third", "good", "bad", "ink")
_MARKS = ("circle", "square", "diamond", "cross", "triangle-up", "x")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def bench_figures(result: Result) -> dict[str, Figure]:
    """The figures that the result has something for, by the place that they are drawn in."""
    found = {
        "plot-speed-up": speed_up_figure(result),
        "plot-batches": batches_figure(result),
        "plot-layers": layers_figure(result),
        "plot-roof": roof_figure(result),
    }
    return {name: figure for name, figure in found.items() if figure["data"]}


def speed_up_figure(result: Result) -> Figure:
    """Speed-up of every network but the first in every setting, with its interval, and the ideal as an open mark."""
    traces: list[Figure] = []
    names = [row["name"] for row in result["networks"][1:]]
    for number, name in enumerate(names):
        told = [(row["case"], row["compared"][name]) for row in result["cases"] if name in row["compared"]]
        if not told:
            continue
        colour, symbol = f"var(--{_COLOURS[number % 6]})", _MARKS[number % 6]
        cases = [plotly_text(case) for case, _ in told]
        ideals = [found["ideal"] for _, found in told]
        speed_ups = [found["speed_up"] for _, found in told]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plotly_text(name),
                "x": speed_ups,
                "y": cases,
                "marker": {"color": colour, "symbol": symbol, "size": 11},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [found["interval"][1] - found["speed_up"] for _, found in told],
                    "arrayminus": [found["speed_up"] - found["interval"][0] for _, found in told],
                    "color": colour,
                },
                "hovertemplate": "%{y}<br>%{x:.3g} times as fast<extra></extra>",
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{plotly_text(name)}: ideal",
                "x": ideals,
                "y": cases,
                "marker": {"color": colour, "symbol": f"{symbol}-open", "size": 14},
                "hovertemplate": "%{y}<br>%{x:.3g} would be ideal<extra></extra>",
            }
        )
    frame = layout(160 + 38 * len(result["cases"]))
    frame["margin"]["l"] = 230
    frame["xaxis"] = {**axis("times as fast as the first network"), "rangemode": "tozero"}
    frame["yaxis"] = {**axis(""), "autorange": "reversed"}
    frame["shapes"] = [_line_at_one()]
    return {"data": traces, "layout": frame}


def _line_at_one() -> Figure:
    line = {"color": "var(--ink-soft)", "dash": "dot", "width": 1.5}
    return {"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def batches_figure(result: Result) -> Figure:
    """Images per second against images a pass, a line for every network and setting; empty for a single batch size."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in result["cases"]:
        layout_name = ", channels_last" if row["channels_last"] else ""
        setting = f"{row['runtime']}, {row['threads']} thread{'s' * (row['threads'] > 1)}{layout_name}"
        for name, found in row["networks"].items():
            lines.setdefault((name, setting), []).append((row["batch"], found["images_per_second"]))
    names, settings = ([*dict.fromkeys(key[part] for key in lines)] for part in (0, 1))
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plotly_text(f"{name}: {setting}"),
            "x": [batch for batch, _ in sorted(points)],
            "y": [speed for _, speed in sorted(points)],
            "line": {
                "color": f"var(--{_COLOURS[settings.index(setting) % 6]})",
                "dash": _DASHES[names.index(name) % 6],
                "width": 2,
            },
            "marker": {"color": f"var(--{_COLOURS[settings.index(setting) % 6]})", "symbol": _MARKS[names.index(name) % 6]},
            "hovertemplate": "batch %{x}: %{y:.4g} images/s<extra></extra>",
        }
        for (name, setting), points in lines.items()
        if len(points) > 1
    ]
    frame = layout(440)
    frame["legend"] = {"orientation": "h", "x": 0, "y": -0.24, "yanchor": "top", "font": {"size": 11}}
    frame["margin"]["b"] = 150
    batches = sorted({batch for points in lines.values() for batch, _ in points})
    frame["xaxis"] = {**axis("images a pass"), "type": "log", "tickvals": batches, "ticktext": [str(batch) for batch in batches]}
    frame["yaxis"] = {**axis("images per second"), "rangemode": "tozero"}
    return {"data": traces, "layout": frame}


def layers_figure(result: Result) -> Figure:
    """Milliseconds of every layer against its multiply-adds; the line is the first network's average."""
    row = next((row for row in result["cases"] if row["layers"]), None)
    if row is None:
        return {"data": [], "layout": {}}
    traces = _points(row, lambda layer: layer["macs"], lambda layer: layer["ms"], "%{x:.3g} MACs, %{y:.3g} ms")
    first = row["layers"].get(result["reference"]) or next(iter(row["layers"].values()))
    macs = [layer["macs"] for layers in row["layers"].values() for layer in layers if layer["macs"]]
    average = sum(layer["ms"] for layer in first) / max(sum(layer["macs"] for layer in first), 1)
    ends = [min(macs), max(macs)]
    traces.append(_line("average of the first network", ends, [average * x for x in ends]))
    frame = layout(460)
    frame["xaxis"] = {**axis("multiply-adds"), "type": "log"}
    frame["yaxis"] = {**axis("ms"), "type": "log"}
    return {"data": traces, "layout": frame}


def roof_figure(result: Result) -> Figure:
    """Multiply-adds a second against multiply-adds a byte, and the roof that the machine's measured peaks make."""
    row = next((row for row in result["cases"] if row["layers"]), None)
    if row is None:
        return {"data": [], "layout": {}}
    peak, bandwidth = row["machine"]["macs_per_second"], row["machine"]["bytes_per_second"]
    intensity = [layer["macs"] / layer["bytes"] for layers in row["layers"].values() for layer in layers if layer["macs"]]
    ends = [min([*intensity, peak / bandwidth]) / 2, peak / bandwidth, max([*intensity, peak / bandwidth]) * 2]
    traces = _points(
        row,
        lambda layer: layer["macs"] / layer["bytes"],
        lambda layer: layer["macs_per_second"] / 1e9,
        "%{x:.3g} MACs a byte, %{y:.3g} billion MACs/s",
    )
    traces.append(_line("the machine's roof", ends, [min(peak, bandwidth * x) / 1e9 for x in ends]))
    frame = layout(460)
    frame["xaxis"] = {**axis("multiply-adds per byte read or written"), "type": "log"}
    frame["yaxis"] = {**axis("billion multiply-adds per second"), "type": "log"}
    return {"data": traces, "layout": frame}


def _points(row: Mapping[str, Any], x: Figures, y: Figures, hover: str) -> list[Figure]:
    """A mark for every layer, by network."""
    traces: list[Figure] = []
    for number, (name, layers) in enumerate(row["layers"].items()):
        drawn = [layer for layer in layers if layer["macs"]]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plotly_text(name),
                "x": [x(layer) for layer in drawn],
                "y": [y(layer) for layer in drawn],
                "text": [plotly_text(f"{layer['name']}, {layer['reads']} > {layer['writes']}") for layer in drawn],
                "marker": {"color": f"var(--{_COLOURS[number % 6]})", "symbol": _MARKS[number % 6], "size": 8},
                "hovertemplate": f"%{{text}}<br>{hover}<extra></extra>",
            }
        )
    return traces


def _line(name: str, x: list[float], y: list[float]) -> Figure:
    line = {"color": "var(--ink-soft)", "dash": "dot", "width": 2}
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": line, "hoverinfo": "skip"}
