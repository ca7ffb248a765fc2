"""Rules for operations of vision networks: regions of interest, deformable convolution, sliding windows, sampling grids."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from prunus.graph.labels import LabelVector
from prunus.graph.op_call import OpCall
from prunus.graph.rules_compute import READS_FIXED
from prunus.graph.rules_opaque import except_on, freeze_axes

_PIXELS = "channels lie on a pixel axis"


def region_pool(op: OpCall) -> None:
    """Regions (k, c, h, w) are cut out of an image (n, c, h, w): channels pass; boxes aren't channels."""
    image, boxes = op.args[:2]
    freeze_axes(op, boxes, "its values are the corners of regions")
    labels = except_on(op, image, (0, 2, 3), _PIXELS).get(1)
    for out in op.outs:
        op.set(out, {} if labels is None else {1: labels}, parametric=False)


def position_sensitive_pool(op: OpCall) -> None:
    """Channel c of the result takes its value at bin (i, j) from channel c * h * w + i * w + j: these live and die together."""
    image, boxes = op.args[:2]
    freeze_axes(op, boxes, "its values are the corners of regions")
    labels = except_on(op, image, (0, 2, 3), _PIXELS).get(1)
    if labels is not None:
        bins = int(op.argument("pooled_height")) * int(op.argument("pooled_width"))
        labels = op.tie(labels, len(labels) // bins, across=1)
    for out in op.outs:
        op.set(out, {} if labels is None else {1: labels}, parametric=False)


def suppression(op: OpCall) -> None:
    """Non-maximum suppression returns numbers of boxes."""
    op.freeze_all("boxes are compared with one another")


def deformable_convolution(op: OpCall) -> None:
    """A convolution whose kernel positions are moved by ``offset`` and weighted by ``mask``, which aren't channels."""
    x, weight, offset, mask, bias = op.args[:5]
    freeze_axes(op, offset, "two offsets for each kernel position, not channels,")
    freeze_axes(op, mask, "a weight for each kernel position, not a channel,")
    groups, offset_groups = int(op.argument("groups")), int(op.argument("offset_groups"))
    axes = except_on(op, x, (2, 3), _PIXELS)
    incoming, written, read = axes.pop(1, None), op.labels(weight, 0), op.labels(weight, 1)
    op.mark(read, "reads")
    op.mark(written, "writes")
    if groups > 1:
        for labels in (incoming, written, read):
            if labels is not None:
                op.freeze(labels, "a deformable convolution in groups")
        written = None
    elif incoming is not None:
        op.unify(incoming, read, "read by a weight whose width is fixed")
        if offset_groups > 1:
            op.balance(incoming, offset_groups)
    elif read is not None:
        op.tracer.fix(read, READS_FIXED)
    op.tracer.reading(op, 1, 1)
    if bias is not None and (own := op.labels(bias, 0)) is not None:
        op.unify(written, own)
        op.mark(own, "writes")
    out = op.outs[0]
    op.set(out, axes if written is None else {**axes, 1: written}, parametric=False)
    widths: tuple[Any, ...] = (
        weight.shape[1] if read is None or groups > 1 else read,
        weight.shape[0] if written is None else written,
        *axes.values(),
    )
    positions = out.shape[0] * math.prod(out.shape[2:]) * math.prod(weight.shape[2:])
    factor = positions / math.prod(len(v) for v in axes.values())
    op.tracer.add_layer(op, "deformable convolution", widths, tuple(weight.shape[2:]), groups, factor)


def windows(op: OpCall) -> None:
    """Unfold: channel c becomes one channel for each of the k kernel positions, c * k to c * k + k - 1."""
    x: Tensor = op.args[0]
    axis = x.ndim - 3
    axes = except_on(op, x, (axis + 1, axis + 2), _PIXELS)
    if axis in axes:
        axes[axis] = np.repeat(axes[axis], math.prod(op.argument("kernel_size")))
    op.set(op.outs[0], axes)


def overlap_add(op: OpCall) -> None:
    """Fold: the k kernel positions of a channel are added into one."""
    x: Tensor = op.args[0]
    axis = x.ndim - 2
    axes = except_on(op, x, (axis + 1,), _PIXELS)
    if axis in axes:
        labels: LabelVector = axes[axis]
        axes[axis] = op.tie(labels, len(labels) // math.prod(op.argument("kernel_size")), across=1)
    op.set(op.outs[0], axes)


def grid_sample(op: OpCall) -> None:
    """Pixels (n, c, ...) are taken at the positions in a grid (n, ..., 2 or 3): channels pass; positions aren't channels."""
    image, grid = op.args[:2]
    freeze_axes(op, grid, "its values are positions in an image, not channels,")
    axes = except_on(op, image, range(2, image.ndim), _PIXELS)
    if 0 in axes:  # the grid holds one entry for each image
        op.freeze(axes.pop(0), "channels lie on the batch axis of a sampled image")
    op.set(op.outs[0], axes, parametric=False)


def affine_grid(op: OpCall) -> None:
    """Matrices (n, 2, 3) become positions in an image."""
    op.freeze_all("its values are an affine map, not channels,")
