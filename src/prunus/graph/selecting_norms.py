"""Batch norms that read channels of their own choice from a stream that other layers read as well."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

_Module = nn.Module if TYPE_CHECKING else object


class SelectingNorm(_Module):
    """What such a norm adds to its class: a saved buffer ``selected`` (int64), the numbers of the stream's channels it reads.

    The entries of the buffer are the channels that everything behind the norm sees, up to the layers that read it: a group of
    their own, written by the selection. A trace freezes the stream itself, whose channels the buffer numbers.
    """

    selected: Tensor
    kind: type[nn.Module]
    """The class that the norm had."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The norm of the selected channels."""
        return super().forward(input.index_select(1, self.selected), *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """The class was made here: copies and pickles name the one that it was made from."""
        return _blank, (self.kind,), vars(self)


@cache
def selecting(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of norms like ``kind`` that select their channels."""
    return type(f"Selecting{kind.__name__}", (SelectingNorm, kind), {"kind": kind, "__doc__": SelectingNorm.__doc__})


def _blank(kind: type[nn.Module]) -> nn.Module:
    made = selecting(kind)
    return made.__new__(made)
