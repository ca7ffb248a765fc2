"""Rules for parts of the channel axis: splits and slices, and channels that are picked by number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.graph.labels import LabelVector
from prunus.graph.op_call import OpCall
from prunus.graph.rules_movement import replay


def part(op: OpCall) -> None:
    """Slices and splits. Parts whose widths a module holds are cut where their labels are; equal parts that the program
    divides at run time must keep equal counts; other unequal parts are widths that nothing can change."""
    source: Tensor = op.args[0]
    axis = int(op.argument("dim")) % source.ndim
    labels = op.labels(source, axis)
    if labels is None:
        replay(op)
        return
    widths = [out.shape[axis] for out in op.outs]
    start, step = (op.argument("start") or 0, op.argument("step")) if op.func._schema.name == "aten::slice" else (0, 1)
    if op.func._schema.name == "aten::narrow":
        start = int(op.argument("start"))
    size = len(labels)
    start = min(start + size if start < 0 else start, size)
    if widths == [size]:
        op.follow(source)
        return
    axes = _without(op, source, axis)
    fixed: dict[int, str] = {}
    if max(widths) == 1:
        op.freeze(labels, "a single channel is selected")
    elif step > 1:
        if size % step == 0 and widths[0] * step == size:
            axes[axis] = op.tie(labels, widths[0], across=1)
        else:
            fixed[axis] = op.freeze(labels, "picked with a step that doesn't divide the channels")
    elif 0 in widths:
        fixed[axis] = op.freeze(labels, "split into parts of which one is empty")
    else:
        ends = start + np.cumsum(widths)
        parts = [labels[end - width : end] for width, end in zip(widths, ends.tolist(), strict=True)]
        if (why := _divide(op, labels, parts, start)) is None:
            for out, own in zip(op.outs, parts, strict=True):
                op.set(out, {**axes, axis: own})
            return
        fixed[axis] = why
    for out in op.outs:
        op.set(out, axes, fixed=fixed)


def _divide(op: OpCall, labels: LabelVector, parts: list[LabelVector], start: int) -> str | None:
    """Say what ties the parts of an axis together; a reason if the division can't follow a removal."""
    size, width = len(labels), len(parts[0])
    equal = len({len(p) for p in parts}) == 1 and size % width == 0 and start % width == 0
    if len(parts) > 1:
        held = op.hold(*parts, sizes=[len(p) for p in parts], at=range(len(parts)))
        own = [{h.key for h in several} for several in held]
        shared = sum(map(len, own)) > len(set[object]().union(*own))
        # all but one suffice: the last of several is often what the others leave (c - self.width)
        independent = sum(map(bool, own)) >= len(parts) - 1 and not (equal and (shared or not all(own)))
        if not equal and op.func._schema.name == "aten::split" and all(own[:-1]):
            return None  # one width for all parts, and the last one takes what is left
    else:
        bounds = [b for b in (labels[:start], labels[: start + width]) if 0 < len(b) < size]
        held = op.hold(parts[0], *bounds)
        ways = [held[:1], held[1:]]  # x[:, -k:] names the part, x[:, k:] where it starts
        independent = any(all(way) and (not equal or all(h.named for several in way for h in several)) for way in ways)
    op.hold(labels)
    if independent:
        return None
    if equal:
        op.balance(labels, size // width)
        return None
    return op.freeze(labels, "split into unequal parts, and no attribute of a module holds their widths")


def absolute_index(op: OpCall) -> None:
    """Indices into the channel axis are absolute: after a removal they would name other channels."""
    source: Tensor = op.args[0]
    touched = _indexed_axes(op, source)
    if _by_buffer(op, source, touched):
        return
    for axis, labels in op.field(source).axes.items():
        if axis in touched:
            op.freeze(labels, "channels are picked by absolute index")
    if op.func._schema.name == "aten::index_put":
        for out in op.outs:
            op.set(out, {})
    else:
        replay(op, without=touched)


def _by_buffer(op: OpCall, source: Tensor, touched: set[int]) -> bool:
    """Channels picked by a buffer of the network, which surgery can rewrite: the picked labels go on. Those that a norm selects
    (`SelectingNorm`) are channels of the selection, which can lose some while the stream keeps them."""
    indices = [a for a in op.tensors if a is not source]
    if op.func._schema.name not in ("aten::index", "aten::index_select") or len(indices) != 1 or len(touched) != 1:
        return False
    index, axis = indices[0], next(iter(touched))
    name, labels = op.tracer.space.names.get(id(index)), op.labels(source, axis)
    if (own := op.labels(index, 0)) is not None:
        if labels is not None:
            op.freeze(labels, "its channels are numbered by a norm that selects some of them")
        op.mark(own, "writes")
        op.set(op.outs[0], {**_without(op, source, axis), axis: own})
        return True
    if name is None or labels is None or index.ndim != 1 or index.dtype not in (torch.int32, torch.int64):
        return False
    picked = np.ascontiguousarray(labels[index.cpu().numpy()])
    op.tracer.indices.append((name, labels))
    op.set(op.outs[0], {**_without(op, source, axis), axis: picked})
    return True


def _indexed_axes(op: OpCall, source: Tensor) -> set[int]:
    names = [a.name for a in op.func._schema.arguments]
    if "indices" in names:
        indices: list[Any] = op.argument("indices")
        return {i for i, index in enumerate(indices) if index is not None}
    for name in ("dim", "dimension", "dims"):
        if name in names:
            value = op.argument(name)
            values: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
            return {v % source.ndim for v in values if v is not None} or set(range(source.ndim))
    return set(range(source.ndim))


def _without(op: OpCall, source: Tensor, axis: int) -> dict[int, LabelVector]:
    return {a: v for a, v in op.field(source).axes.items() if a != axis % source.ndim}
