"""Parts of ``result.json``: what the report shows about networks, groups and the machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from prunus.config import Recipe
from prunus.surgery import SurgeryRecord
from prunus.types import ChannelGraph, ChannelGroup, Cost


def stage_title(number: int, rounds: int, stage: str) -> str:
    """``after pruning``, or ``round 2: after pruning`` where there are several rounds."""
    return stage if rounds == 1 else f"round {number}: {stage}"


def assemble(
    recipe: Recipe, results: Mapping[str, dict[str, Any]], graph: ChannelGraph, record: SurgeryRecord, out: Path, base: Path
) -> dict[str, Any]:
    """The content of ``result.json`` from the results of all stages; ``graph`` is the full network's, ``base`` its file."""
    rounds = recipe.prune.rounds
    prunes = [results[f"round-{n}-prune"] for n in range(1, rounds + 1)]
    first, last, export = prunes[0], prunes[-1], results["export"]
    frozen = {name: why for r in prunes for name, why in r["frozen"].items()}
    machine = environment()
    return {
        "prunus": machine["prunus"],
        "name": recipe.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seconds": sum(r["seconds"] for r in results.values()),
        "request": {
            "model": recipe.model.source,
            "weights": recipe.model.weights,
            "data": recipe.data.source,
            "seed": recipe.seed,
            **recipe.prune.model_dump(mode="json", include={"criterion", "allocator", "rounds", "budget", "mixing", "keep"}),
        },
        "budget": [{**row, "full": start["full"]} for row, start in zip(last["budget"], first["budget"], strict=True)],
        "stages": [r["evaluation"] for r in results.values() if "evaluation" in r],
        "training": _curves(results, rounds),
        "networks": {
            "before": network_row(Cost(**first["before"]), base, export["latency"]["before"]),
            "after": network_row(Cost(**last["after"]), out / "small.prunus", export["latency"]["after"]),
        },
        "groups": group_rows(graph, record, frozen),
        "unsupported_ops": dict(graph.unsupported_ops),
        "notes": [*graph.notes, *(note for r in results.values() for note in r.get("notes", []))],
        "verification": max((r["verification"] for r in prunes), key=lambda v: v["max_error"]),
        "exports": export["exports"],
        "environment": machine,
        "warnings": [w for r in results.values() for w in r["warnings"]],
        "recipe": recipe.model_dump(mode="json"),
        "files": ["result.json", "report.html", "small.prunus", *(e["file"] for e in export["exports"])],
    }


def _curves(results: Mapping[str, dict[str, Any]], rounds: int) -> dict[str, Any]:
    names = {"train": "training"}
    names |= {f"round-{n}-fine-tune": stage_title(n, rounds, "fine-tuning") for n in range(1, rounds + 1)}
    return {title: results[name]["epochs"] for name, title in names.items() if results[name]["epochs"]}


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they matter to the figures."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in ("prunus", "torch", "torchvision", "accelerate", "onnx", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def network_row(cost: Cost, file: Path, latency: dict[str, Any]) -> dict[str, Any]:
    """Cost, file size and measured latency of one network."""
    return {
        "macs": cost.macs,
        "parameters": cost.parameters,
        "activation_bytes": cost.activation_bytes,
        "file_bytes": file.stat().st_size,
        "latency": latency,
    }


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
