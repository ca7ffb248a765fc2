"""Rules for sequences: recurrent layers, packed sequences, bags of embeddings, bilinear products."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from prunus.graph.labels import LabelVector
from prunus.graph.op_call import OpCall
from prunus.graph.rules_opaque import except_on, freeze_axes

_HIDDEN = "a recurrent layer's gates and hidden state have one width, which Python holds,"


def recurrent_layer(op: OpCall) -> None:
    """One layer of an LSTM, (time, batch, width): the incoming width is read by the first weight, the hidden width is frozen."""
    x, read_weight, *others = op.args[:5]
    width = x.ndim - 1
    incoming = except_on(op, x, range(width), "channels lie on the time or batch axis of a recurrent layer").get(width)
    read = op.labels(read_weight, 1)
    if incoming is not None or read is not None:
        op.unify(incoming, read, "read by a weight whose width is fixed")
    op.mark(read, "reads")
    op.tracer.reading(op, 1, 1)
    gates = op.labels(read_weight, 0)
    op.mark(gates, "writes")
    why = op.freeze(np.zeros(0, np.int64) if gates is None else gates, _HIDDEN)
    for tensor in (*others, op.argument("hx_"), op.argument("cx_")):
        freeze_axes(op, tensor, _HIDDEN)
    for out in op.outs:
        op.set(out, {}, parametric=False, fixed={out.ndim - 1: why} if out.ndim else None)
    steps = math.prod(x.shape[:-1])
    reads = x.shape[width] if read is None else read
    op.tracer.add_layer(op, "recurrent layer", (reads, read_weight.shape[0]), (), 1, steps)
    op.tracer.add_layer(op, "recurrent layer", (others[0].shape[1], others[0].shape[0]), (), 1, steps)


def packing(op: OpCall) -> None:
    """Between (time, batch, width) and rows without padding: the last axis passes."""
    x: Tensor = op.args[0]
    width = x.ndim - 1
    labels = except_on(op, x, range(width), "channels lie on the time or batch axis of a packed sequence").get(width)
    out = op.outs[0]
    op.set(out, {} if labels is None else {out.ndim - 1: labels})
    for other in op.outs[1:]:
        op.set(other, {})


def embedding_bag(op: OpCall) -> None:
    """Rows are picked and summed, averaged or maximised column by column: columns are channels that are written."""
    labels = op.labels(op.args[0], 1)
    op.mark(labels, "writes")
    for tensor in op.tensors[1:]:
        freeze_axes(op, tensor, "its values choose or weigh the rows of an embedding")
    for out in op.outs:
        op.set(out, {1: labels} if labels is not None and out.ndim == 2 else {}, parametric=False)


def bilinear(op: OpCall) -> None:
    """A product of three tensors over a common grid of axes, of which ``sumdim`` are summed: nn.Bilinear's x1, weight and x2."""
    tensors: list[Tensor] = list(op.args[:3])
    weights = [op.field(t).parametric and bool(op.field(t).axes) for t in tensors]
    if weights.count(True) != 1:
        op.freeze_all("a product of three tensors of which not just one is a weight")
        return
    expanded: list[list[int]] = list(op.args[3:6])
    summed: list[int] = list(op.args[6])
    grid = max(t.ndim + len(e) for t, e in zip(tensors, expanded, strict=True))
    places = [_places(grid, e) for e in expanded]
    axes: dict[int, LabelVector] = {}
    weight, place = tensors[weights.index(True)], places[weights.index(True)]
    for axis in range(grid):
        holders = [(t, p[axis]) for t, p in zip(tensors, places, strict=True) if axis in p]
        found = _unified(op, holders)
        own = op.labels(weight, place[axis]) if axis in place else None
        op.mark(own, "reads" if axis in summed else "writes")
        if axis in summed and own is not None:
            op.tracer.reading(op, weights.index(True), place[axis])
        if found is not None and axis not in summed:
            axes[axis - sum(s < axis for s in summed)] = found
    op.set(op.outs[0], axes, parametric=False)
    _count(op, weight, place, summed)


def _places(grid: int, expanded: list[int]) -> dict[int, int]:
    """Axis of the grid -> axis of a tensor that is expanded along the others."""
    own = [axis for axis in range(grid) if axis not in expanded]
    return {axis: i for i, axis in enumerate(own)}


def _unified(op: OpCall, holders: list[tuple[Tensor, int]]) -> LabelVector | None:
    several = [op.labels(tensor, axis) for tensor, axis in holders if tensor.shape[axis] > 1]
    if all(labels is None for labels in several):
        return None
    found = several[0]
    for labels in several[1:]:
        found = op.unify(found, labels, "read by a weight whose width is fixed")
    return found


def _count(op: OpCall, weight: Tensor, place: dict[int, int], summed: list[int]) -> None:
    """One multiply-add for every weight and every row."""
    reading = next((place[axis] for axis in summed if axis in place), None)
    writing = next((place[axis] for axis in place if axis not in summed), None)
    widths = [1 if axis is None else weight.shape[axis] for axis in (reading, writing)]
    labels = [None if axis is None else op.labels(weight, axis) for axis in (reading, writing)]
    out = op.outs[0]
    rows = out.numel() // widths[1]
    factor = rows * weight.numel() / math.prod(widths)
    reads, writes = (size if own is None else own for size, own in zip(widths, labels, strict=True))
    op.tracer.add_layer(op, "bilinear product", (reads, writes), (), 1, factor)
