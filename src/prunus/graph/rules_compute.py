"""Rules for convolutions and matrix products: channels are read along one axis of the weight and written along the other."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from prunus.graph.labels import LabelVector
from prunus.graph.op_call import OpCall
from prunus.types import Window

_FIXED_INPUT = "read by a weight whose width is fixed"
READS_FIXED = "its weight also reads an input whose width is fixed"


def embedding(op: OpCall) -> None:
    """Rows are picked, columns are channels that are written."""
    weight, out = op.args[0], op.outs[0]
    labels = op.labels(weight, 1)
    op.mark(labels, "writes")
    op.set(out, {} if labels is None else {out.ndim - 1: labels}, parametric=False)


def convolution(op: OpCall) -> None:
    """Plain, grouped, depthwise and transposed convolutions of any dimension."""
    x, weight, bias = op.args[:3]
    transposed, groups = bool(op.argument("transposed")), int(op.argument("groups"))
    into, out_of = (1, 0) if transposed else (0, 1)  # the weight's axes that write and that read
    incoming, written, read = op.labels(x, 1), op.labels(weight, into), op.labels(weight, out_of)
    if groups > 1 and x.shape[1] == groups:
        labels = _depthwise(op, incoming, weight, groups, transposed)
    elif groups > 1:
        labels = _grouped(op, incoming, written, read, groups, transposed)
    else:
        labels = _plain(op, incoming, written, read)
    if groups == 1 or x.shape[1] != groups:
        op.tracer.reading(op, 1, out_of)
    if bias is not None:
        own = op.labels(bias, 0)
        if own is not None or labels is not None:
            op.unify(labels, own)
        op.mark(own, "writes")
    if written is None and x.shape[1] == groups > 1 and not transposed:
        written = labels  # one filter, expanded
    moved = {0: batch} if (batch := op.labels(x, 0)) is not None else {}
    moved |= {axis: kept for axis in op.field(x).axes if axis >= 2 and (kept := _over_channels(op, axis)) is not None}
    op.set(op.outs[0], moved if labels is None else {**moved, 1: labels}, parametric=op.field(x).parametric)
    positions = (x if transposed else op.outs[0]).shape
    factor = positions[0] * math.prod(positions[2:]) * math.prod(weight.shape[2:])
    widths = (weight.shape[out_of] if read is None else read, weight.shape[into] if written is None else written)
    for other in moved.values():  # channels on the axis of the batch or on one of pixels
        factor, widths = factor / len(other), (*widths, other)
    kind = "transposed convolution" if transposed else "convolution"
    op.tracer.add_layer(op, kind, widths, tuple(weight.shape[2:]), groups, factor, window=_window(op))


def _window(op: OpCall) -> Window:
    names = ("stride", "padding", "dilation", "output_padding")
    return Window(tuple(op.args[0].shape), *(tuple(int(n) for n in op.argument(name)) for name in names))


def _over_channels(op: OpCall, axis: int) -> LabelVector | None:
    """A convolution that slides along the channels themselves (efficient channel attention): neighbours are mixed."""
    x, labels = op.args[0], op.field(op.args[0]).axes[axis]
    if op.outs[0].shape[axis] != x.shape[axis] or op.argument("stride")[axis - 2] != 1:
        op.freeze(labels, "channels lie on a pixel axis")
        return None
    op.mix([(0, axis)], labels, axis)
    return labels


def _plain(op: OpCall, incoming: LabelVector | None, written: LabelVector | None, read: LabelVector | None) -> LabelVector | None:
    if incoming is not None:
        op.unify(incoming, read, _FIXED_INPUT)
    elif read is not None:
        op.tracer.fix(read, READS_FIXED)
    op.mark(read, "reads")
    op.mark(written, "writes")
    return written


def _depthwise(op: OpCall, incoming: LabelVector | None, weight: Tensor, groups: int, transposed: bool) -> LabelVector | None:
    """Every channel is filtered by itself, ``multiplier`` times: output channels belong to their input channel."""
    multiplier = weight.shape[1] if transposed else weight.shape[0] // groups
    labels = op.labels(weight, 0)
    op.mark(labels, "scales")
    spread = multiplier if not transposed else 1
    if incoming is not None:
        op.hold(incoming)
    if labels is None and incoming is not None and (weight.stride(0) == 0 or 0 in op.field(weight).free):
        return np.repeat(incoming, multiplier)  # one filter, expanded to as many channels as there are
    if labels is not None or incoming is not None:
        spread_incoming = None if incoming is None else np.repeat(incoming, spread)
        op.unify(spread_incoming, labels, "a depthwise convolution with a fixed width")
    if labels is None or incoming is None:
        return None
    if transposed and multiplier > 1 and (slots := op.labels(weight, 1)) is not None:
        op.freeze(slots, "multiplier of a depthwise transposed convolution")
    return np.repeat(incoming, multiplier)


def _grouped(
    op: OpCall, incoming: LabelVector | None, written: LabelVector | None, read: LabelVector | None, groups: int, transposed: bool
) -> LabelVector | None:
    """Every group loses the same slots; or whole groups go: where that was asked for, or a group writes only one channel."""
    weight: Tensor = op.args[1]
    into_size = weight.shape[1] if transposed else weight.shape[0] // groups
    if op.tracer.units.groups or into_size == 1:
        return _whole_groups(op, incoming, groups, transposed)
    if transposed:
        if incoming is not None:
            op.unify(incoming, read, _FIXED_INPUT)
        if read is not None:
            op.tie(read, groups)
        op.mark(read, "reads")
        op.mark(written, "writes")
        return None if written is None else np.tile(written, groups)
    if incoming is not None:
        op.unify(op.tie(incoming, groups), read, _FIXED_INPUT)
    op.mark(read, "reads")
    op.mark(written, "writes")
    if written is None:
        return None
    return np.tile(op.tie(written, groups), groups)


def _whole_groups(op: OpCall, incoming: LabelVector | None, groups: int, transposed: bool) -> LabelVector | None:
    """A group is one channel: what it reads and what it writes go together, and ``groups`` is lowered.

    The weight's other axis (inputs of a group, outputs of a group if transposed) keeps its size.
    """
    weight: Tensor = op.args[1]
    own, inner = op.labels(weight, 0), op.labels(weight, 1)
    if inner is not None:
        op.freeze(inner, "the width of a group of a convolution whose groups go as a whole")
    if own is None or incoming is None:
        for labels in (own, incoming):
            if labels is not None:
                op.freeze(labels, "a grouped convolution with a fixed width")
        return None
    each = op.tie(own, groups, across=1)
    op.unify(op.tie(incoming, groups, across=1), each)
    op.mark(own, "scales")
    op.hold(each)
    return np.repeat(each, weight.shape[1] if transposed else len(own) // groups)


def linear(op: OpCall) -> None:
    """A linear layer that arrives whole: x (..., k) times weight (n, k) transposed."""
    x, weight = op.args[0], op.args[1]
    bias = op.args[2] if len(op.args) > 2 else None
    _product(op, x, weight, bias, (x.ndim - 1, 1), (None, 0))


def matrix_product(op: OpCall) -> None:
    """mm, bmm, mv and their forms with an added term."""
    name = op.func._schema.name.removeprefix("aten::")
    bias, (a, b) = (op.args[0], op.args[1:3]) if name in ("addmm", "baddbmm", "addmv") else (None, op.args[:2])
    _product(
        op, a, b, bias, (a.ndim - 1, max(b.ndim - 2, 0)), (a.ndim - 2 if a.ndim > 1 else None, b.ndim - 1 if b.ndim > 1 else None)
    )


def _product(
    op: OpCall, a: Tensor, b: Tensor, bias: Tensor | None, contracted: tuple[int, int], free: tuple[int | None, int | None]
) -> None:
    """Contract axis ``contracted[0]`` of a with ``contracted[1]`` of b; ``free``: their axes that stay (None: all others)."""
    field_a, field_b = op.field(a), op.field(b)
    k_a, k_b = field_a.axes.get(contracted[0]), field_b.axes.get(contracted[1])
    weight_b = field_b.parametric and bool(field_b.axes)
    _contract(op, a, b, (k_a, k_b), contracted, weight_b)
    out, axes = op.outs[0], {axis: v for axis, v in field_a.axes.items() if axis != contracted[0]}
    columns = None if free[1] is None else field_b.axes.get(free[1])
    if columns is not None:
        axes[out.ndim - 1] = columns
    if b.ndim == 3 and (batch := field_b.axes.get(0)) is not None:
        op.unify(axes.get(0), batch)
    rows = None if free[0] is None else field_a.axes.get(free[0])
    op.mark(columns if weight_b else rows if field_a.parametric else None, "writes")
    if bias is not None and bias.ndim:
        own = op.labels(bias, bias.ndim - 1)
        if (own is not None or out.ndim - 1 in axes) and bias.shape[-1] > 1:
            axes[out.ndim - 1] = op.unify(axes.get(out.ndim - 1), own)  # pyright: ignore[reportArgumentType]
            op.mark(own, "writes")
    axes = {axis: v for axis, v in axes.items() if v is not None}  # pyright: ignore[reportUnnecessaryComparison]
    op.set(out, axes)
    n = 1 if free[1] is None else b.shape[free[1]]
    k = a.shape[contracted[0]]
    others = [v for axis, v in axes.items() if axis != out.ndim - 1 or free[1] is None]
    factor = math.prod(out.shape) / n / math.prod(len(v) for v in others)
    reads = k_b if k_b is not None else k_a if k_a is not None else k
    widths = (reads, columns if columns is not None else n, *others)
    op.tracer.add_layer(op, "matrix product", widths, (), 1, factor, weight_b or field_a.parametric)


def _contract(
    op: OpCall,
    a: Tensor,
    b: Tensor,
    pair: tuple[LabelVector | None, LabelVector | None],
    contracted: tuple[int, int],
    weight_b: bool,
) -> None:
    k_a, k_b = pair
    if k_a is None and k_b is None:
        return
    if op.field(a).parametric or weight_b:
        weight, activation = (k_b, k_a) if weight_b else (k_a, k_b)
        op.mark(weight, "reads")
        op.tracer.reading(
            op, next(i for i, arg in enumerate(op.args) if arg is (b if weight_b else a)), contracted[int(weight_b)]
        )
        if activation is not None:
            op.unify(activation, weight, _FIXED_INPUT)
        elif weight is not None:
            op.tracer.fix(weight, READS_FIXED)
    elif (labels := op.unify(k_a, k_b, _FIXED_INPUT)) is not None:
        first = next(i for i, arg in enumerate(op.args) if arg is a)
        op.mix([(first, contracted[0]), (first + 1, contracted[1])], labels)
