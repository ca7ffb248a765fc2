"""What the tables of criteria share: a comparison run part by part, its figures in benchmarks/results as JSON and as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.files import write_atomically
from prunus.laboratory import Settings, Subject, compare, read_criteria
from prunus.report.laboratory_plots import ranked, spread

RESULTS = Path(__file__).parent / "results"


def run(name: str, subject: Subject, criteria: str, seeds: int, out: Path, settings: Settings, extra: Mapping[str, Any]) -> Any:
    """Compare (a killed comparison goes on) and write the table, unless it has no name; progress goes to the error stream."""
    result = compare(subject, read_criteria(criteria), range(seeds), out, settings, lambda text: print(text, file=sys.stderr))
    if name:
        store(name, {**result, **extra})
    return result


def store(name: str, result: Mapping[str, Any]) -> None:
    """The result without what only its page needs, and a Markdown table of it."""
    kept = {key: value for key, value in result.items() if key not in ("prunus", "warnings", "seconds")}
    write_atomically(RESULTS / f"{name}.json", (json.dumps(kept, indent=1) + "\n").encode())
    lines = [about(result), "", *markdown(HEAD, [cells(row) for row in ranked(result)])]
    refused = [f"- {row['name']}: {row['not_applicable']}" for row in result["criteria"] if row["not_applicable"] is not None]
    lines += ["", "Not applicable:", "", *refused] if refused else []
    if result["removal"]:
        lines += ["", *removal_table(result)]
    write_atomically(RESULTS / f"{name}.md", ("\n".join(lines) + "\n").encode())


HEAD = (
    "criterion",
    "Spearman, raw",
    "Spearman, L2-normalised",
    "within layers",
    "lowest 20 %, raw",
    "lowest 20 %, L2",
    "seconds",
)


def about(result: Mapping[str, Any]) -> str:
    """What the table is of, in one paragraph."""
    network, settings, machine = result["network"], result["settings"], result["environment"]
    return (
        f"Made by `{result['command']}` on {machine['cpu']}, torch {machine['torch']}. {result['subject']['model']} on "
        f"{result['subject']['data']}, accuracy {100 * network['accuracy']['mean']:.1f} %; oracle on {network['sampled']} of "
        f"{network['channels']} channels, {settings['images']} images; mean ± standard deviation, seeds: {len(result['seeds'])}. "
        "Spearman's rank correlation with the oracle (absolute change of the loss) over all layers, raw and with each layer's "
        "scores L2-normalised, and within layers; share of the lowest 20 % that are among the oracle's lowest; seconds to score."
    )


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    figures = [row["spearman"][kind] for kind in ("raw", "l2", "within")] + [row["overlap"][kind] for kind in ("raw", "l2")]
    return [row["name"], *(spread(figure) for figure in figures), f"{row['seconds']['mean']:.3g}"]


def removal_table(result: Mapping[str, Any]) -> list[str]:
    """Accuracy in percent by criterion, recovery and share removed."""
    shares = [f"{100 * share:g} %" for share in result["settings"]["shares"]]
    rows: list[list[str]] = []
    for name, curves in result["removal"]["curves"].items():
        for recovery, points in curves.items():
            means = ["" if point["mean"] is None else f"{100 * point['mean']:.1f}" for point in points]
            rows.append([name, recovery, *means])
    return ["Test accuracy, %, by the share of channels removed:", "", *markdown(("criterion", "recovery", *shares), rows)]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]
