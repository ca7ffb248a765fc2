"""Channels that a `chunk` or `split` re-divides at run time: every part must keep the same number.

Parts need not lose the same slots; it is enough that whatever is removed together is spread evenly over the parts. Classes that
are uneven by themselves are tied into the smallest even sets that a greedy matching finds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prunus.graph.labels import LabelVector

Ints = npt.NDArray[np.int64]


def balance(classes: Ints, splits: Sequence[tuple[LabelVector, int]]) -> Ints:
    """Merge classes until each (labels, parts) split keeps equal parts whatever classes are removed: int64 like ``classes``."""
    if not splits:
        return classes
    merged_into = np.arange(int(classes.max(initial=-1)) + 1)  # of each class; followed to its end
    for labels, parts in splits:
        table = np.where(labels >= 0, _merged(merged_into, classes[labels]), -1).reshape(parts, -1)
        for together in uneven_sets(table) if parts == 2 else _same_slots(table):
            real = _merged(merged_into, together[together >= 0])  # sets of one split may overlap
            merged_into[real] = real.min(initial=len(merged_into))
    return _merged(merged_into, classes)


def _merged(merged_into: Ints, classes: Ints) -> Ints:
    """The classes that these have become; shortens the way for the next time."""
    found = merged_into[classes]
    while not np.array_equal(further := merged_into[found], found):
        found = further
    merged_into[classes] = found
    return found


def uneven_sets(table: Ints) -> list[Ints]:
    """Sets of classes to tie for a split in two: (2, n) classes -> sets whose counts in both halves are equal."""
    names, first, inverse = np.unique(table, return_index=True, return_inverse=True)
    counts = np.stack([np.bincount(row, minlength=len(names)) for row in inverse.reshape(table.shape)])
    surplus = counts[0] - counts[1]
    order = np.argsort(first)  # classes as they appear, so that neighbours stay apart and the result is deterministic
    sets: list[Ints] = []
    waiting: dict[int, deque[int]] = {}
    for i in order[surplus[order] != 0].tolist():
        opposite = waiting.get(-int(surplus[i]))
        if opposite:
            sets.append(names[[opposite.popleft(), i]])
        else:
            waiting.setdefault(int(surplus[i]), deque()).append(i)
    leftover = [i for several in waiting.values() for i in several]
    return sets + _zero_sums(leftover, surplus, names)


def _zero_sums(leftover: list[int], surplus: Ints, names: Ints) -> list[Ints]:
    """Gather classes of unlike sizes, largest first, closing a set whenever its surplus is zero."""
    sets: list[Ints] = []
    gathered: list[int] = []
    total = 0
    largest_first = sorted(leftover, key=lambda i: -abs(int(surplus[i])))
    more, fewer = (deque(i for i in largest_first if sign * surplus[i] > 0) for sign in (1, -1))
    while more or fewer:
        if total == 0 and more and fewer:
            source = more if abs(surplus[more[0]]) >= abs(surplus[fewer[0]]) else fewer
        else:
            source = (more or fewer) if total <= 0 else (fewer or more)
        gathered.append(source.popleft())
        total += int(surplus[gathered[-1]])
        if total == 0:
            sets.append(names[gathered])
            gathered = []
    return sets + ([names[gathered]] if gathered else [])


def _same_slots(table: Ints) -> list[Ints]:
    """More than two parts: the parts lose the same slots."""
    return list(table.T[(table != table[0]).any(axis=0)])
