"""Rules for normalisation and reductions: per channel they are exact, over channels they mix."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from prunus.graph.labels import LabelVector
from prunus.graph.op_call import OpCall
from prunus.graph.rules_elementwise import pointwise


def batch_norm(op: OpCall) -> None:
    """Statistics per channel (axis 1): scale, shift and running statistics belong to the channels."""
    x: Tensor = op.args[0]
    labels = op.labels(x, 1)
    affine_and_running = [(i, a) for i, a in enumerate(op.args[1:5]) if isinstance(a, Tensor)]
    for i, tensor in affine_and_running:
        own = op.labels(tensor, 0)
        if labels is not None or own is not None:
            op.unify(labels, own, "normalised with a fixed width")
        op.mark(own, "scales" if i < 2 else "statistics")
    if len(op.args) > 2 and (op.args[1] is not None or op.args[2] is not None):
        op.tracer.norms.append(("batch_norm", _name(op, op.args[1]), _name(op, op.args[2])))
    if _uses_own_statistics(op):
        for axis, others in op.field(x).axes.items():
            if axis != 1:
                op.mix([(0, axis)], others, axis)
    for i, out in enumerate(op.outs):
        if i == 0:
            op.follow(x, out)
        else:
            op.set(out, {0: labels} if labels is not None and out.shape == (len(labels),) else {})


def _uses_own_statistics(op: OpCall) -> bool:
    """Whether mean and variance are those of the input: channels that lie on its other axes (weights that are standardised
    through a batch norm) are mixed then."""
    names = {argument.name for argument in op.func._schema.arguments}
    if "training" in names:
        return bool(op.argument("training"))
    return "no_training" not in op.name and "no_update" not in op.name


def _name(op: OpCall, tensor: Any) -> str | None:
    return op.tracer.space.names.get(id(tensor)) if isinstance(tensor, Tensor) else None


def weight_norm(op: OpCall) -> None:
    """Direction and length of every filter: the length runs over all other axes, so that channels there are mixed."""
    direction, length = op.args[:2]
    axis = int(op.argument("dim")) % direction.ndim
    op.follow(direction, op.outs[0])
    op.set(op.outs[1], {})
    if (own := op.labels(length, axis)) is not None:
        op.unify(op.labels(direction, axis), own)
    for other, labels in op.field(direction).axes.items():
        if other != axis:
            op.mix([(0, other)], labels, other)


def layer_norm(op: OpCall) -> None:
    """Statistics over the trailing axes: channels there are mixed."""
    x: Tensor = op.args[0]
    extent = len(op.args[1])
    affine = [(i, a) for i, a in enumerate(op.args) if i >= 2 and isinstance(a, Tensor)]
    left = list(op.args[1])
    for axis, labels in op.field(x).axes.items():
        own_axis = axis - (x.ndim - extent)
        if own_axis < 0:
            continue
        for _, tensor in affine:
            op.unify(labels, op.labels(tensor, own_axis), "normalised with a fixed width")
            op.mark(op.labels(tensor, own_axis), "scales")
        shape = list(op.args[1])
        op.hold(labels, sizes=shape, at=[own_axis])
        slices = [(0, axis), *((i, own_axis) for i, _ in affine)]
        op.mix(slices, labels, axis, partial(_with_size, left, own_axis))
    op.follow(x, op.outs[0])
    for out in op.outs[1:]:
        op.set(out, {})


def _with_size(shape: list[int], axis: int, size: int) -> dict[int, Any]:
    """The normalised shape as an argument; the list remembers, because more than one axis may lose channels."""
    shape[axis] = size
    return {1: list(shape)}


def group_norm(op: OpCall) -> None:
    """Every group loses the same slots, and its statistics are mixed; or whole groups go, exactly."""
    x: Tensor = op.args[0]
    groups = int(op.argument("group"))
    labels = op.labels(x, 1)
    affine = [(i, a) for i, a in enumerate(op.args) if i in (1, 2) and isinstance(a, Tensor)]
    op.follow(x, op.outs[0])
    for out in op.outs[1:]:
        op.set(out, {})
    if labels is None:
        return
    for _, tensor in affine:
        op.unify(labels, op.labels(tensor, 0), "normalised with a fixed width")
        op.mark(op.labels(tensor, 0), "scales")
    if groups == x.shape[1] or (op.tracer.units.norm_groups and groups > 1):
        op.hold(op.tie(labels, groups, across=1))
        return
    op.tie(labels, groups)
    op.mix([(0, 1), *((i, 0) for i, _ in affine)], labels, 1, lambda n: {4: n})


def reduction(op: OpCall) -> None:
    """Axes that are reduced disappear (or become 1); channels on them are mixed."""
    x: Tensor = op.args[0]
    names = [a.name for a in op.func._schema.arguments]
    dims = op.argument("dim") if "dim" in names else None
    if "other" in names:  # the two-operand forms of max and min
        pointwise(op)
        return
    reduced = _axes(dims, x.ndim)
    keepdim = bool(op.argument("keepdim")) if "keepdim" in names else False
    axes: dict[int, LabelVector] = {}
    for axis, labels in op.field(x).axes.items():
        if axis in reduced:
            op.mix([(0, axis)], labels)
        else:
            axes[axis if keepdim else axis - sum(r < axis for r in reduced)] = labels
    for out in op.outs:
        op.set(out, axes)
    numbered = [labels for axis, labels in op.field(x).axes.items() if axis in reduced]
    name = op.func._schema.name.removeprefix("aten::")
    if name in ("argmax", "argmin") or (len(op.outs) == 2 and name in ("max", "min", "median")):
        op.number(op.outs[-1], numbered)


def _axes(dims: Any, ndim: int) -> set[int]:
    if dims is None or dims == []:
        return set(range(ndim))
    return {d % ndim for d in (dims if isinstance(dims, (list, tuple)) else [dims])}


def along_axis(op: OpCall) -> None:
    """Softmax and running sums: the axis stays, its entries depend on one another."""
    x: Tensor = op.args[0]
    axis = int(op.argument("dim")) % max(x.ndim, 1)
    labels = op.labels(x, axis)
    op.follow(x)
    if labels is not None:
        op.mix([(0, axis)], np.ascontiguousarray(labels), axis)
