"""Rules for operations that work element by element: channels that meet live and die together."""

from __future__ import annotations

from torch import Tensor, nn

from prunus.graph.labels import LabelVector
from prunus.graph.op_call import OpCall, is_mutating


def no_labels(op: OpCall) -> None:
    """A result whose size comes from Python: if it later meets channels, those are frozen."""
    for out in op.outs:
        op.set(out, {})


def pointwise(op: OpCall) -> None:
    """Broadcast the operands' labels together and unify what meets."""
    tensors = op.tensors
    operands = [t for t in tensors if t.ndim and (t.numel() > 1 or op.field(t).axes)]
    if all(op.field(t).parametric for t in operands):  # a computed weight: the weight itself leads, not its gain or mask
        operands.sort(key=lambda t: (-t.numel(), not isinstance(t, nn.Parameter)))
    if len(operands) == 1:  # the common case: an activation function, a scale by a number
        before = op.field(operands[0])
        op.follow(operands[0])
        if is_mutating(op.func) and operands[0] is not tensors[0] and before.axes:
            _written_into_view(op, tensors[0], {}, before.axes)
        return
    for out in op.outs:
        fixed: dict[int, str] = {}
        axes = {axis: labels for axis in range(out.ndim) if (labels := _meet(op, operands, out, axis, fixed)) is not None}
        if is_mutating(op.func):
            _written_into_view(op, tensors[0], op.field(tensors[0]).axes, axes)
        op.set(out, axes, fixed=fixed)
        op.set_free(out, frozenset(axis for axis in range(out.ndim) if axis not in axes and _free(op, operands, out, axis)))


def _free(op: OpCall, operands: list[Tensor], out: Tensor, axis: int) -> bool:
    """Whether every operand that extends along this axis is free there, and one does."""
    own = [(t, axis - (out.ndim - t.ndim)) for t in operands]
    extending = [own_axis in op.field(t).free for t, own_axis in own if own_axis >= 0 and t.shape[own_axis] > 1]
    return bool(extending) and all(extending)


def _meet(op: OpCall, operands: list[Tensor], out: Tensor, axis: int, fixed: dict[int, str]) -> LabelVector | None:
    """Labels of the result along ``axis``, after unifying the operands that extend along it; reasons go into ``fixed``."""
    size = out.shape[axis]
    if size == 1:
        return None
    found: LabelVector | None = None
    is_fixed = False
    for tensor in operands:
        own = axis - (out.ndim - tensor.ndim)
        if own < 0 or tensor.shape[own] == 1 or tensor.stride(own) == 0 or own in op.field(tensor).free:
            continue  # one entry, or one that was expanded to the width of what it meets
        labels = op.labels(tensor, own)
        if labels is not None and found is not None and op.func._schema.name in _SUMS and _computed(op, operands, out):
            op.tracer.terms.append((found, labels))
        if labels is None:
            is_fixed = True
            if own in (reasons := op.field(tensor).fixed):
                fixed.setdefault(axis, reasons[own])
        else:
            found = labels if found is None else op.unify(found, labels)
    if found is not None and any(t.ndim == out.ndim and t.shape[axis] > 1 and t.stride(axis) == 0 for t in operands):
        op.hold(found)  # a tensor that was expanded to this width, perhaps by a number that a module holds
    if found is None or not is_fixed:
        return found
    if axis in fixed:
        op.tracer.frozen.append((found, fixed[axis]))
    else:
        fixed[axis] = op.freeze(found, "meets a tensor whose width is fixed")
    return None


_SUMS = {f"aten::{name}" for name in ("add", "add_", "sub", "sub_")}


def _computed(op: OpCall, operands: list[Tensor], out: Tensor) -> bool:
    """Whether this is a weight made of several of its shape: each of them writes and reads what their sum does."""
    return all(op.field(t).parametric and t.shape == out.shape for t in operands)


def _written_into_view(op: OpCall, target: Tensor, before: dict[int, LabelVector], after: dict[int, LabelVector]) -> None:
    """Labels written through a view would have to follow into its base; they are frozen instead."""
    new = [labels for axis, labels in after.items() if axis not in before]
    if new and target._is_view():
        for labels in new:
            op.freeze(labels, "written in place into part of another tensor")
