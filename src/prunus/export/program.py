"""``torch.export`` programs: one file with graph and weights that PyTorch runs without the source of the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.export.drafts import quiet
from prunus.export.folding import folded
from prunus.export.sessions import Session
from prunus.export.signature import FlatInputs, FlatNetwork
from prunus.export.write import Route


def write_program(network: FlatNetwork, inputs: FlatInputs, draft: Path, *, dynamic: bool) -> None:
    """The network itself, with its own inputs and outputs, not their flat view: what is loaded is called as the network is.

    Batch norms are folded into the convolutions in front of them: PyTorch runs the graph as it is, a tenth slower with them.
    """
    with quiet():
        program = _program(network.network, inputs, dynamic)
        lighter = folded(network.network, program)
        if lighter is not None:
            program = _program(lighter, inputs, dynamic)
        _clean(program)
        torch.export.save(program, draft)


def _program(network: nn.Module, inputs: FlatInputs, dynamic: bool) -> Any:
    args, kwargs = inputs.call()
    shapes = torch.export.ShapesCollection()
    batch = torch.export.Dim("batch")
    for tensor, batched in zip(inputs.tensors, inputs.batched, strict=True):
        if batched:
            shapes[tensor] = {0: batch}
    return torch.export.export(network, args, kwargs, dynamic_shapes=shapes if dynamic else None)


def _clean(program: Any) -> None:
    """Drop stack traces, which tell paths of this machine, and the example inputs, which are the user's images."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    program.example_inputs = None


def open_program(path: Path, threads: int, like: FlatInputs) -> Session:
    """The program as a session; the constants among its inputs are those of ``like``. Threads are PyTorch's own."""
    with quiet():
        module: Any = torch.export.load(path).module()

    def run(arrays: list[Any]) -> list[Any]:
        args, kwargs = like.with_tensors([torch.from_numpy(array) for array in arrays]).call()
        with torch.no_grad():
            output = module(*args, **kwargs)
        return [leaf.numpy() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]

    with torch.no_grad():
        found = module(*like.call()[0], **like.call()[1])
    outputs = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    return Session("torch.export", like.names, tuple(f"output_{i}" for i in range(len(outputs))), run)


PROGRAM = Route(
    "pt2",
    ".pt2",
    "torch.export's program: PyTorch loads it without the network's source, torch.compile and AOTInductor take it",
    write_program,
    open_program,
)
