"""Which weights read a group, and which of them the network uses as they are: only those have a gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.graph.gates import READING_FUNCTIONS
from prunus.graph.labels import named_tensors
from prunus.types import ChannelGraph, GroupMember

Gradients: TypeAlias = "Sequence[Tensor | None]"


class DirectReaders(TorchFunctionMode):
    """While active, notes which parameters are the weight of a convolution or linear layer, and if any weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.direct: set[int] = set()
        self.computed = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in READING_FUNCTIONS:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            if isinstance(weight, nn.Parameter):
                self.direct.add(id(weight))
            elif isinstance(weight, Tensor) and weight.requires_grad:
                self.computed = True
        return func(*args, **kwargs)

    def indirect(self, loss: Tensor, weights: Iterable[Tensor]) -> set[int]:
        """Those of ``weights`` that the loss depends on in any other way (weight standardisation, plain matrix products)."""
        others = [w for w in weights if id(w) not in self.direct]
        if not others:
            return set()
        gradients = cast("Gradients", torch.autograd.grad(loss, others, allow_unused=True, retain_graph=True))
        return {id(w) for w, g in zip(others, gradients, strict=True) if g is not None}


def reading_members(model: nn.Module, graph: ChannelGraph) -> dict[str, list[GroupMember]]:
    """Group name -> its members that read through a parameter, for every prunable group that has any."""
    tensors = dict(named_tensors(model))
    parameters = {name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
    members = {g.name: [m for m in g.with_role("reads") if m.parameter_axis.parameter in parameters] for g in graph.prunable}
    return {name: found for name, found in members.items() if found}
