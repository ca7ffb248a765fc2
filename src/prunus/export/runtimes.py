"""The runtimes that networks are timed in, PyTorch's and those of exported files, and latency of several side by side."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from prunus.errors import ExportError, UnknownName
from prunus.export.sessions import FILE_RUNTIMES, Session, open_session
from prunus.export.signature import FlatInputs
from prunus.types import call_model

LEAST, MOST = 15, 400
"""Timed passes of each network, where they are to take about so many seconds."""
ENOUGH_FOR_P99 = 100
WARMUP = 3
"""Passes of each network before they are timed, in a process of its own."""
_SAMPLE = 3
Pass = Callable[[], Any]


@dataclass(frozen=True)
class Latency:
    """Wall time of one forward pass in ms: median, 10th, 90th and 99th percentile over ``runs``, at ``batch`` images.

    The 99th is None below 100 runs, where it would be the slowest pass and no more.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int
    batch: int
    runtime: str
    p99_ms: float | None = None


@dataclass(frozen=True)
class Runtime:
    """What runs a network on the CPU.

    ``open(network, inputs, threads)`` gives the pass that is timed. With ``write`` it opens a file that ``write(network, inputs,
    path)`` has left, checked, and chooses precision and memory format itself; without, the network as it is. ``layers``: the
    runtime that single layers are timed in (see `time_layer`), None where they can't be.
    """

    name: str
    open: Callable[[Any, Any, int], Pass]
    write: Callable[[nn.Module, Any, Path], Any] | None = None
    layers: str | None = None


def measure_latency(
    networks: Mapping[str, nn.Module], inputs: Any, *, runs: int = 30, warmup: int = 5, threads: int = 1
) -> dict[str, Latency]:
    """Time one forward pass of every network in eager PyTorch, in turns (A, B, A, B, ...), so that a slow spell hits all alike.

    The networks run in eval mode under ``inference_mode`` on ``inputs`` as they are (tensor, tuple or dict), with ``threads`` CPU
    threads and the garbage collector off; modes, thread count and collector are put back. On a GPU every pass is synchronised.

    Raises:
        ExportError: nothing to time, or ``runs``, ``warmup`` or ``threads`` out of range.
    """
    times = time_in_turns(networks, inputs, "eager", runs=runs, warmup=warmup, threads=threads)
    return {name: summary(ms, threads, FlatInputs.of(inputs).batch, "eager") for name, ms in times.items()}


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
    times = time_in_turns(files, inputs, runtime, runs=runs, warmup=warmup, threads=threads)
    return {name: summary(ms, threads, FlatInputs.of(inputs).batch, runtime) for name, ms in times.items()}


def measure_sessions(
    sessions: Mapping[str, Session], inputs: Any, *, runs: int = 30, warmup: int = 5, threads: int = 1
) -> dict[str, Latency]:
    """The same for files of any format that are open already, with so many ``threads``; PyTorch's own are set for the while."""
    _check(sessions, runs, warmup, threads)
    flat, threads_before = FlatInputs.of(inputs), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        times = _alternate({name: session.bind(flat) for name, session in sessions.items()}, runs, warmup)
    finally:
        torch.set_num_threads(threads_before)
    return {name: summary(ms, threads, flat.batch, sessions[name].runtime) for name, ms in times.items()}


def time_in_turns(
    networks: Mapping[str, Any],
    inputs: Any,
    runtime: str,
    *,
    threads: int = 1,
    runs: int = 30,
    warmup: int = 5,
    seconds: float | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of every timed pass of every network (of every file, where the runtime runs files), in turns.

    With ``seconds`` there are as many passes as take about so long in all, from 15 to 400 of each network, in place of ``runs``.

    Raises:
        UnknownName: no such runtime.
        ExportError: like `measure_latency` and `measure_onnx_latency`.
    """
    _check(networks, runs, warmup, threads)
    if runtime not in RUNTIMES:
        raise UnknownName.among("runtime", runtime, RUNTIMES)
    modules = [module for network in networks.values() if isinstance(network, nn.Module) for module in network.modules()]
    modes = {module: module.training for module in modules}
    threads_before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for module in modules:
            module.training = False
        with torch.inference_mode():
            calls = {name: RUNTIMES[runtime].open(network, inputs, threads) for name, network in networks.items()}
            if seconds is not None:
                sample = _alternate(calls, _SAMPLE, warmup)
                turn = sum(sorted(times)[_SAMPLE // 2] for times in sample.values())
                runs = max(LEAST, min(MOST, int(1e3 * seconds / max(turn, 1e-6))))
            return _alternate(calls, runs, warmup)
    finally:
        torch.set_num_threads(threads_before)
        for module, mode in modes.items():
            module.training = mode


def _eager(network: nn.Module, inputs: Any, threads: int) -> Pass:
    on_gpu = any(p.is_cuda for p in network.parameters())

    def call() -> None:
        call_model(network, inputs)
        if on_gpu:
            torch.cuda.synchronize()

    return call


def _compiled(network: nn.Module, inputs: Any, threads: int) -> Pass:
    compiled = cast("nn.Module", torch.compile(network, dynamic=False))
    return lambda: call_model(compiled, inputs)


def _write_onnx(network: nn.Module, inputs: Any, path: Path) -> None:
    from prunus.export.onnx import export_onnx  # it checks what it writes in onnxruntime

    export_onnx(network, inputs, path)


def _of_files(name: str) -> Runtime:
    def opened(path: Path, inputs: Any, threads: int) -> Pass:
        return open_session(path, threads, name).bind(FlatInputs.of(inputs))

    return Runtime(name, opened, write=_write_onnx, layers=name)


RUNTIMES: dict[str, Runtime] = {
    row.name: row
    for row in (
        Runtime("eager", _eager, layers="eager"),
        # The compiler calls eager PyTorch's convolutions and matrix products, and fuses what is around them.
        Runtime("compile", _compiled, layers="eager"),
        *map(_of_files, FILE_RUNTIMES),
    )
}


def _alternate(calls: Mapping[str, Pass], runs: int, warmup: int) -> dict[str, list[float]]:
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
    """The collector is off inside, and afterwards as it was; inside of another such block nothing is collected, either."""
    was_on = gc.isenabled()
    if was_on:
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def summary(times: Sequence[float], threads: int, batch: int, runtime: str) -> Latency:
    """Percentiles of passes (ms)."""
    shares = torch.tensor([0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    p10, median, p90, p99 = torch.tensor(times, dtype=torch.float64).quantile(shares).tolist()
    return Latency(median, p10, p90, len(times), threads, batch, runtime, p99 if len(times) >= ENOUGH_FOR_P99 else None)


def _check(subjects: Mapping[str, Any], runs: int, warmup: int, threads: int) -> None:
    if not subjects:
        raise ExportError("there is nothing to time: give at least one network or file by name")
    if runs < 1 or threads < 1 or warmup < 0:
        given = f"runs={runs}, threads={threads}, warmup={warmup}"
        raise ExportError(f"timing needs runs >= 1, threads >= 1 and warmup >= 0, not {given}")
