"""Operations whose results are no channels any more: what they touch is frozen, with a reason in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from prunus.graph.labels import LabelVector
from prunus.graph.op_call import OpCall


def opaque(why: str) -> Callable[[OpCall], None]:
    """A rule that freezes every channel that the operation touches."""

    def rule(op: OpCall) -> None:
        op.freeze_all(why)

    return rule


def except_on(op: OpCall, source: Tensor, touched: Iterable[int], why: str) -> dict[int, LabelVector]:
    """The labels of ``source`` without those on the ``touched`` axes, which are frozen."""
    gone = {axis % source.ndim for axis in touched}
    axes = dict(op.field(source).axes)
    for axis in gone & set(axes):
        op.freeze(axes.pop(axis), why)
    return axes


def freeze_axes(op: OpCall, tensor: Tensor | None, why: str) -> None:
    """All channels of one argument."""
    if tensor is not None:
        for labels in op.field(tensor).axes.values():
            op.freeze(labels, why)


DECOMPOSITION = opaque("a matrix is decomposed or inverted, which makes all its entries depend on one another,")
RANDOM_DRAW = opaque("random numbers are drawn by channel")
VALUES_DECIDE = opaque("the size of the result depends on values, not on channels,")
LOSS = opaque("a loss compares the channels with targets")
RECURRENT_CELL = opaque("a recurrent layer's gates and hidden state have one width, which Python holds,")
FUSED_LAYER = opaque("a whole attention layer is fused into one operation")
QUANTISED = opaque("a product in a packed or quantised format")
COMPARED = opaque("all entries are compared or added up with one another")
MATRIX_ENTRIES = opaque("entries are picked or masked by where they lie in a matrix")
