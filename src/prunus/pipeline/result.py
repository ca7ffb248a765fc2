"""Parts of ``result.json``: what the report shows about networks, groups and the machine."""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from prunus.config import Recipe
from prunus.pipeline.ladder import TITLES, rung_rows
from prunus.pipeline.machine import environment
from prunus.sources import DataBundle
from prunus.surgery import SurgeryRecord
from prunus.types import ChannelGraph, ChannelGroup, Cost


def stage_title(number: int, iterative: bool, stage: str) -> str:
    """``after pruning``, or ``round 2: after pruning`` in iterative pruning."""
    return f"round {number}: {stage}" if iterative else stage


def assemble(
    recipe: Recipe,
    results: Mapping[str, dict[str, Any]],
    rounds: int,
    graph: ChannelGraph,
    record: SurgeryRecord,
    out: Path,
    base: Path,
    data: DataBundle,
) -> dict[str, Any]:
    """The content of ``result.json`` from the results of all stages; ``graph`` is the full network's, ``base`` its file."""
    prunes = [results[f"round-{n}-prune"] for n in range(1, rounds + 1)]
    first, last, export = prunes[0], prunes[-1], results["export"]
    full = {**first["before"], "channels": first["channels"]["before"]}
    frozen = {name: why for r in prunes for name, why in r["frozen"].items()}
    machine = environment()
    curves = _curves(results)
    gallery = [results["gallery"]["file"]] if "gallery" in results else []
    taken = first.get("allocator") if recipe.prune.allocator == "auto" and recipe.sparsity is None else None
    return {
        "prunus": machine["prunus"],
        "name": recipe.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": _command(sys.argv),
        "seconds": sum(r["seconds"] for r in results.values()),
        "request": {
            "model": recipe.model.source,
            "weights": recipe.model.weights,
            "data": recipe.data.source,
            "seed": recipe.seed,
            **recipe.prune.model_dump(
                mode="json", include={"criterion", "allocator", "budget", "mixing", "whole_groups", "keep"}
            ),
            **({"allocator": f"{taken} (auto)"} if taken else {}),
            "rounds": rounds,
        },
        "data": _data_row(recipe, data),
        "budget": [{**row, "full": full.get(row["target"], row["full"])} for row in last["budget"]],
        "stages": [r["evaluation"] for r in results.values() if "evaluation" in r],
        "rounds": _rounds(results, prunes),
        "ladder": _ladder(results, rounds),
        "controls": [_control(r) for name, r in results.items() if name.startswith("control-")],
        "training": curves,
        "compute": _compute(results, curves),
        "networks": {
            "before": network_row(Cost(**first["before"]), base, export["latency"]["before"]),
            "after": network_row(Cost(**last["after"]), out / "small.prunus", export["latency"]["after"]),
        },
        "groups": group_rows(graph, record, frozen),
        **({"layers": export["layers"]} if "layers" in export else {}),
        **({"scores": {"round": rounds, **last["spread"]}} if "spread" in last else {}),
        "repaired": list(record.repaired),
        "unsupported_ops": dict(graph.unsupported_ops),
        "notes": [*data.notes, *graph.notes, *(note for r in results.values() for note in r.get("notes", []))],
        "verification": max((r["verification"] for r in prunes), key=lambda v: v["max_error"]),
        "samples": export["samples"],
        **({"gallery": results["gallery"]} if "gallery" in results else {}),
        "exports": export["exports"],
        "environment": machine,
        "warnings": [w for r in results.values() for w in r["warnings"]],
        "recipe": recipe.model_dump(mode="json"),
        "files": [
            "result.json",
            "report.html",
            "small.prunus",
            *(f for e in export["exports"] for f in e.get("files", [e["file"]])),
            *gallery,
        ],
    }


def _command(arguments: Sequence[str]) -> str:
    """What repeats the run in a terminal: started as a module, a program is known by its package."""
    program = Path(arguments[0])
    started = [program.name] if program.name != "__main__.py" else ["python", "-m", program.parent.name]
    return shlex.join([*started, *arguments[1:]])


