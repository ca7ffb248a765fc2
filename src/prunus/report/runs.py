"""The page that compares several runs: who is best for what it costs, seeds together, and what the recipes differ in."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from prunus.errors import ExportError
from prunus.report.drawing import Figure, place
from prunus.report.laboratory import laboratory_page
from prunus.report.offline import write_page
from prunus.report.trade_off import COSTS, Point, best, ends, points_of, trade_off_figure
from prunus.report.wording import (
    MISSING,
    below,
    bullets,
    count,
    duration,
    escape,
    folded,
    is_number,
    milliseconds,
    pairs,
    percent,
    plain,
    points,
    ratio,
    speed_up,
    table,
    tag,
)

Result = Mapping[str, Any]
_ALIKE = ("name", "seed")  # fields of a recipe that don't make it another one


def write_runs(result: Result, path: Path) -> None:
    """Write the page about `compare_runs`' result, replacing an old one only when complete.

    Raises:
        ExportError: plotly isn't installed, a result lacks something the page shows, or ``path`` can't be written.
    """
    write_page(render_runs(result), path, "page")


def compare_runs(results: Mapping[str, Result], version: str) -> dict[str, Any]:
    """What the page shows of finished runs, by their names: a row for each, a row for each recipe over its seeds, differences.

    Raises:
        ExportError: a result lacks something.
    """
    try:
        rows = [_row(name, result) for name, result in results.items()]
        return {
            "prunus": version,
            "runs": rows,
            "recipes": _over_seeds(rows),
            "differences": _differences({name: result["recipe"] for name, result in results.items()}),
            "points": [point for name, result in results.items() for point in points_of(result, name)],
            "doubts": _doubts(results),
        }
    except (KeyError, TypeError) as error:
        told = f"{type(error).__name__} {error}"
        raise ExportError(f"these results can't be compared: {told}; were they written by this version?") from error


def _row(name: str, result: Result) -> dict[str, Any]:
    before, after = result["networks"]["before"], result["networks"]["after"]
    first, last = ends(result)
    recipe = result["recipe"]
    method = (recipe.get("sparsity") or {}).get("method")
    return {
        "run": name,
        "model": result["request"]["model"],
        "data": result["request"]["data"],
        "method": method or result["request"]["criterion"],
        "allocator": None if method else result["request"]["allocator"],
        "seed": recipe["seed"],
        "full accuracy": first,
        "accuracy": last["accuracy"] if last else None,
        "split": last["split"] if last else None,
        "macs": after["macs"],
        "macs left": ratio(after["macs"], before["macs"]),
        "parameters left": ratio(after["parameters"], before["parameters"]),
        "ms": (after["latency"] or {}).get("median_ms"),
        "runtime": (after["latency"] or {}).get("runtime"),
        "speed-up": speed_up(before["latency"], after["latency"]),
        "seconds": result["seconds"],
        "met": all(entry["met"] for entry in result["budget"]),
        "exact": bool(result["verification"]["passed"]),
        "recipe": json.dumps({key: value for key, value in recipe.items() if key not in _ALIKE}, sort_keys=True),
    }


def _over_seeds(rows: Sequence[Result]) -> list[dict[str, Any]]:
    """Runs of one recipe with several seeds, as mean and standard deviation; recipes with one seed are left out."""
    groups: dict[str, list[Result]] = {}
    for row in rows:
        groups.setdefault(row["recipe"], []).append(row)
    found = list[dict[str, Any]]()
    for some in groups.values():
        seeds = {row["seed"] for row in some}
        known = [row for row in some if is_number(row["accuracy"])]
        if len(seeds) < 2 or len(known) < len(some):
            continue
        changes = [row["accuracy"] - row["full accuracy"] for row in some if is_number(row["full accuracy"])]
        found.append(
            {
                "runs": [row["run"] for row in some],
                "seeds": sorted(seeds),
                "accuracy": _mean([row["accuracy"] for row in some]),
                "change": _mean(changes) if len(changes) == len(some) else None,
                "macs left": _mean([row["macs left"] for row in some]),
            }
        )
    return found


def _mean(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "std": statistics.stdev(values)}


def _differences(recipes: Mapping[str, Result]) -> dict[str, dict[str, Any]]:
    """Fields whose values differ between the recipes: field -> run -> value."""
    flat = {name: _flat(recipe) for name, recipe in recipes.items()}
    fields = sorted({field for found in flat.values() for field in found})
    return {
        field: {name: found.get(field) for name, found in flat.items()}
        for field in fields
        if len({json.dumps(found.get(field), sort_keys=True) for found in flat.values()}) > 1
    }


def _flat(tree: Result, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = cast("Result", value) if isinstance(value, dict) and value else None
        found |= _flat(nested, f"{prefix}{key}.") if nested is not None else {f"{prefix}{key}": value}
    return found


def _doubts(results: Mapping[str, Result]) -> list[str]:
    """What makes the comparison less than fair."""
    told = list[str]()
    for what, told_as in (("model", "networks"), ("data", "data")):
        if len({result["request"][what] for result in results.values()}) > 1:
            told.append(f"The runs are of different {told_as}: their accuracies don't compare.")
    machines = {result["environment"]["cpu"] for result in results.values()}
    if len(machines) > 1:
        told.append(f"Latency was measured on {len(machines)} machines: don't compare milliseconds.")
    elif len(results) > 1:
        told.append("Latency was measured run by run: small differences are noise. `prunus bench` times networks side by side.")
    return told


def render_runs(result: Result) -> str:
    """The page as text. Raises `ExportError` where something is missing."""
    try:
        drawn: dict[str, Figure] = {}
        for cost in COSTS:
            figure = trade_off_figure(result["points"], cost)
            if figure is not None:
                drawn[f"plot-{cost}"] = figure
        places = "".join(place(f"plot-{cost}", f"Accuracy against {COSTS[cost]}") for cost in COSTS if f"plot-{cost}" in drawn)
        sections = {
            "Result": _lead(result) + places,
            "Runs": _table(result["runs"]),
            "Over seeds": _seeds_table(result["recipes"]),
            "Differences": _differences_table(result["differences"]),
            "Doubts": bullets(result["doubts"]),
        }
        names = [row["run"] for row in result["runs"]]
        title = f"{len(names)} runs side by side" if len(names) > 1 else names[0]
        kept = {name: part for name, part in sections.items() if part}
        return laboratory_page(title, escape(", ".join(names)), kept, drawn, result)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        told = f"{type(error).__name__} {error}".strip()
        raise ExportError(f"the runs can't be shown: {told}; was the result written by this version?") from error


def _lead(result: Result) -> str:
    pruned: list[Point] = [point for point in result["points"] if point["kind"] == "pruned"]
    names = [escape(point["name"]) for point in best(pruned, "macs")]
    if not names:
        return ""
    note = "Of each, no other run of these is as accurate with fewer MACs. One run with one seed proves little."
    return f'<p class="lead">Best for their MACs: {", ".join(names)}.</p><p class="note">{note}</p>'


def _table(rows: Sequence[Result]) -> str:
    head = ["run", "by", "seed", "accuracy", "change", "MACs left", "parameters left", "latency", "time", "verdict"]
    listed = [
        [
            escape(row["run"]),
            escape(row["method"]) + below(escape(row["allocator"] or "a sparsity method")),
            count(row["seed"]),
            percent(row["accuracy"]) + below(escape(row["split"] or "")),
            points(row["accuracy"] - row["full accuracy"]) if is_number(row["full accuracy"]) else MISSING,
            percent(row["macs left"]) + below(count(row["macs"])),
            percent(row["parameters left"]),
            _latency(row),
            duration(row["seconds"]),
            (tag("budget met", "good") if row["met"] else tag("budget not met", "bad"))
            + ("" if row["exact"] else f" {tag('NOT exact', 'bad')}"),
        ]
        for row in rows
    ]
    return table("Every run, last epoch", head, listed, range(2, 9))


def _latency(row: Result) -> str:
    if row["ms"] is None:
        return MISSING
    gained = f"{row['speed-up']:.2f} times as fast, " if row["speed-up"] else ""
    return milliseconds(row["ms"]) + below(f"{gained}{escape(row['runtime'])}")


def _seeds_table(rows: Sequence[Result]) -> str:
    if not rows:
        return ""
    listed = [
        [
            escape(", ".join(row["runs"])),
            escape(", ".join(map(str, row["seeds"]))),
            _spread(row["accuracy"]),
            f"{100 * row['change']['mean']:+.2f} ± {100 * row['change']['std']:.2f} points" if row["change"] else MISSING,
            percent(row["macs left"]["mean"]),
        ]
        for row in rows
    ]
    head = ["runs of one recipe", "seeds", "accuracy", "change", "MACs left"]
    return table("Mean ± standard deviation", head, listed, (2, 3, 4))


def _spread(found: Mapping[str, float]) -> str:
    return f"{100 * found['mean']:.2f} ± {100 * found['std']:.2f} %"


def _differences_table(differences: Mapping[str, Mapping[str, Any]]) -> str:
    """One list for each field; names of runs that share a value stand together."""
    entries = list[tuple[str, str]]()
    for field, values in differences.items():
        if field in _ALIKE:
            continue
        by_value: dict[str, list[str]] = {}
        for run, value in values.items():
            by_value.setdefault(plain(value) if value not in (None, "", []) else "none", []).append(run)
        told = "; ".join(f"<b>{escape(value)}</b>: {escape(', '.join(runs))}" for value, runs in by_value.items())
        entries.append((field, told))
    listed = pairs(entries)
    return folded("Fields of the recipes that differ", listed) if len(entries) > 12 else listed
