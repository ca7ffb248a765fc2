"""ONNX: written by torch's exporter, reloaded in onnxruntime, compared with the PyTorch network, and only then named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.export.compare import ExportCheck
from prunus.export.drafts import quiet
from prunus.export.sessions import open_session
from prunus.export.signature import FlatInputs, FlatNetwork
from prunus.export.write import Route, write_checked

# Protobuf refuses messages of 2 GiB; the margin is for the graph around the weights.
LARGEST_SINGLE_FILE = 2_000_000_000


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: Path | str,
    *,
    check_inputs: Iterable[Any] | None = None,
    opset: int | None = None,
) -> ExportCheck:
    """Write ``model`` in eval mode as one ONNX file with a dynamic batch axis, and check it in onnxruntime.

    The check runs the example inputs, the same at another batch size, and every item of ``check_inputs``. A network that fixes
    its batch is exported with the batch of ``example_inputs``, and ``notes`` say so. ``model`` is copied and never changed; an
    existing file survives any failure. Above 2 GB the weights go to a second file, ``path`` + ``.data``.

    Raises:
        ExportError: the export extra isn't installed, the network can't be exported or written, or the file's outputs differ
            from PyTorch's by more than 1e-4 of the largest output (the file then doesn't get its name).
    """
    return write_checked(replace(ONNX, write=partial(write_onnx, opset=opset)), model, example_inputs, path, check_inputs)


def write_onnx(network: FlatNetwork, inputs: FlatInputs, draft: Path, *, dynamic: bool, opset: int | None = None) -> None:
    """The file, unchecked; above 2 GB the weights lie beside it."""
    batch = torch.export.Dim("batch")
    axes = tuple({0: batch} if batched else {} for batched in inputs.batched)
    with quiet():
        program: Any = torch.onnx.export(
            network,
            inputs.tensors,
            input_names=list(inputs.names),
            output_names=network.output_names(),
            dynamic_shapes=(axes,) if dynamic else None,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        _clean(program)
        program.save(draft, external_data=_weight_bytes(network) > LARGEST_SINGLE_FILE)


def _clean(program: Any) -> None:
    """Give the weights the names they have in the user's network, and drop stack traces: they tell paths of this machine."""
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    for value in list(program.model.graph.initializers.values()):
        if value.name.startswith("network."):
            value.name = value.name.removeprefix("network.")


def _weight_bytes(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])


def require_onnx() -> None:
    """Raise `ExportError` where a package that ONNX files need is missing."""
    ONNX.require()


ONNX = Route(
    "onnx",
    ".onnx",
    "ONNX, for onnxruntime and most other runtimes; torch's exporter folds batch norms into convolutions",
    write_onnx,
    lambda path, threads, _: open_session(path, threads),
    ("onnx", "onnxscript", "onnxruntime"),
    "export",
)
