"""A head to head over its seeds: rows, the best of each side compared, and the page to read."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from _criteria import markdown
from _head_to_head import Row
from scipy import stats

FIGURES = ("before", "after", "validation", "macs", "macs_kept", "parameters")


def side(row: Row | Mapping[str, Any]) -> str:
    """prunus, torch-pruning or control."""
    by, way = (row["by"], row["way"]) if isinstance(row, Mapping) else (row.by, row.way)
    return "control" if way == "random" else by


def summary(row: Row, ratio: int, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """A row at a ratio over its seeds."""
    own = [part for part in parts.values() if (part["row"], part["ratio"]) == (row.name, ratio)]
    if not own:
        return None
    found: dict[str, Any] = {
        "row": row.name,
        "by": row.by,
        "way": row.way,
        "ratio": ratio,
        "seeds": [part["seed"] for part in own],
    }
    for name in FIGURES:
        values = [part[name] for part in own if part[name] is not None]
        found[name] = spread(values) if values else None
    machine = machines(parts)[0]  # seconds of two machines have no mean
    timed = [part["seconds"] for part in own if part["cpu"] == machine]
    found["seconds"] = {what: spread([took[what] for took in timed]) for what in ("pruning", "recovery")} if timed else None
    found["equal_macs"] = row.by == "control" or all(abs(part["macs_kept"] * ratio - 1) <= 0.0101 for part in own)
    found["bases"] = {str(part["seed"]): part["base"] for part in own}
    return found


def machines(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Processors on which parts were made, the one of most first."""
    return [name for name, _ in Counter(part["cpu"] for part in parts.values()).most_common()]


def mixed_bases(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Seeds whose parts stand on different trained networks: made on machines whose arithmetic differs in the last digits."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        for seed, base in row["bases"].items():
            seen.setdefault(seed, set()).add(base)
    return sorted(seed for seed, bases in seen.items() if len(bases) > 1)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Values, mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"values": list(values), "mean": statistics.mean(values), "std": deviation}


def compare(rows: Sequence[Mapping[str, Any]], ratio: int) -> dict[str, Any] | None:
    """The best row of each side by validation accuracy, on the test images: difference seed by seed, 95 % interval.

    Where some rows of a side were only looked at with fewer seeds, the choice is among those with the most.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for name in ("prunus", "torch-pruning"):
        own = [row for row in rows if row["ratio"] == ratio and side(row) == name]
        if not own:
            return None
        best[name] = max(own, key=lambda row: (len(row["seeds"]), row["validation"]["mean"]))
    ours, theirs = (dict(zip(row["seeds"], row["after"]["values"], strict=True)) for row in best.values())
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    difference = spread([ours[seed] - theirs[seed] for seed in shared])
    n, reach = len(shared), None
    if n > 1:
        reach = float(stats.t.ppf(0.975, n - 1)) * difference["std"] / math.sqrt(n)
    interval = None if reach is None else [difference["mean"] - reach, difference["mean"] + reach]
    chosen = {name: row["row"] for name, row in best.items()}
    return {"ratio": ratio, "rows": chosen, "seeds": shared, "difference": difference, "interval": interval}


def page(tree: Mapping[str, Any]) -> str:
    """The table to read."""
    head = (
        "MACs",
        "row",
        "by",
        "seeds",
        "before recovery, %",
        "after, %",
        "M MACs",
        "M parameters",
        "ms",
        "s, pruning",
        "s, recovery",
    )
    cells: list[list[str]] = []
    for row in sorted(tree["rows"], key=lambda row: (row["ratio"], -row["after"]["mean"])):
        took = tree.get("latency", {}).get(f"{row['row']}-{row['ratio']}x")
        share = f"1 / {row['ratio']}" if row["way"] != "longer" else "1"
        macs = f"{row['macs']['mean'] / 1e6:.2f}" + ("" if row["equal_macs"] else " (not equal)")
        figures = [percent(row["before"]), percent(row["after"]), macs, f"{row['parameters']['mean'] / 1e6:.3f}"]
        seconds = ["", ""] if row["seconds"] is None else [f"{v['mean']:.0f}" for v in row["seconds"].values()]
        times = ["" if took is None else f"{took['median_ms']:.2f}", *seconds]
        cells.append([share, row["row"], side(row), str(len(row["seeds"])), *figures, *times])
    first, *others = machines(tree["parts"])
    about = (
        f"Made by `{tree['command']}` on {first}, torch {tree['environment']['torch']}, {tree['peer']}; "
        f"mean ± standard deviation over the seeds, last epoch, {tree['epochs']} epochs of recovery for every row. Best rows "
        "of each side are chosen by validation images, among those with the most seeds, and compared on the test images."
    )
    longer = next((row for row in tree["rows"] if row["way"] == "longer" and row["before"]), None)
    notes = [] if longer is None else [f"Unpruned, before any recovery: {percent(longer['before'])} %."]
    if "full" in tree.get("latency", {}):
        full = tree["latency"]["full"]["median_ms"]
        where = tree["latency_environment"]["cpu"]
        notes.append(f"Latency of one image on one thread of {where}, all in turn, of the first seed; unpruned {full:.2f} ms.")
    if others:
        elsewhere = sum(part["cpu"] != first for part in tree["parts"].values())
        notes.append(f"{elsewhere} of {len(tree['parts'])} parts were made on {' and '.join(others)}: seconds leave them out.")
    if mixed := mixed_bases(tree["rows"]):
        notes.append(
            f"Rows of seed {', '.join(mixed)} don't all stand on the same trained network: it was trained again on another day."
        )
    lines = [
        " ".join([about, *notes]),
        "",
        *markdown(head, cells),
        "",
        *markdown(("MACs", "best by validation", "difference, points", "95 % interval"), []),
    ]
    for found in tree["compared"]:
        interval = found["interval"]
        told = "one seed" if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"
        chosen = " against ".join(found["rows"].values())
        lines.append(f"| 1 / {found['ratio']} | {chosen} | {100 * found['difference']['mean']:+.2f} | {told} |")
    return "\n".join(lines) + "\n"


def percent(figure: Mapping[str, Any] | None) -> str:
    """Mean and, where there is one, standard deviation."""
    if figure is None:
        return ""
    return f"{100 * figure['mean']:.2f}" + ("" if figure["std"] is None else f" ± {100 * figure['std']:.2f}")


def points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float, float]]:
    """Share of the multiply-adds, accuracy behind recovery and its deviation, all in percent, at every ratio.

    Only where the row has as many seeds as any: a row that was looked at with one has no band.
    """
    most = max(len(row["seeds"]) for row in rows)
    own = [row for row in rows if row["row"] == name and len(row["seeds"]) == most]
    return [(100 * row["macs_kept"]["mean"], 100 * row["after"]["mean"], 100 * (row["after"]["std"] or 0.0)) for row in own]
