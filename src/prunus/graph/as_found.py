"""A trace leaves the model, its statistics, its modes and the random state as it found them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from prunus.graph.tracer import unlabel


@contextmanager
def as_found(model: nn.Module) -> Generator[None]:
    """Put back modes, buffers, tensors that modules keep, the random state and the attention fast path, whatever happens.

    Parameters that an operation writes to are put back by the tracer, which sees the write.
    """
    modes = [(module, module.training) for module in model.modules()]
    kept = [(holder, name, tensor, tensor.detach().clone()) for holder, name, tensor in _kept_tensors(model)]
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]  # pyright: ignore[reportPrivateUsage]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for dropout, _ in dropouts:
            dropout.p = 0.0  # dropping whole channels makes a mask of their number, which would look like a fixed width
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes:
            module.training = mode
        for dropout, p in dropouts:
            dropout.p = p
        for _, _, tensor in _kept_tensors(model):
            unlabel(tensor)
        with torch.no_grad():
            for holder, name, tensor, value in kept:
                holder[name] = tensor
                unlabel(tensor)
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def _kept_tensors(model: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Buffers and plain tensor attributes of all modules: (the dict that holds it, name, tensor)."""
    holders = [
        holder for module in model.modules() for holder in (cast("dict[str, Any]", vars(module)["_buffers"]), vars(module))
    ]
    return [(holder, name, value) for holder in holders for name, value in holder.items() if isinstance(value, Tensor)]
