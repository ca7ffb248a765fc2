"""One operation under the tracer on tensors whose labels the test sets, and everything that its rule said, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.graph.labels import LabelField, LabelSpace, resolve
from prunus.graph.trace import tensors_in
from prunus.graph.tracer import LayerCall, Tracer
from prunus.types import Units

SIZE = 1000  # labels are smaller


@dataclass
class Given:
    """A tensor and the first label of each labelled axis; ``weight``: it is computed from parameters only."""

    tensor: Tensor
    axes: dict[int, int]
    weight: bool = False


def x(*shape: int, dtype: torch.dtype = torch.float32, **axes: int) -> Given:
    """An activation; ``a1=0``: axis 1 holds the labels from 0."""
    return Given(_filled(shape, dtype), {int(name[1:]): base for name, base in axes.items()})


def w(*shape: int, **axes: int) -> Given:
    """A weight, like `x`."""
    return Given(_filled(shape, torch.float32), {int(name[1:]): base for name, base in axes.items()}, True)


def _filled(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    count = int(np.prod(shape))
    return (
        ((torch.arange(count) * 7 % 11 - 5) / 4).view(*shape).to(dtype)
        if dtype.is_floating_point
        else torch.zeros(*shape, dtype=dtype)
    )


def words(labels: Any) -> str:
    """Labels as text, runs of three and more shortened: ``"7 0-4"``."""
    numbers: list[int] = np.asarray(labels).tolist()
    parts: list[str] = []
    at = 0
    while at < len(numbers):
        end = at + 1
        while end < len(numbers) and numbers[end] == numbers[at] + end - at:
            end += 1
        if end - at < 3 or numbers[at] < 0:
            end = at + 1
        parts.append(f"{numbers[at]}-{numbers[end - 1]}" if end - at > 1 else str(numbers[at]))
        at = end
    return " ".join(parts)


@dataclass
class Seen:
    """What an operation left; see `Tracer` for the meaning."""

    out: list[dict[int, str]] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    frozen: dict[str, str] = field(default_factory=dict)
    fixed: dict[int, str] = field(default_factory=dict)
    splits: list[tuple[str, int]] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    reading: list[tuple[int, int]] = field(default_factory=list)
    mixed: list[tuple[Any, ...]] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    norms: list[tuple[str | None, ...]] = field(default_factory=list)
    indices: list[tuple[str, str]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    parametric: bool = False
    free: list[int] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """What isn't empty, by name."""
        return {name: value for name, value in vars(self).items() if value}


class _Listener(Tracer):
    def __init__(self, units: Units) -> None:
        super().__init__(nn.Module(), LabelSpace(nn.Module()), False, units)
        self.seen = Seen()

    def mixed(self, op: Any, slices: Any, labels: Any, out_axis: Any, replace: Any) -> None:
        self.seen.mixed.append((list(slices), words(labels), out_axis, None if replace is None else replace(len(labels) - 1)))

    def reading(self, op: Any, index: int, axis: int) -> None:
        self.seen.reading.append((index, axis))

    def freeze(self, labels: Any, reason: str) -> str:
        reason = reason.partition(" in `")[0].partition(" (in `")[0]
        self.frozen.append((labels, reason))
        return reason


def seen(program: Callable[..., Any], *given: Given, units: Units | None = None) -> dict[str, Any]:
    """Run ``program`` on the tensors and tell what was recorded; results are described by the last operation."""
    tracer = _Listener(units or Units())
    tensors = [one.tensor.clone() for one in given]  # some operations work in place
    for i, (one, tensor) in enumerate(zip(given, tensors, strict=True)):
        if one.weight:
            tracer.space.names[id(tensor)] = f"given {i}"
        axes = {axis: np.arange(base, base + one.tensor.shape[axis]) for axis, base in one.axes.items()}
        tracer.set_field(tensor, LabelField(axes, one.weight))
    with torch.no_grad(), tracer:
        results = program(*tensors)
    told, outs = tracer.seen, tensors_in(results)
    told.out = [{axis: words(labels) for axis, labels in sorted(tracer.field(out).axes.items())} for out in outs]
    told.fixed = {axis: why.partition(" in `")[0] for out in outs for axis, why in tracer.field(out).fixed.items()}
    told.free = sorted({axis for out in outs for axis in tracer.field(out).free})
    told.numbers = [words(labels) for out in outs for labels in tracer.field(out).numbers]
    told.parametric = all(tracer.field(out).parametric for out in outs)
    classes = resolve(SIZE, tracer.pairs)
    sets = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    told.tied = [words(labels) for labels in sets if len(labels) > 1]
    told.frozen = {words(labels): why.partition(" (in `")[0] for labels, why in tracer.frozen if len(labels)}
    told.splits = [(words(labels), parts) for labels, parts in tracer.splits]
    told.roles = [f"{role} {words(labels)}" for labels, role in tracer.roles]
    told.layers = [_layer(call) for call in tracer.layers]
    told.norms = list(tracer.norms)
    told.indices = [(name, words(labels)) for name, labels in tracer.indices]
    told.heads = sorted(tracer.heads)
    return told.told()


def _layer(call: LayerCall) -> str:
    """``convolution(3, 3): 162.0 x [0-2] x [100-103]``: the factor, and widths as numbers or as labels."""
    widths = [str(width) if isinstance(width, int) else f"[{words(width)}]" for width in (call.reads, call.writes, *call.others)]
    groups = f" in {call.groups} groups" if call.groups > 1 else ""
    operands = " of activations" if not call.weighted else ""
    return f"{call.kind}{call.kernel or ''}{groups}{operands}: {' x '.join([f'{call.factor:g}', *widths])}"
