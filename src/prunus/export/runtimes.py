"""Latency of several networks side by side, in PyTorch and in the runtimes of exported files."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import ExportError
from prunus.export.sessions import Session, open_session
from prunus.export.signature import FlatInputs
from prunus.types import call_model


@dataclass(frozen=True)
class Latency:
    """Wall time of one forward pass in ms: median, 10th and 90th percentile over ``runs``, at ``batch`` images."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int
    batch: int
    runtime: str


def measure_latency(
    networks: Mapping[str, nn.Module], inputs: Any, *, runs: int = 30, warmup: int = 5, threads: int = 1
) -> dict[str, Latency]:
    """Time one forward pass of every network in eager PyTorch, in turns (A, B, A, B, ...), so that a slow spell hits all alike.

    The networks run in eval mode under ``inference_mode`` on ``inputs`` as they are (tensor, tuple or dict), with ``threads`` CPU
    threads and the garbage collector off; modes, thread count and collector are put back. On a GPU every pass is synchronised.

    Raises:
        ExportError: nothing to time, or ``runs``, ``warmup`` or ``threads`` out of range.
    """
    _check(networks, runs, warmup, threads)
    modes = {module: module.training for network in networks.values() for module in network.modules()}
    threads_before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for network in networks.values():
            network.eval()
        with torch.inference_mode():
            times = _alternate({name: _eager_call(network, inputs) for name, network in networks.items()}, runs, warmup)
    finally:
        torch.set_num_threads(threads_before)
        for module, mode in modes.items():
            module.training = mode
    return {name: _summary(ms, threads, FlatInputs.of(inputs).batch, "eager") for name, ms in times.items()}


def measure_onnx_latency(
    files: Mapping[str, Path], inputs: Any, *, runs: int = 30, warmup: int = 5, threads: int = 1
) -> dict[str, Latency]:
    """`measure_file_latency` of ONNX files in onnxruntime."""
    return measure_file_latency(files, inputs, "onnxruntime", runs=runs, warmup=warmup, threads=threads)


def measure_file_latency(
    files: Mapping[str, Path], inputs: Any, runtime: str, *, runs: int = 30, warmup: int = 5, threads: int = 1
) -> dict[str, Latency]:
    """The same for files in one of `FILE_RUNTIMES` on the CPU with ``threads`` threads, in turns like `measure_latency`.

    ``inputs`` are those of the PyTorch network that the files were written from. All the runtimes read ONNX files.

    Raises:
        ExportError: the runtime isn't installed, a file can't be loaded or takes other inputs, or a count is out of range.
    """
    _check(files, runs, warmup, threads)
    return measure_sessions({n: open_session(f, threads, runtime) for n, f in files.items()}, inputs, runs, warmup, threads)


def measure_sessions(
    sessions: Mapping[str, Session], inputs: Any, runs: int = 30, warmup: int = 5, threads: int = 1
) -> dict[str, Latency]:
    """The same for files that are open already, with so many ``threads``."""
    _check(sessions, runs, warmup, threads)
    flat = FlatInputs.of(inputs)
    times = _alternate({name: session.bind(flat) for name, session in sessions.items()}, runs, warmup)
    return {name: _summary(ms, threads, flat.batch, sessions[name].runtime) for name, ms in times.items()}


def _eager_call(network: nn.Module, inputs: Any) -> Callable[[], Any]:
    on_gpu = any(p.is_cuda for p in network.parameters())

    def call() -> None:
        call_model(network, inputs)
        if on_gpu:
            torch.cuda.synchronize()

    return call


def _alternate(calls: Mapping[str, Callable[[], Any]], runs: int, warmup: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    with no_garbage_collection():
        for turn in range(warmup + runs):
            for name, call in calls.items():
                start = time.perf_counter_ns()
                call()
                elapsed = time.perf_counter_ns() - start
                if turn >= warmup:
                    times[name].append(elapsed / 1e6)
    return times


@contextmanager
def no_garbage_collection() -> Generator[None, None, None]:
    """The collector is off inside, and afterwards as it was."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _summary(times: list[float], threads: int, batch: int, runtime: str) -> Latency:
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    p10, median, p90 = torch.tensor(times, dtype=torch.float64).quantile(shares).tolist()
    return Latency(median, p10, p90, len(times), threads, batch, runtime)


def _check(subjects: Mapping[str, Any], runs: int, warmup: int, threads: int) -> None:
    if not subjects:
        raise ExportError("there is nothing to time: give at least one network or file by name")
    if runs < 1 or threads < 1 or warmup < 0:
        given = f"runs={runs}, threads={threads}, warmup={warmup}"
        raise ExportError(f"timing needs runs >= 1, threads >= 1 and warmup >= 0, not {given}")
