"""Channel labels: integers on the axes of parameters that flow through the network with the data.

Every axis of every float parameter and buffer owns a range of labels. Operations that force two channels to live and die
together record a pair; the pairs are resolved once, at the end, as connected components of a sparse graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from prunus.graph.selecting_norms import SelectingNorm

LabelVector = npt.NDArray[np.int64]
"""One label per index of an axis; -1 where the index belongs to no channel (an image's colour, a constant)."""


class LabelField(NamedTuple):
    """Labels of a tensor, an entry for each axis along which they vary; ``parametric`` if it is computed from parameters only;
    ``fixed``: why an axis that lost its labels can't change, so that whatever meets it later is frozen for the same reason;
    ``numbers``: channels whose numbers are the tensor's values (argmax), which a removal would change; ``free``: axes along which
    one value was repeated to a size that the program most likely read from another tensor, so that they follow what they meet."""

    axes: dict[int, LabelVector]
    parametric: bool
    fixed: Mapping[int, str] = MappingProxyType({})
    numbers: tuple[LabelVector, ...] = ()
    free: frozenset[int] = frozenset()


class AxisRange(NamedTuple):
    """The labels ``[base, base + size)`` of one axis of a parameter."""

    parameter: str
    axis: int
    base: int
    size: int


def labelled_axes(tensor: Tensor) -> list[int]:
    """Axes of a parameter that may hold channels: all of a matrix, output and input of a kernel, not the kernel's extent; all of
    what has a first axis of one, such as an embedding of positions (1, height, width, channels)."""
    last = tensor.ndim if tensor.ndim <= 2 or tensor.shape[0] == 1 else 2
    return [axis for axis in range(last) if tensor.shape[axis] > 1]


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers, each tensor once under its first name."""
    seen: set[int] = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


class LabelSpace:
    """Hands out the labels of a model's parameters; the same model always gets the same labels."""

    def __init__(self, model: nn.Module) -> None:
        self.ranges: list[AxisRange] = []
        self.names: dict[int, str] = {}
        self.fields: dict[int, LabelField] = {}
        self.range_of_vector: dict[int, int] = {}
        base = 0
        selections = {id(module.selected) for module in model.modules() if isinstance(module, SelectingNorm)}
        for name, tensor in named_tensors(model):
            self.names[id(tensor)] = name
            axes: dict[int, LabelVector] = {}
            if tensor.is_floating_point() or id(tensor) in selections:
                for axis in labelled_axes(tensor):
                    size = tensor.shape[axis]
                    axes[axis] = np.arange(base, base + size)
                    self.range_of_vector[id(axes[axis])] = len(self.ranges)
                    self.ranges.append(AxisRange(name, axis, base, size))
                    base += size
            self.fields[id(tensor)] = LabelField(axes, True)
        self.size = base

    def bases(self) -> npt.NDArray[np.int64]:
        """First label of every range, ascending."""
        return np.array([r.base for r in self.ranges], dtype=np.int64)


def resolve(size: int, pairs: list[tuple[LabelVector, LabelVector]]) -> npt.NDArray[np.int64]:
    """Class of every label once all paired labels are the same: int64 (size,). Pairs with -1 are ignored."""
    if not pairs:
        return np.arange(size)
    different = {(id(a), id(b)): (a, b) for a, b in pairs}.values()  # both traces meet most pairs
    first = np.concatenate([a for a, _ in different])
    second = np.concatenate([b for _, b in different])
    real = (first >= 0) & (second >= 0) & (first != second)
    first, second = first[real], second[real]
    matrix = coo_matrix((np.ones(len(first), dtype=np.int8), (first, second)), shape=(size, size))
    return connected_components(matrix, directed=False)[1].astype(np.int64)
