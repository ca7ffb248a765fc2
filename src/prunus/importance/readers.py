"""Which weights read a group, which of them the network uses as they are (only those have a gate), and how a call reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.graph.gates import READING_FUNCTIONS
from prunus.graph.labels import named_tensors
from prunus.types import ChannelGraph, GroupMember

Gradients: TypeAlias = "Sequence[Tensor | None]"

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
TRANSPOSED = frozenset({F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d})
_PARAMETERS: dict[Any, tuple[str, ...]] = {
    func: _TRANSPOSED if func in TRANSPOSED else _CONVOLUTION if channels_first else _CONVOLUTION[:3]
    for func, channels_first in READING_FUNCTIONS.items()
}


@dataclass(frozen=True, eq=False)
class ReadingCall:
    """A call of a convolution or linear function: its input, weight, and the other arguments by name."""

    func: Callable[..., Any]
    x: Tensor
    weight: Tensor
    settings: Mapping[str, Any]

    @property
    def axis(self) -> int:
        """The input's axis on which the channels lie: the one before the kernel's axes; last for a linear layer."""
        return self.x.ndim - self.weight.ndim + 1

    @property
    def weight_axis(self) -> int:
        """The weight's axis that reads."""
        return 0 if self.func in TRANSPOSED else 1

    def run(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The same call with another input; with another weight, it is its product alone, without the bias."""
        if weight is None:
            return self.func(x, self.weight, **self.settings)
        return self.func(x, weight, **{**self.settings, "bias": None})


def reading_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ReadingCall | None:
    """The arguments of a convolution or linear function by name, or None where ``func`` is something else."""
    if func not in READING_FUNCTIONS:
        return None
    given = {**dict(zip(_PARAMETERS[func], args, strict=False)), **kwargs}
    return ReadingCall(func, given.pop("input"), given.pop("weight"), given)


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


class Reading(NamedTuple):
    """How a weight reads a group: the length of its reading axis, and each channel's indices on it: int64 (num_channels, k)."""

    length: int
    positions: Tensor


def readings(model: nn.Module, members: Iterable[GroupMember]) -> dict[int, Reading]:
    """Identity of a weight -> how it reads the group of these members."""
    tensors = dict(named_tensors(model))
    found: dict[int, Reading] = {}
    for member in members:
        weight, positions = tensors[member.parameter_axis.parameter], member.positions
        if id(weight) in found:
            positions = torch.cat([found[id(weight)].positions, positions], dim=1)
        found[id(weight)] = Reading(weight.shape[member.parameter_axis.axis], positions)
    return found
