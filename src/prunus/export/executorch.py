"""ExecuTorch: a program for phones and boards, its convolutions and matrix products given to XNNPACK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prunus.export.drafts import quiet
from prunus.export.sessions import Session, imported
from prunus.export.signature import FlatInputs, FlatNetwork
from prunus.export.write import Route


def write_edge(network: FlatNetwork, inputs: FlatInputs, draft: Path, *, dynamic: bool) -> None:
    """The flat network, lowered with XNNPACK's partitioner."""
    with quiet():
        exir = imported("executorch.exir", "executorch")
        xnnpack = imported("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
        program = torch.export.export(network, inputs.tensors)
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
        draft.write_bytes(lowered.to_executorch().buffer)


def open_edge(path: Path, threads: int, like: FlatInputs) -> Session:
    """The program in ExecuTorch's own runtime for Python."""
    with quiet():
        pool = imported("executorch.extension.pybindings.portable_lib", "executorch")
        if pool._threadpool_get_thread_count() != threads:  # one pool for the whole process
            pool._unsafe_reset_threadpool(threads)
        runtime = imported("executorch.runtime", "executorch").Runtime.get()
        method: Any = runtime.load_program(path).load_method("forward")

    def run(arrays: list[Any]) -> list[Any]:
        return [tensor.numpy() for tensor in method.execute([torch.from_numpy(array) for array in arrays])]

    outputs = tuple(f"output_{i}" for i in range(method.metadata.num_outputs()))
    return Session("executorch", like.names, outputs, run)


EXECUTORCH = Route(
    "executorch",
    ".pte",
    "ExecuTorch for phones and boards, with XNNPACK's kernels; the batch is that of the example inputs",
    write_edge,
    open_edge,
    ("executorch",),
    "executorch",
    fixed_because="ExecuTorch plans the memory of every tensor beforehand",
)
