"""Rules for ranking, scattering and distances: along the channel axis they mix or freeze, along the others channels pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.graph.labels import LabelVector
from prunus.graph.op_call import OpCall
from prunus.graph.rules_opaque import except_on, freeze_axes
from prunus.graph.rules_parts import absolute_index
from prunus.graph.rules_statistics import along_axis, reduction


def largest(op: OpCall) -> None:
    """The k largest along an axis: k is a number of Python's, so that the result's axis is fixed; other axes pass."""
    x: Tensor = op.args[0]
    axis = int(op.argument("dim")) % max(x.ndim, 1)
    labels = op.labels(x, axis)
    axes = {a: v for a, v in op.field(x).axes.items() if a != axis}
    for out in op.outs:
        op.set(out, axes)
    if labels is not None:
        op.mix([(0, axis)], labels)
        op.number(op.outs[1], [labels])


def ranking(op: OpCall) -> None:
    """Sorting: entry i of the result is the i-th largest, whichever channel that is."""
    x: Tensor = op.args[0]
    axes = except_on(op, x, [int(op.argument("dim"))] if x.ndim else [], "sorted: places in the order aren't channels,")
    for out in op.outs:
        op.set(out, axes)


def order_statistic(op: OpCall) -> None:
    """A reduction to one entry, and to its number along the axis."""
    reduction(op)
    x: Tensor = op.args[0]
    axis = int(op.argument("dim")) % max(x.ndim, 1)
    if len(op.outs) == 2 and (labels := op.labels(x, axis)) is not None:
        op.number(op.outs[1], [labels])


def running_extreme(op: OpCall) -> None:
    """The largest or smallest so far along an axis, and its number."""
    x: Tensor = op.args[0]
    labels = op.labels(x, int(op.argument("dim")))
    along_axis(op)
    if labels is not None:
        op.number(op.outs[1], [labels])


def distances(op: OpCall) -> None:
    """Distances of the rows of x1 (..., p, width) from those of x2 (..., r, width): the width is summed over."""
    a, b = op.args[:2]
    out = op.outs[0]
    axes: dict[int, LabelVector] = {}
    for tensor, into in ((a, out.ndim - 2), (b, out.ndim - 1)):
        if (rows := op.labels(tensor, tensor.ndim - 2)) is not None:
            axes[into] = rows
        for axis in range(tensor.ndim - 2):
            if (batch := op.labels(tensor, axis)) is not None:
                op.freeze(batch, "channels lie on a batch axis of distances")
    op.set(out, axes)
    widths = op.labels(a, a.ndim - 1), op.labels(b, b.ndim - 1)
    if any(labels is not None for labels in widths):
        labels = op.unify(*widths, "compared with points of fixed width")
        if labels is not None:
            op.mix([(0, a.ndim - 1), (1, b.ndim - 1)], labels)


def renormalised(op: OpCall) -> None:
    """Each slice along an axis is scaled to a norm of at most ``maxnorm``: exact along that axis, other channels are mixed."""
    x: Tensor = op.args[0]
    axis = int(op.argument("dim")) % x.ndim
    op.follow(x)
    for other, labels in op.field(x).axes.items():
        if other != axis:
            op.mix([(0, other)], labels, other)


def scattered(op: OpCall) -> None:
    """Entries are written at absolute indices along one axis; along the others, all operands hold the same channels."""
    target: Tensor = op.args[0]
    axis = int(op.argument("dim")) % max(target.ndim, 1)
    sources = [t for t in op.tensors if t is not target and t.ndim == target.ndim]
    axes = except_on(op, target, [axis] if target.ndim else [], "channels are written at absolute indices")
    for source in sources:
        if (lost := op.labels(source, axis)) is not None:
            op.freeze(lost, "channels are written at absolute indices")
        for other in range(target.ndim):
            own, there = op.labels(source, other), axes.get(other)
            if other == axis or source.stride(other) == 0 or (own is None and there is None):
                continue
            found = op.unify(there, own, "written into a tensor whose width is fixed")
            if found is None:
                axes.pop(other, None)
    op.set(op.outs[0], axes)


def picked(op: OpCall) -> None:
    """``x[i, :, j]``: channels on indexed axes are picked by absolute index, those on other axes pass."""
    source: Tensor = op.args[0]
    touched, layout = _indexed(source, op.args[1])
    if any(index is not None and index.dtype in _MASKS for index in op.args[1]):
        axes = except_on(op, source, touched, "channels are picked by a mask")
    else:
        absolute_index(op)
        if op.field(op.outs[0]).axes or not touched & set(op.field(source).axes):
            return
        axes = {axis: labels for axis, labels in op.field(source).axes.items() if axis not in touched}
    op.set(op.outs[0], {place: axes[axis] for place, axis in enumerate(layout) if axis in axes})


def written_at(op: OpCall) -> None:
    """``x[i, :, j] = values``: channels on indexed axes are frozen, on the others x and the values hold the same ones."""
    target, indices, values = op.args[:3]
    touched, layout = _indexed(target, indices)
    axes = except_on(op, target, touched, "channels are written at absolute indices")
    for own, into in enumerate(layout[len(layout) - values.ndim :]):
        known = None if into is None else axes.get(into)
        labels = op.labels(values, own)
        if values.shape[own] == 1 or (labels is None and known is None):
            continue
        if op.unify(known, labels, "written into a tensor whose width is fixed") is None and into is not None:
            axes.pop(into, None)
    op.set(op.outs[0], axes)


_MASKS = (torch.bool, torch.uint8)


def _indexed(x: Tensor, indices: list[Tensor | None]) -> tuple[set[int], list[int | None]]:
    """Axes of x that are indexed, and the axis of x (None: the indices' own) at each place of ``x[indices]``."""
    touched: list[int] = []
    axis, added = 0, 0
    for index in indices:
        covered = index.ndim if index is not None and index.dtype in _MASKS else 1
        if index is not None:
            added = max(added, 1 if index.dtype in _MASKS else index.ndim)
            touched += range(axis, axis + covered)
        axis += covered
    neighbours = touched == list(range(touched[0], touched[-1] + 1))
    first = touched[0] if neighbours else 0  # indices that are apart put their axes first
    rest = [a for a in range(x.ndim) if a not in touched]
    return set(touched), [*(a for a in rest if a < first), *[None] * added, *(a for a in rest if a >= first)]


def place_written(op: OpCall) -> None:
    """A slice is overwritten at an index: along that axis, channels are frozen."""
    target, source = op.args[:2]
    axis = int(op.argument("dim")) % target.ndim
    if source.ndim == target.ndim:
        scattered(op)
        return
    axes = except_on(op, target, [axis], "channels are written at absolute indices")
    for other in range(source.ndim):
        into = other + (other >= axis)
        own = op.labels(source, other)
        if own is not None or into in axes:
            found = op.unify(axes.get(into), own, "written into a tensor whose width is fixed")
            if found is None:
                axes.pop(into, None)
    op.set(op.outs[0], axes)


def searched(op: OpCall) -> None:
    """Places of values in a sorted sequence: element by element where the sequence has no channels."""
    names = [a.name for a in op.func._schema.arguments]
    boundaries: Any = op.argument("sorted_sequence" if "sorted_sequence" in names else "boundaries")
    values: Any = op.argument("self")
    freeze_axes(op, boundaries, "channels are searched in an order")
    if boundaries.ndim > 1:
        freeze_axes(op, values, "channels are searched in an order")
    if isinstance(values, Tensor) and boundaries.ndim == 1:
        op.follow(values)
    else:
        op.set(op.outs[0], {})


def counted(op: OpCall) -> None:
    """Reductions of which one form has no axis: that one runs over all of them."""
    if "dim" in [a.name for a in op.func._schema.arguments]:
        reduction(op)
    else:
        op.freeze_all("all entries are counted or compared")
