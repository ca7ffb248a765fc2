"""Latency of several networks side by side, in PyTorch and in onnxruntime."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ExportError
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
    """The same for ONNX files in onnxruntime on the CPU with ``threads`` intra-op threads, in turns like `measure_latency`.

    ``inputs`` are those of the PyTorch network that `export_onnx` wrote.

    Raises:
        ExportError: onnxruntime isn't installed, a file can't be loaded or takes other inputs, or a count is out of range.
    """
    _check(files, runs, warmup, threads)
    flat = FlatInputs.of(inputs)
    calls = {name: _session_call(open_session(path, threads), flat) for name, path in files.items()}
    times = _alternate(calls, runs, warmup)
    return {name: _summary(ms, threads, flat.batch, "onnxruntime") for name, ms in times.items()}


def open_session(path: Path, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU. `ExportError` if onnxruntime is missing or can't load the file."""
    return session_of(str(path), threads)


def session_of(model: str | bytes, threads: int = 1) -> Any:
    """The same from a path or a serialised model."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(f"onnxruntime can't be imported ({error}): install it with `pip install 'prunus[export]'`") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they are raised as well
    # Idle threads that spin would take the cores from the session whose turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ExportError(f"onnxruntime can't load {model if isinstance(model, str) else 'a layer'}: {error}") from error


def run_session(session: Any, inputs: FlatInputs) -> list[Tensor]:
    """Outputs of an onnxruntime session, in the order of the graph."""
    return [torch.from_numpy(array) for array in _session_call(session, inputs)()]


def _session_call(session: Any, inputs: FlatInputs) -> Callable[[], Any]:
    expected = [entry.name for entry in session.get_inputs()]
    if len(expected) != len(inputs.tensors):
        given = f"{len(inputs.tensors)} tensors {list(inputs.names)}"
        raise ExportError(f"the ONNX graph takes {len(expected)} inputs {expected}, but {given} were given")
    feed = {name: tensor.numpy() for name, tensor in zip(expected, inputs.tensors, strict=True)}

    def call() -> Any:
        try:
            return session.run(None, feed)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ExportError(f"onnxruntime can't run the graph on these inputs: {error}") from error

    return call


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
