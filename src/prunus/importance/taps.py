"""Taps: where a channel is read, its activation and the derivative of the loss by it are reduced on the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.errors import EvidenceError
from prunus.graph.gates import READING_FUNCTIONS
from prunus.graph.group_view import channel_sum
from prunus.graph.labels import named_tensors
from prunus.types import GroupMember

Reduction: TypeAlias = Literal["product", "absolute_product", "absolute_gradient"]


class _Tap(torch.autograd.Function):
    """The identity. What comes back as the derivative by ``gate`` (examples, width) is a sum over an input's other axes:
    a * g (this is the derivative by a gate of ones, without multiplying by it), abs(a * g) or abs(g)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, axis: int, reduction: Reduction) -> Tensor:
        ctx.axis, ctx.reduction = axis, reduction
        if reduction != "absolute_gradient":
            ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gradient = gradients[0]
        product = gradient if ctx.reduction == "absolute_gradient" else gradient * ctx.saved_tensors[0]
        product = product if ctx.reduction == "product" else product.abs()
        others = [axis for axis in range(1, gradient.ndim) if axis != ctx.axis]
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        return gradient, product.sum(others, dtype=dtype) if others else product.to(dtype), None, None


@dataclass(frozen=True)
class Read:
    """One call of a reading layer: its weight, the gate (examples, width) of its tap, and the positions an entry stands for."""

    weight: int
    gate: Tensor
    positions: int


class Taps(TorchFunctionMode):
    """While active, every convolution and linear layer that reads through one of ``weights`` has a tap in front of it."""

    def __init__(self, weights: Iterable[Tensor], reduction: Reduction, examples: int) -> None:
        super().__init__()
        self.reads: list[Read] = []
        self._wanted = {id(weight) for weight in weights}
        self._reduction: Reduction = reduction
        self._examples = examples

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in READING_FUNCTIONS or not args:
            return func(*args, **kwargs)
        x, *others = args
        weight = others[0] if others else kwargs.get("weight")
        if id(weight) in self._wanted:
            x = self._tapped(x, id(weight), READING_FUNCTIONS[func])
        return func(x, *others, **kwargs)

    def _tapped(self, x: Tensor, weight: int, channels_first: bool) -> Tensor:
        if x.ndim < 2 or len(x) != self._examples:
            raise EvidenceError(
                f"a layer reads an input of shape {tuple(x.shape)} in a batch of {self._examples} examples: this criterion needs "
                "the examples along the first axis of every layer's input; taylor doesn't"
            )
        axis = 1 if channels_first else x.ndim - 1
        dtype = torch.promote_types(x.dtype, torch.float32)
        gate = torch.ones(len(x), x.shape[axis], dtype=dtype, device=x.device, requires_grad=True)
        self.reads.append(Read(weight, gate, x.numel() // (len(x) * x.shape[axis])))
        return _Tap.apply(x, gate, axis, self._reduction)  # pyright: ignore[reportReturnType]


def by_channel(
    model: nn.Module, readers: Mapping[str, list[GroupMember]], reads: list[Read], found: Iterable[Tensor | None]
) -> Iterator[tuple[str, Tensor, list[int]]]:
    """For every group: its name, the sum over all reads (examples, num_channels), and how many positions each read sums over."""
    tensors = dict(named_tensors(model))
    by_weight: dict[int, list[tuple[Tensor, int]]] = {}
    for read, values in zip(reads, found, strict=True):
        if values is not None:
            by_weight.setdefault(read.weight, []).append((values, read.positions))
    for name, members in readers.items():
        parts: list[Tensor] = []
        positions: list[int] = []
        for member in members:
            weight = tensors[member.parameter_axis.parameter]
            size = weight.shape[member.parameter_axis.axis]
            for values, count in by_weight.get(id(weight), []):
                along_axis = values.T.reshape(-1, size, len(values)).sum(0)  # groups of a convolution share the weight's axis
                parts.append(channel_sum(member, along_axis).T)
                positions.append(count * (values.shape[1] // size) * member.positions.shape[1])
        if parts:
            yield name, torch.stack(parts).sum(0), positions
