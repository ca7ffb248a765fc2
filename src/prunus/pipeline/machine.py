"""What figures depend on besides the code of a run: versions and machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from prunus.version import VERSION


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they matter to the figures."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    found["prunus"] = VERSION
    for package in ("torch", "torchvision", "accelerate", "onnx", "onnxruntime", "openvino"):
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


def timing_environment(runtime: str) -> dict[str, Any]:
    """What the time of a layer on ``runtime`` depends on, besides the settings it is measured with."""
    found = environment()
    names = ["platform", "cpu", "cores", "torch", "onnxruntime", *(["openvino"] if runtime == "openvino" else [])]
    return {name: found[name] for name in names}
