"""Parts of ``result.json``: what the report shows about networks, groups and the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from prunus.surgery import SurgeryRecord
from prunus.types import ChannelGraph, ChannelGroup, Cost


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
