"""Rules for operations that only move data: the operation itself is run on the label tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.graph.labels import LabelVector
from prunus.graph.op_call import OpCall


def replay(op: OpCall, without: Collection[int] = ()) -> None:
    """Run the operation on the labels of each axis (but those of ``without``): along which axes of the result do they vary?"""
    source = op.tensors[0] if op.tensors else None
    if source is None:
        return
    results: list[dict[int, LabelVector]] = [{} for _ in op.outs]
    for axis, labels in op.field(source).axes.items():
        if axis in without:
            continue
        for i, moved in enumerate(_run_on_labels(op, source, axis, labels)):
            if moved.ndim == 0 or moved.shape != op.outs[i].shape:
                op.freeze(labels, "moved in a way that labels can't follow")
                continue
            for out_axis, vector in _varying_axes(op, moved, labels).items():
                if out_axis in results[i]:
                    op.freeze(vector, "two channel axes merge into one")
                    op.freeze(results[i].pop(out_axis), "two channel axes merge into one")
                else:
                    results[i][out_axis] = vector
    for out, axes in zip(op.outs, results, strict=True):
        op.set(out, axes, fixed=_still_fixed(op, source, out))
        op.set_free(out, _free_axes(op, source, out) - axes.keys())
    if op.func._schema.name in _SIZED:
        _hold_sizes(op, source, results[0])


_REPEATING = {f"aten::{name}" for name in ("expand", "expand_copy", "repeat")}


def _free_axes(op: OpCall, source: Tensor, out: Tensor) -> frozenset[int]:
    """Axes of the result with fewer different values than entries: one value was repeated here, or earlier and moved here."""
    before = op.field(source).free
    if op.func._schema.name in _REPEATING:
        offset = out.ndim - source.ndim
        repeated = {a for a in range(1, out.ndim) if out.shape[a] > 1 and (a < offset or source.shape[a - offset] == 1)}
        return frozenset(repeated | {a + offset for a in before})
    if not before or out.numel() > _MOST_FOLLOWED:
        return frozenset()
    shape = [1 if axis in before else size for axis, size in enumerate(source.shape)]
    values = torch.arange(math.prod(shape)).view(shape).expand(source.shape)
    moved: Any = op.func(*(values.contiguous() if a is source else a for a in op.args), **op.kwargs)
    if not isinstance(moved, Tensor) or moved.shape != out.shape:
        return frozenset()
    columns = {axis: moved.movedim(axis, 0).reshape(size, -1) for axis, size in enumerate(moved.shape) if axis and size > 1}
    return frozenset(axis for axis, rows in columns.items() if len(torch.unique(rows, dim=0)) < len(rows))


_MOST_FOLLOWED = 2**22  # entries of a repeated tensor that is looked through


def _hold_sizes(op: OpCall, source: Tensor, axes: dict[int, LabelVector]) -> None:
    """The shape that a view was given may come from attributes: those of its channel axes, and of the axes they came from."""
    sizes: list[int] = list(op.outs[0].shape)
    given: list[int] = list(op.args[1])
    explicit = {axis: labels for axis, labels in axes.items() if axis >= len(given) or given[axis] != -1}
    if explicit:
        held = op.hold(*explicit.values(), sizes=sizes, at=list(explicit))
        for labels, several in zip(explicit.values(), held, strict=True):
            if not any(h.named for h in several):
                op.count_like_input(labels)
    if op.field(source).axes:
        op.hold(*op.field(source).axes.values())


_SIZED = {
    f"aten::{name}" for name in ("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "expand", "expand_copy")
}
"""Operations whose second argument is a shape, which a program may hold."""


def _still_fixed(op: OpCall, source: Tensor, out: Tensor) -> dict[int, str]:
    """Reasons for fixed axes that the operation leaves as they are."""
    fixed = op.field(source).fixed
    return {a: why for a, why in fixed.items() if out.ndim == source.ndim and out.shape[a] == source.shape[a]}


def _run_on_labels(op: OpCall, source: Tensor, axis: int, labels: LabelVector) -> list[Tensor]:
    shape = [1] * source.ndim
    shape[axis] = len(labels)
    field = torch.from_numpy(labels).view(shape).expand(source.shape)
    args = tuple(field if a is source else a for a in op.args)
    try:
        moved = op.func(*args, **op.kwargs)
    except RuntimeError:  # a view of the real strides that the expanded labels don't have
        moved = torch.ops.aten.reshape.default(field, op.outs[0].shape)
    return [moved] if isinstance(moved, Tensor) else list(moved)


def _varying_axes(op: OpCall, moved: Tensor, original: LabelVector) -> dict[int, LabelVector]:
    """The axis along which labels vary; where a channel axis was split in two, the parts must lose the same slots: tie them."""
    for axis in range(moved.ndim):
        if moved.stride(axis) == 0 and moved.shape[axis] > 1:
            moved = moved.narrow(axis, 0, 1)
    varying = [a for a in range(moved.ndim) if moved.shape[a] > 1 and bool((moved != moved.narrow(a, 0, 1)).any())]
    if not varying:
        if len(np.unique(original)) > 1:
            op.freeze(original, "a single channel is selected")
        return {}
    kept = _channel_axis(op, varying, moved.shape)
    for axis in range(moved.ndim):
        if axis not in varying:
            moved = moved.narrow(axis, 0, 1)
    table = moved.movedim(kept, -1).reshape(-1, moved.shape[kept]).numpy()
    if len(varying) == 1:
        return {kept: table[0].copy()}  # a view would keep labels of the whole tensor
    return {kept: op.tie(table.flatten(), len(table))}


def _channel_axis(op: OpCall, varying: list[int], shape: Sequence[int]) -> int:
    """Of the axes that a channel axis was split into, the one that can get shorter.

    In attention that loses whole heads it is that of the heads, in front of a head's width. Else it is the one whose size the
    program left open (-1); the first where features become an image, as in (n, c * h * w) -> (n, c, h, w); else the last, as in
    (n, groups, c // groups, h, w).
    """
    heads = [axis for axis in varying[:-1] if (op.tracer.module_path, shape[axis]) in op.tracer.units.heads]
    if heads:
        return heads[-1]
    sizes = op.args[1] if len(op.args) > 1 and isinstance(op.args[1], (list, tuple)) else ()
    left_open = [axis for axis in varying if axis < len(sizes) and isinstance(sizes[axis], int) and sizes[axis] == -1]
    if left_open:
        return left_open[0]
    return varying[0] if len(varying) > 2 and op.tensors[0].ndim == 2 else varying[-1]


def gated_half(op: OpCall) -> None:
    """GLU: the first half is multiplied by the second, slot by slot."""
    source: Tensor = op.args[0]
    axis = int(op.argument("dim")) % source.ndim
    axes = dict(op.field(source).axes)
    if axis in axes:
        axes[axis] = op.tie(axes[axis], 2)
    op.set(op.outs[0], axes)


def concatenate(op: OpCall) -> None:
    """Labels are concatenated along the axis and unified along the others; a part without labels is a fixed width."""
    tensors = [t for t in op.args[0] if t.numel() > 0 or t.ndim > 1]
    out = op.outs[0]
    if not tensors:
        op.set(out, {})
        return
    axis = int(op.argument("dim")) % out.ndim
    parts = [op.labels(t, axis) for t in tensors]
    axes: dict[int, LabelVector] = {}
    if any(p is not None for p in parts):
        fixed = [p if p is not None else np.full(t.shape[axis], -1) for p, t in zip(parts, tensors, strict=True)]
        axes[axis] = np.concatenate(fixed)
    _unify_others(op, tensors, axes, axis)
    op.set(out, axes)


def stack(op: OpCall) -> None:
    """A new axis in front of which the operands' labels are unified."""
    tensors: list[Tensor] = list(op.args[0])
    new = int(op.argument("dim")) % op.outs[0].ndim
    axes: dict[int, LabelVector] = {}
    _unify_others(op, tensors, axes, None)
    op.set(op.outs[0], {a + (a >= new): v for a, v in axes.items()})


def _unify_others(op: OpCall, tensors: list[Tensor], axes: dict[int, LabelVector], skip: int | None) -> None:
    for axis in range(tensors[0].ndim):
        if axis == skip or not any(op.labels(t, axis) is not None for t in tensors):
            continue
        found = op.labels(tensors[0], axis)
        for tensor in tensors[1:]:
            found = op.unify(found, op.labels(tensor, axis), "joined with a tensor whose width is fixed")
        if found is not None:
            axes[axis] = found


def pad(op: OpCall) -> None:
    """Padding pixels is free; padding the channel axis holds its width in Python."""
    source: Tensor = op.args[0]
    amounts: list[int] = op.args[1]
    axes = dict(op.field(source).axes)
    fixed = dict(op.field(source).fixed)
    for axis, labels in op.field(source).axes.items():
        i = 2 * (source.ndim - 1 - axis)
        if any(amounts[i : i + 2]):
            fixed[axis] = op.freeze(labels, "padded with constant channels (a width held in Python)")
            del axes[axis]
    op.set(op.outs[0], axes, fixed=fixed)


def spatial(pixels: int) -> Callable[[OpCall], None]:
    """A rule for pooling, interpolation and padding: the last ``pixels`` axes are mixed, the others pass."""

    def rule(op: OpCall) -> None:
        source = op.tensors[0]
        axes = dict(op.field(source).axes)
        for axis, labels in op.field(source).axes.items():
            if axis >= source.ndim - pixels:
                op.freeze(labels, "channels lie on a pixel axis")
                del axes[axis]
        for other in op.tensors[1:]:  # the indices of unpooling
            if other.shape == source.shape:
                for axis in axes.keys() | {a for a in op.field(other).axes if a < source.ndim - pixels}:
                    op.unify(axes.get(axis), op.labels(other, axis))
        for out in op.outs:
            op.set(out, axes, fixed=_still_fixed(op, source, out))

    return rule


def pixel_shuffle(op: OpCall) -> None:
    """r * r neighbouring channels become one: they live and die together."""
    source: Tensor = op.args[0]
    axis = source.ndim - 3
    axes = {a: v for a, v in op.field(source).axes.items() if a < axis}
    labels = op.labels(source, axis)
    if labels is not None:
        axes[axis] = op.tie(labels, len(labels) // op.args[1] ** 2, across=1)
    op.set(op.outs[0], axes)


def pixel_unshuffle(op: OpCall) -> None:
    """One channel becomes r * r neighbouring ones."""
    source: Tensor = op.args[0]
    axis = source.ndim - 3
    axes = {a: v for a, v in op.field(source).axes.items() if a < axis}
    labels = op.labels(source, axis)
    if labels is not None:
        axes[axis] = np.repeat(labels, op.args[1] ** 2)
    op.set(op.outs[0], axes)


def channel_shuffle(op: OpCall) -> None:
    """Groups must lose the same slots; then the shuffle of the survivors is the survivors of the shuffle."""
    source: Tensor = op.args[0]
    axes = dict(op.field(source).axes)
    labels = op.labels(source, 1)
    if labels is not None:
        axes[1] = np.repeat(op.tie(labels, op.args[1]), op.args[1])
    op.set(op.outs[0], axes)
