"""Rules for attention that arrives as one operation: softmax(queries x keys) x values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunus.graph.labels import LabelVector
from prunus.graph.op_call import OpCall
from prunus.graph.rules_elementwise import pointwise

_SHARED = "queries and keys or values have different numbers of heads"
_WIDTH_SCALES = (
    "attention divides by the square root of the queries' width, so that removing from it changes every weight "
    "(give `scale` to make the head width prunable)"
)


def scaled_dot_product(op: OpCall) -> None:
    """Heads, queries' positions and the values' width pass; over the keys' positions and the queries' width it sums.

    All tensors are (..., positions, width); what is summed is mixing. With the default scale the width of queries and keys is
    frozen, and whole heads are preferred.
    """
    query, key, value = op.args[:3]
    mask = _mask(op)
    out = op.outs[0]
    if not query.ndim == key.ndim == value.ndim == out.ndim:
        op.freeze_all("attention over tensors of different rank")
        return
    rows, width = out.ndim - 2, out.ndim - 1
    axes = {axis: labels for axis in range(rows) if (labels := _meet(op, axis, query, key, value)) is not None}
    if (positions := op.labels(query, rows)) is not None:
        axes[rows] = positions
    if (written := op.labels(value, width)) is not None:
        if 1 in axes:  # heads and their width would be merged into one axis
            op.freeze(written, "the width of values whose heads go as a whole")
        else:
            axes[width] = written
    keys = _united(op, op.labels(key, rows), op.labels(value, rows))
    if mask is not None:
        keys = _meet_mask(op, mask, axes, keys, rows)
    if bool(op.argument("is_causal")):
        for labels in (axes.pop(rows, None), keys):
            if labels is not None:
                op.freeze(labels, "channels lie on the positions of causal attention")
        keys = None
    for other in op.outs[1:]:
        op.set(other, {})
    op.set(out, axes)
    features = _united(op, op.labels(query, width), op.labels(key, width))
    _count(op, axes, keys, features)
    _sum_over(op, mask, keys, features)


def scaled_by_number(op: OpCall) -> None:
    """Where attention is taken apart, queries and keys are each multiplied by the fourth root of 1 / width."""
    pointwise(op)
    x: Tensor = op.args[0]
    labels = op.labels(x, x.ndim - 1) if x.ndim >= 4 else None
    if labels is not None and math.isclose(float(op.args[1]), len(labels) ** -0.25, rel_tol=1e-6):
        _freeze_width(op, labels)


def _freeze_width(op: OpCall, width: LabelVector) -> None:
    if (heads := op.args[0].shape[-3]) > 1:
        op.tracer.prefer_heads(heads)
    op.freeze(width, _WIDTH_SCALES)


def _mask(op: OpCall) -> Tensor | None:
    names = {a.name for a in op.func._schema.arguments} & {"attn_mask", "attn_bias"}
    return op.argument(names.pop()) if names else None


def _united(op: OpCall, a: LabelVector | None, b: LabelVector | None) -> LabelVector | None:
    return None if a is None and b is None else op.unify(a, b)


def _meet(op: OpCall, axis: int, query: Tensor, key: Tensor, value: Tensor) -> LabelVector | None:
    """Labels along a batch axis, which all three share; keys and values with one entry there serve all queries."""
    holders = [tensor for tensor in (query, key, value) if tensor is query or tensor.shape[axis] > 1]
    several = [op.labels(tensor, axis) for tensor in holders]
    known = [labels for labels in several if labels is not None]
    if known and len({tensor.shape[axis] for tensor in holders}) > 1:
        for labels in known:
            op.freeze(labels, _SHARED)
        return None
    found = several[0]
    for labels in several[1:]:
        found = _united(op, found, labels)
    return found


def _meet_mask(op: OpCall, mask: Tensor, axes: dict[int, LabelVector], keys: LabelVector | None, rows: int) -> LabelVector | None:
    """The mask broadcasts against (..., query positions, key positions): unify what meets; returns the keys' labels."""
    ndim = rows + 2
    for own in range(mask.ndim):
        axis = own + ndim - mask.ndim
        if mask.shape[own] == 1:
            continue
        labels, theirs = op.labels(mask, own), keys if axis == ndim - 1 else axes.get(axis)
        if labels is None and theirs is None:
            continue
        found = op.unify(theirs, labels, "meets an attention mask whose width is fixed")
        if axis == ndim - 1:
            keys = found
        elif found is None:
            axes.pop(axis, None)
        else:
            axes[axis] = found
    return keys


def _sum_over(op: OpCall, mask: Tensor | None, keys: LabelVector | None, features: LabelVector | None) -> None:
    """What attention sums over is evaluated on the kept channels only: by the general operation, which takes any widths."""
    if features is not None and op.argument("scale") is None:
        _freeze_width(op, features)
        features = None
    if features is not None and keys is not None:
        op.freeze(keys, "channels lie on the positions and on the width of attention at once")
        keys = None
    labels = features if features is not None else keys
    if labels is None:
        return
    query, key, value = op.args[:3]
    axis = query.ndim - 1 if features is not None else query.ndim - 2
    slices = [(0, axis), (1, axis)] if features is not None else [(1, axis), (2, axis)]
    if features is None and mask is not None and mask.shape[-1] > 1:
        slices.append((3, mask.ndim - 1))
    options = {"dropout_p": op.argument("dropout_p"), "is_causal": op.argument("is_causal"), "scale": op.argument("scale")}
    general = torch.ops.aten.scaled_dot_product_attention.default
    result = OpCall(op.tracer, general, (query, key, value, mask), options, op.outs[0])
    result.mix(slices, labels)
    op.out = result.out if isinstance(op.out, Tensor) else (result.out, *op.out[1:])


def _count(op: OpCall, axes: dict[int, LabelVector], keys: LabelVector | None, features: LabelVector | None) -> None:
    """Two products: queries with keys, and the weights with the values."""
    query, key, value = op.args[:3]
    rows, width = query.ndim - 2, query.ndim - 1
    batch = [axes[axis] for axis in range(rows + 1) if axis in axes]
    factor = math.prod(op.outs[0].shape[:-1]) / math.prod(len(labels) for labels in batch)
    length = key.shape[rows] if keys is None else keys
    scores = (query.shape[width] if features is None else features, length, *batch)
    for widths in (scores, (length, axes.get(width, value.shape[width]), *batch)):
        op.tracer.add_layer(op, "attention", widths, (), 1, factor, weighted=False)
