"""Rules for complex numbers, Fourier transforms, single matrices and shapes that change in place."""

from __future__ import annotations

from itertools import combinations

from torch import Tensor

from prunus.graph.op_call import OpCall
from prunus.graph.rules_opaque import except_on

_TRANSFORMED = "a Fourier transform runs over the channels"


def fourier(op: OpCall) -> None:
    """Transforms over some axes: channels on the others pass."""
    x: Tensor = op.args[0]
    op.set(op.outs[0], except_on(op, x, op.argument("dim"), _TRANSFORMED))


def triangle(op: OpCall) -> None:
    """One half of every matrix is zeroed: channels on other axes pass."""
    op.set(op.outs[0], except_on(op, op.args[0], (-2, -1), "entries are masked by where they lie in a matrix"))


def complex_parts(op: OpCall) -> None:
    """A complex tensor seen as pairs of real numbers on a last axis: all channels pass."""
    op.follow(op.args[0])


def complex_from_parts(op: OpCall) -> None:
    """Pairs on the last axis become complex numbers."""
    x: Tensor = op.args[0]
    op.set(op.outs[0], except_on(op, x, [-1], "real and imaginary parts aren't channels"))


def in_place_shape(op: OpCall) -> None:
    """``transpose_``, ``t_``, ``unsqueeze_``, ``squeeze_``: labels move with the axes. The tensor already has its new shape."""
    x: Tensor = op.args[0]
    labels = op.field(x).axes
    name = op.func._schema.name.removeprefix("aten::")
    if name in ("transpose_", "swapaxes_", "swapdims_", "t_"):
        a, b = (0, 1) if name == "t_" else (axis % max(x.ndim, 1) for axis in op.args[1:3])
        moved = {a: b, b: a}
        op.set(x, {moved.get(axis, axis): own for axis, own in labels.items()})
    elif name == "unsqueeze_":
        new = int(op.args[1]) % x.ndim
        op.set(x, {axis + (axis >= new): own for axis, own in labels.items()})
    elif name == "as_strided_":
        _restrided(op, x)
    else:
        _squeezed(op, x)


def _squeezed(op: OpCall, x: Tensor) -> None:
    """Labelled axes have more than one entry, so they stay, in order: frozen only where their sizes don't tell them apart."""
    labels = sorted(op.field(x).axes.items())
    places = [
        axes
        for axes in combinations(range(x.ndim), len(labels))
        if all(x.shape[a] == len(v) for a, (_, v) in zip(axes, labels, strict=True))
    ]
    if len(places) == 1:
        op.set(x, {axis: own for axis, (_, own) in zip(places[0], labels, strict=True)})
    else:
        op.freeze_all("squeezed in place, where several axes have one size,")


def _restrided(op: OpCall, x: Tensor) -> None:
    """Global pooling of channels-last images sets the strides of axes of size 1 anew, which moves nothing."""
    strides = [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    kept = all(axis < x.ndim and x.shape[axis] == len(own) for axis, own in op.field(x).axes.items())
    if kept and x.ndim == 4 and x.shape[2:] == (1, 1) and strides == sorted(strides, reverse=True):
        op.follow(x)
    else:
        op.freeze_all("given other strides in place")
