"""The page about benched networks: speed-ups beside the ideal, why they fall short of it, and layers under the machine's roof."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunus.errors import ExportError
from prunus.report.bench_plots import bench_figures
from prunus.report.drawing import Figure, place
from prunus.report.laboratory import laboratory_page
from prunus.report.offline import write_page
from prunus.report.wording import (
    MISSING,
    below,
    bullets,
    count,
    escape,
    milliseconds,
    pairs,
    percent,
    plain,
    short,
    size,
    table,
    tag,
)

Result = Mapping[str, Any]
_CAUSES = {
    "other": "beside the layers",
    "launch": "calls",
    "widths": "odd widths",
    "memory": "memory",
    "shapes": "narrow layers",
    "cheap": "cheap MACs",
}
_TAGS = {"faster": "good", "slower": "bad"}


def write_bench(result: Result, path: Path) -> None:
    """Write the page about a bench (the content of ``bench.json``), replacing an old one only when complete.

    Raises:
        ExportError: plotly isn't installed, ``result`` lacks something the page shows, or ``path`` can't be written.
    """
    write_page(render_bench(result), path, "page")


def render_bench(result: Result) -> str:
    """The page as text. Raises `ExportError` like `write_bench`."""
    try:
        drawn = bench_figures(result)
        sections = {title: part for title, part in _sections(result, drawn).items() if part}
        names = ", ".join(row["name"] for row in result["networks"])
        return laboratory_page(f"Bench of {names}", _subtitle(result), sections, drawn, result)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        told = f"{type(error).__name__} {error}".strip()
        raise ExportError(f"the bench can't be shown: {told}; was it written by this version?") from error


def _subtitle(result: Result) -> str:
    measured = [row for row in result["cases"] if row["error"] is None]
    settings = result["settings"]
    text = f"{len(measured)} setting{'s' * (len(measured) != 1)}, each in {settings['processes']} fresh processes"
    return escape(f"{text}; {result['environment']['cpu']}")


def _sections(result: Result, drawn: Mapping[str, Figure]) -> dict[str, str]:
    return {
        "Result": _lead(result)
        + _drawn(drawn, "plot-speed-up", "Speed-up over the first network, beside the ideal")
        + _table(result),
        "Why not faster": _why(result),
        "Batch sizes": _drawn(drawn, "plot-batches", "Images per second against images a pass"),
        "Layers": _layers(result, drawn),
        "Doubts": bullets([*result["notes"], *(f"{row['case']}: {note}" for row in result["cases"] for note in row["notes"])]),
        "What was measured": _about(result),
    }


def _drawn(drawn: Mapping[str, Figure], name: str, title: str) -> str:
    return place(name, title, "plot wide") if name in drawn else ""


def _lead(result: Result) -> str:
    best = [
        (told["speed_up"], name, row, told)
        for row in result["cases"]
        for name, told in row["compared"].items()
        if told["verdict"] == "faster"
    ]
    compared = [name for row in result["cases"] for name in row["compared"]]
    if not compared:
        return ""
    if not best:
        return '<p class="lead">No network was shown to be faster than the first one.</p>'
    speed_up, name, row, told = max(best, key=lambda item: item[0])
    ideal = f", {percent(told['of_ideal'])} of the ideal" if told["ideal"] else ""
    text = f"{name} is {speed_up:.2f} times as fast as {result['reference']} on {row['case']}{ideal}."
    note = (
        "The ideal is the ratio of multiply-adds. Medians; below them where the 95 % intervals of all processes lie. A verdict "
        "is given only where these don't hold 1."
    )
    return f'<p class="lead">{escape(text)}</p><p class="note">{escape(note)}</p>'


def _table(result: Result) -> str:
    head = ["network", "median", "p90", "p99", "images/s", "memory", "speed-up", "ideal", "of it", "verdict"]
    rows: list[list[str]] = []
    for row in result["cases"]:
        for name, found in row["networks"].items():
            told = row["compared"].get(name)
            named = escape(name) + below(escape(row["case"]))
            rows.append([named, *_figures(found), *(_speed_up(told) if told else [MISSING, "", "", ""])])
    return table("Every network in every setting", head, rows, range(1, 9))


def _figures(found: Mapping[str, Any]) -> list[str]:
    low, high = found["interval_ms"]
    return [
        milliseconds(found["p50_ms"]) + below(f"{plain(round(low, 3))} to {plain(round(high, 3))}"),
        milliseconds(found["p90_ms"]),
        milliseconds(found["p99_ms"]),
        short(found["images_per_second"]),
        size(found["memory_bytes"]),
    ]


def _speed_up(told: Mapping[str, Any]) -> list[str]:
    low, high = told["interval"]
    ideal = f"{told['ideal']:.2f}" if told["ideal"] else MISSING
    of_ideal = percent(told["of_ideal"]) if told["ideal"] else MISSING
    mark = tag(told["verdict"], _TAGS.get(told["verdict"], "plain"))
    return [f"{told['speed_up']:.2f}" + below(f"{low:.2f} to {high:.2f}"), ideal, of_ideal, mark]


def _why(result: Result) -> str:
    parts: list[str] = []
    for row in result["cases"]:
        for name, told in row["compared"].items():
            if not told["reasons"]:
                continue
            title = f"{name}, {row['case']}: {told['speed_up']:.2f} times as fast, {told['ideal']:.2f} would be ideal"
            parts.append(f"<h3>{escape(title)}</h3>{bullets(reason['text'] for reason in told['reasons'])}")
    if not parts:
        return ""
    return "".join(parts) + _causes(result)


def _causes(result: Result) -> str:
    rows = [
        [escape(name) + below(escape(row["case"])), *(milliseconds(round(told["causes"][cause], 4)) for cause in _CAUSES)]
        for row in result["cases"]
        for name, told in row["compared"].items()
        if told["causes"]
    ]
    note = "<p>Milliseconds above the ideal, which add up to all of it; negative ones are better than the ideal.</p>"
    return note + table("Time above the ideal by cause", ["network", *_CAUSES.values()], rows, range(1, 7))


def _layers(result: Result, drawn: Mapping[str, Figure]) -> str:
    shown = next((row for row in result["cases"] if row["layers"]), None)
    if shown is None:
        return ""
    machine = shown["machine"]
    told = (
        f"{shown['case']}; layers timed alone in {shown['layers_in']}. Measured peaks: {short(machine['macs_per_second'])} "
        f"multiply-adds and {short(machine['bytes_per_second'])} bytes per second."
    )
    rows = [
        [
            escape(layer["name"]),
            escape(name),
            f"{count(layer['reads'])} → {count(layer['writes'])}",
            milliseconds(layer["ms"]),
            short(layer["macs"]),
            percent(layer["of_peak"]["macs_per_second"]),
            percent(layer["of_peak"]["bytes_per_second"]),
            escape(layer["bound"]),
        ]
        for name, layers in shown["layers"].items()
        for layer in layers
    ]
    head = ["layer", "network", "widths", "time", "MACs", "of peak MACs/s", "of peak bytes/s", "bound by"]
    return (
        f"<p>{escape(told)}</p>"
        + _drawn(drawn, "plot-layers", "Every layer's time against its multiply-adds")
        + _drawn(drawn, "plot-roof", "Every layer under the machine's roof")
        + table("Every layer", head, rows, range(3, 7))
    )


def _about(result: Result) -> str:
    networks = [
        [escape(row["name"]), count(row["macs"]), count(row["parameters"]), size(row["activation_bytes"])]
        for row in result["networks"]
    ]
    asked = {**result["subject"], **result["settings"]}
    entries = [
        (str(name).replace("_", " "), escape(plain(value))) for name, value in asked.items() if value not in (None, "", [])
    ]
    machine = [(name, escape(plain(value))) for name, value in result["environment"].items()]
    head = ["network", "MACs per input", "parameters", "activations at the peak"]
    return table("Networks", head, networks, range(1, 4)) + pairs(entries + machine)
