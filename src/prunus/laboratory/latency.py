"""`profile_latency`: what every layer of a network takes on this machine, at every width, beside what the machine can do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from prunus.allocation.latency import LatencyModel
from prunus.budgets import Timing
from prunus.export.layer_timing import LayerShape
from prunus.files import write_atomically
from prunus.graph import trace
from prunus.graph.trace import Keep
from prunus.pipeline.machine import environment
from prunus.pipeline.time_layers import layer_shapes, time_layers
from prunus.pipeline.time_network import shown_progress
from prunus.pipeline.timer import MachineTimer, Timer, check_device
from prunus.report.latency import write_latency
from prunus.types import ChannelGraph, ExampleInputs

SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Shares of a layer's widths, read and written alike, at which its time is told."""
_SLOW = 0.25
"""A layer that reaches less of both peaks than this is bound by neither."""


def profile_latency(
    model: nn.Module,
    example_inputs: ExampleInputs,
    out: Path,
    *,
    runtime: str = "eager",
    timing: Timing | None = None,
    keep: Keep = (),
    fresh: bool = False,
    about: Mapping[str, Any] | None = None,
    timer: Timer | None = None,
) -> dict[str, Any]:
    """Measure, and write ``latency.json`` and ``latency.html`` to the folder ``out``; returns what the JSON holds.

    Layer times that are known are read from the cache, so that a profile that was stopped goes on; ``fresh`` measures all anew.

    Raises:
        InvalidBudget: the runtime doesn't have what ``timing`` asks for, or the network isn't on the CPU.
        ExportError: the runtime isn't installed, or can't run the network.
    """
    timing = timing or Timing()
    timing.check(runtime)
    check_device(model)
    graph = trace(model, example_inputs, keep)
    with MachineTimer(example_inputs, runtime, timing, fresh=fresh) as machine, shown_progress() as progress:
        used = timer or machine
        timed = time_layers(graph, example_inputs, timing, used, progress)
        progress("timing the network", 0, 1)
        whole = used.networks({"full": model})["full"]
    latency = cast("LatencyModel", timed.cost_model)
    peaks = machine_peaks(timing)
    layers = _layers(timed, latency, example_inputs, timing, peaks)
    fastest = max(row["macs_per_second"] for row in layers)
    if fastest > peaks["macs_per_second"]:  # a convolution may do better than the product that was tried
        peaks["macs_per_second"] = fastest
        layers = _layers(timed, latency, example_inputs, timing, peaks)
    alone = sum(row["ms"] for row in layers)
    settings = {"runtime": runtime, **{name: value for name, value in asdict(timing).items() if name != "cache"}}
    versions = environment()
    result = {
        "prunus": versions["prunus"],
        "subject": dict(about or {}),
        "settings": settings,
        "machine": peaks,
        "network": {
            "macs": graph.cost().macs,
            "latency_ms": whole.median_ms,
            "p10_ms": whole.p10_ms,
            "p90_ms": whole.p90_ms,
            "runs": whole.runs,
            "layers_ms": alone,
        },
        "multiple": max(latency.multiples.values(), default=1),
        "layers": layers,
        "environment": versions,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "latency.json", (json.dumps(result, indent=2) + "\n").encode())
    write_latency(result, out / "latency.html")
    return result


def machine_peaks(timing: Timing) -> dict[str, float]:
    """Multiply-adds a second of a large matrix product, and bytes a second of a large copy (read and written), in PyTorch."""
    threads, dtype = torch.get_num_threads(), getattr(torch, timing.dtype)
    try:
        torch.set_num_threads(timing.threads)
        with torch.inference_mode():
            size, numbers = 768, 8_000_000
            a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
            source, target = torch.zeros(numbers), torch.zeros(numbers)
            product, copy = _best(lambda: a @ b), _best(lambda: target.copy_(source))
    finally:
        torch.set_num_threads(threads)
    return {"macs_per_second": size**3 / product, "bytes_per_second": 2 * 4 * numbers / copy}


def _best(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of 12 calls: a peak is what the machine can do at its best."""
    seconds: list[float] = []
    for _ in range(12):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _layers(
    graph: ChannelGraph, latency: LatencyModel, inputs: ExampleInputs, timing: Timing, peaks: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A row for every layer, in the order of the network."""
    shapes = layer_shapes(graph, inputs, timing)
    alone = sum(float(layer.table.ms[-1, -1]) for layer in latency.layers)
    rows: list[dict[str, Any]] = []
    for layer, shape in zip(latency.layers, shapes, strict=True):
        ms = float(layer.table.ms[-1, -1])
        reads, writes = (np.maximum(1.0, np.array(SHARES) * width) for width in (shape.reads, shape.writes))
        rows.append(
            {
                "name": layer.name,
                "kind": "depthwise convolution" if shape.depthwise else shape.kind,
                "reads": shape.reads,
                "writes": shape.writes,
                "ms": ms,
                "share": ms / alone,
                **against_peaks(shape, ms, timing, peaks),
                "curve": [[share, float(t)] for share, t in zip(SHARES, layer.table.at(reads, writes), strict=True)],
            }
        )
    return rows


def against_peaks(shape: LayerShape, ms: float, timing: Timing, peaks: Mapping[str, float]) -> dict[str, Any]:
    """A layer's work at its own widths, how fast it is done in ``ms``, also as shares of the peaks, and what it waits for."""
    macs, numbers = shape.work(shape.reads, shape.writes)
    moved = numbers * (2 if timing.dtype == "bfloat16" else 4)
    rates = {"macs_per_second": 1e3 * macs / ms, "bytes_per_second": 1e3 * moved / ms}
    of_peak = {name: rate / peaks[name] for name, rate in rates.items()}
    return {"macs": macs, "bytes": moved, **rates, "of_peak": of_peak, "bound": bound(*of_peak.values())}


def bound(arithmetic: float, memory: float) -> str:
    """What a layer waits for, by the shares of the machine's peaks that it reaches (the roofline of Williams et al. 2009)."""
    if max(arithmetic, memory) < _SLOW:
        return "neither"
    return "arithmetic" if arithmetic >= memory else "memory"
