"""One network of the coverage matrix, in its own process: prints facts as JSON lines, so that a stopped process isn't lost."""

from __future__ import annotations

import ctypes
import json
import resource
import statistics
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _coverage_networks import Network
from torch import nn

import prunus
from prunus.testing import check_network, random_plan
from prunus.types import ChannelGraph, call_model

Event = dict[str, Any]
FACTS = "facts: "
_MMAP_THRESHOLD = -3  # of malloc.h


def warm_up() -> None:
    """First calls are slower; nothing here starts a thread, so that processes can be forked afterwards."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    graph = prunus.trace(model, torch.randn(1, 3, 8, 8))
    prunus.remove(model, graph, random_plan(graph))


def survey(network: Network, cpu_seconds: int, memory_gb: float) -> None:
    """Build the network, prune and prove it under the limits, and print what was found as it is found."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory_gb * 2**30), resource.RLIM_INFINITY))
    try:
        case = network.build()
    except Exception as error:
        emit(verdict="error", where="build", error=_told(error))
        return
    model, inputs = case.model.eval(), case.inputs
    emit(input=case.shown, parameters=sum(p.numel() for p in model.parameters()), **_forward(case))
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + cpu_seconds, resource.RLIM_INFINITY))
    options = {"forward_fn": case.forward_fn, "train_inputs": case.train_inputs}
    try:
        emit(**_pruning(model, inputs, options))
    except prunus.PrunusError as error:
        emit(refused=_told(error))
    except MemoryError as error:
        emit(verdict="time-out", where="trace, plan or remove", error=_told(error))
        return
    except Exception as error:
        emit(verdict="error", where="trace, plan or remove", error=_told(error), traceback=traceback.format_exc()[-1500:])
        return
    try:
        report = check_network(model, inputs, **options)
    except MemoryError as error:
        emit(verdict="time-out", where="check", error=_told(error))
        return
    except Exception as error:
        emit(verdict="error", where="check", error=_told(error), traceback=traceback.format_exc()[-1500:])
        return
    emit(
        verdict=report.verdict,
        prunable_share=report.prunable_share,
        macs_left=report.macs_left,
        max_error=report.max_error,
        groups=report.num_groups,
        shortcomings=report.shortcomings,
        mixing=len(report.mixing),
        repaired=report.repaired,
        notes=report.notes,
        verify_seconds=report.seconds.get("verify"),
    )


def emit(**facts: Any) -> None:
    """One line of facts on standard output."""
    print(FACTS + json.dumps(facts), flush=True)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1500]


def _forward(case: Any) -> Event:
    """CPU seconds and peak MB of a forward pass on one thread."""
    times: list[float] = []

    def forward() -> None:
        call_model(case.model, case.inputs, case.forward_fn)

    with torch.no_grad():
        for _ in range(3):
            begin = time.process_time()
            forward()
            times.append(time.process_time() - begin)
        peak = _peak_mb(forward)
    model_mb = sum(t.numel() * t.element_size() for t in (*case.model.parameters(), *case.model.buffers())) / 2**20
    return {"forward_seconds": statistics.median(times), "forward_mb": peak, "model_mb": model_mb}


def _pruning(model: nn.Module, inputs: Any, options: dict[str, Any]) -> Event:
    """CPU seconds of tracing, planning and removal, their peak MB, and what the trace alone says.

    The peak is that of a second run: a first one also loads code, and measuring it would slow down what is timed.
    """
    seconds: dict[str, float] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = work()
        seconds[name] = time.process_time() - begin
        return result

    def prune() -> ChannelGraph:
        graph = step("trace", lambda: prunus.trace(model, inputs, **options))
        if graph.prunable:
            plan = step("plan", lambda: random_plan(graph))
            step("remove", lambda: prunus.remove(model, graph, plan))
        return graph

    graph = prune()
    timed = dict(seconds)
    peak = _peak_mb(prune)
    without = graph.cost_model.cost({g.name: 0 for g in graph.prunable}).macs
    return {
        "seconds": timed,
        "pruning_mb": peak,
        "macs": graph.cost().macs,
        "traced_share": 1 - without / max(graph.cost().macs, 1),
        "traced_frozen": {g.name: g.frozen_because for g in graph.frozen},
        "unsupported": dict(graph.unsupported_ops),
    }


def _peak_mb(work: Callable[[], Any]) -> float | None:
    """Peak resident memory during ``work`` above what was resident before, or None where the system doesn't tell.

    Blocks go back to the system as soon as they are freed, or freed ones would count; that is slow, so only in here.
    """
    status = Path("/proc/self/status")
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 2**12)
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    except (OSError, AttributeError):
        work()
        return None
    before = _kilobytes(status, "VmRSS")
    work()
    libc.mallopt(_MMAP_THRESHOLD, 2**25)
    return (_kilobytes(status, "VmHWM") - before) / 1024


def _kilobytes(status: Path, key: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])