def _curves(results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The epochs of every phase of training, by its title, in order."""
    titles = {"transfer": "training the head", "train": "training", "final-fine-tune": "final fine-tuning"}
    iterative = "round-2-prune" in results
    found: dict[str, Any] = {}
    for name, stage in results.items():
        if stage.get("epochs"):
            number, _, kind = name.removeprefix("round-").partition("-")
            rung = "sparsity training" if kind == "sparsity" else TITLES.get(kind, "fine-tuning")
            found[titles.get(name) or (f"round {number}: {rung}" if iterative else rung)] = stage["epochs"]
    return found


def _of_round(results: Mapping[str, dict[str, Any]], number: int) -> dict[str, dict[str, Any]]:
    """Stage (prune, recalibrate, ...) -> result, in order."""
    start = f"round-{number}-"
    return {name.removeprefix(start): stage for name, stage in results.items() if name.startswith(start)}


def _ladder(results: Mapping[str, dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Accuracy and seconds after the last round's removal and after every rung of its recovery."""
    stages = {TITLES.get(name, "removal"): stage for name, stage in _of_round(results, rounds).items()}
    if "final-fine-tune" in results:
        stages["final fine-tuning"] = results["final-fine-tune"]
    return rung_rows(stages)


def _control(row: Mapping[str, Any]) -> dict[str, Any]:
    judged = row["judged"]
    figures = {"accuracy": judged["accuracy"], "loss": judged["loss"], "split": judged["split"], "seconds": row["seconds"]}
    return {**{key: row[key] for key in ("row", "what", "macs")}, "epochs": row["trained_epochs"], **figures}


def _rounds(results: Mapping[str, dict[str, Any]], prunes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Costs and accuracy before pruning (round 0) and after every round's fine-tuning."""
    full, start = prunes[0], results["train"]["evaluation"]
    rows = [_round_row(0, full["before"], full["channels"]["before"], start)]
    for number, pruned in enumerate(prunes, start=1):
        judged = next(reversed([r["evaluation"] for r in _of_round(results, number).values() if "evaluation" in r]))
        rows.append(_round_row(number, pruned["after"], pruned["channels"]["after"], judged))
    return rows


def _round_row(number: int, cost: Mapping[str, Any], channels: int, judged: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "round": number,
        "macs": cost["macs"],
        "parameters": cost["parameters"],
        "channels": channels,
        "accuracy": judged["accuracy"],
        "split": judged["split"],
        "after": judged["stage"],
    }


def _data_row(recipe: Recipe, data: DataBundle) -> dict[str, Any]:
    return {
        "classes": list(data.class_names),
        "counts": {split: list(counts) for split, counts in data.class_counts.items()},
        "imbalance": data.imbalance,
        "damaged": {split: {"count": len(names), "names": list(names[:5])} for split, names in data.damaged.items() if names},
        "input_shape": list(data.input_shape),
        "augment": recipe.data.augment,
        "mean": list(data.mean),
        "std": list(data.std),
        "normalised_by": data.normalised_by,
    }


def _compute(results: Mapping[str, dict[str, Any]], curves: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of this run's training and how fast every phase was, the median over its epochs, in images per second."""
    speeds = {title: statistics.median(e["images_per_second"] for e in epochs) for title, epochs in curves.items()}
    chosen = results["compute"]
    return {
        "threads": chosen["threads"],
        "channels_last": chosen["channels_last"],
        "training_images_per_second": speeds,
        "measured": chosen.get("measured", []),
        "peak_memory_bytes": _peak_memory(),
    }


def _peak_memory() -> int | None:
    """The most memory that this process ever held, in bytes; None where the system doesn't tell."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def network_row(cost: Cost, file: Path, latency: dict[str, Any]) -> dict[str, Any]:
    """Cost, file size and measured latency of one network."""
    return {
        "macs": cost.macs,
        "parameters": cost.parameters,
        "activation_bytes": cost.activation_bytes,
        "file_bytes": file.stat().st_size,
        "latency": latency,
    }


_ASKED = {"criterion", "allocator", "budget", "mixing", "whole_groups", "keep"}


def group_rows(graph: ChannelGraph, record: SurgeryRecord, frozen: dict[str, str]) -> list[dict[str, Any]]:
    """Every group's width before and after, with the reason if it is frozen, in the order of the network."""
    return [
        {
            "name": group.name,
            "before": group.num_channels,
            "after": _kept(group, record),
            "frozen_because": group.frozen_because or frozen.get(group.name),
            "mixing": group.mixing,
            "layers": sorted({m.parameter_axis.parameter.rpartition(".")[0] for m in group.with_role("writes")}),
        }
        for group in graph.groups
    ]


def _kept(group: ChannelGroup, record: SurgeryRecord) -> int:
    member = group.with_role("writes")[0]
    kept = record.kept.get(member.parameter_axis.parameter, {}).get(member.parameter_axis.axis)
    return group.num_channels if kept is None else int(torch.isin(member.positions[:, 0], kept).sum())
