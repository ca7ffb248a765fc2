"""Files in the runtimes that run them: one way to open a file, to call it and to time it, whatever runs it."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.errors import ExportError, UnknownName
from prunus.export.signature import FlatInputs


@dataclass(frozen=True, eq=False)
class Session:
    """A file, open in a runtime: the names of its inputs and outputs, and a call of it on arrays in the order of the inputs."""

    runtime: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[list[Any]], Sequence[Any]]

    def bind(self, inputs: FlatInputs) -> Callable[[], Sequence[Any]]:
        """A call on these inputs, for timing. `ExportError` if the file takes others, or can't be run on them."""
        if len(self.inputs) != len(inputs.tensors):
            given = f"{len(inputs.tensors)} tensors {list(inputs.names)}"
            raise ExportError(f"the graph takes {len(self.inputs)} inputs {list(self.inputs)}, but {given} were given")
        arrays = [tensor.numpy() for tensor in inputs.tensors]

        def call() -> Sequence[Any]:
            try:
                return self.run(arrays)
            except Exception as error:  # the runtimes' exceptions share no base class
                raise ExportError(f"{self.runtime} can't run the graph on these inputs: {error}") from error

        return call

    def __call__(self, inputs: FlatInputs) -> list[Tensor]:
        """Outputs in the order of the graph."""
        return [torch.from_numpy(np.array(array)) for array in self.bind(inputs)()]


def open_session(path: Path | str, threads: int = 1, runtime: str = "onnxruntime") -> Session:
    """A file in one of `FILE_RUNTIMES`, on the CPU. `ExportError` if the runtime is missing or can't load the file."""
    return session_of(str(path), threads, runtime)


def session_of(model: str | bytes, threads: int = 1, runtime: str = "onnxruntime") -> Session:
    """The same from a path or a serialised ONNX model."""
    if runtime not in FILE_RUNTIMES:
        raise UnknownName.among("runtime of files", runtime, FILE_RUNTIMES)
    package = imported(runtime, runtime if runtime != "onnxruntime" else "export")
    try:
        return FILE_RUNTIMES[runtime](package, model, threads)
    except Exception as error:  # the runtimes' exceptions share no base class
        raise ExportError(f"{runtime} can't load {model if isinstance(model, str) else 'a layer'}: {error}") from error


def imported(module: str, extra: str) -> Any:
    """A package of an extra, imported without its warnings. `ExportError` names the extra where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(f"{module} can't be imported ({error}): install it with `pip install 'prunus[{extra}]'`") from error


def _onnxruntime(onnxruntime: Any, model: str | bytes, threads: int) -> Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they are raised as well
    # Idle threads that spin would take the cores from the session whose turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
    inputs, outputs = (tuple(e.name for e in entries) for entries in (session.get_inputs(), session.get_outputs()))
    return Session("onnxruntime", inputs, outputs, lambda arrays: session.run(None, dict(zip(inputs, arrays, strict=True))))


def _openvino(openvino: Any, model: str | bytes, threads: int) -> Session:
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # On machines with bfloat16 instructions the default would use them.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    request = compiled.create_infer_request()

    def run(arrays: list[Any]) -> list[Any]:
        found = request.infer(arrays, share_inputs=True)
        return [found[output] for output in compiled.outputs]

    inputs, outputs = (tuple(e.get_any_name() for e in entries) for entries in (compiled.inputs, compiled.outputs))
    return Session("openvino", inputs, outputs, run)


FILE_RUNTIMES: dict[str, Callable[[Any, str | bytes, int], Session]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
"""What opens a file, by the name of the runtime, which is that of its package, too. All read ONNX files."""
