"""Channels that a `chunk` or `split` re-divides at run time: every part must keep the same number.

Parts need not lose the same slots; it is enough that whatever is removed together is spread evenly over the parts. Classes that
are uneven by themselves are tied into the smallest even sets that a greedy matching finds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prunus.graph.labels import LabelVector

Ints = npt.NDArray[np.int64]


def balance(classes: Ints, splits: Sequence[tuple[LabelVector, int]]) -> Ints:
    """Merge classes until each (labels, parts) split keeps equal parts whatever classes are removed: int64 like ``classes``."""
    for labels, parts in splits:
        table = np.where(labels >= 0, classes[labels], -1).reshape(parts, -1)
        for merged in uneven_sets(table) if parts == 2 else _same_slots(table):
            real = merged[merged >= 0]
            classes = np.where(np.isin(classes, real), real[0] if len(real) else -1, classes)
    return classes


def uneven_sets(table: Ints) -> list[Ints]:
    """Sets of classes to tie for a split in two: (2, n) classes -> sets whose counts in both halves are equal."""
    names, first, inverse = np.unique(table, return_index=True, return_inverse=True)
    counts = np.stack([np.bincount(row, minlength=len(names)) for row in inverse.reshape(table.shape)])
    surplus = counts[0] - counts[1]
    order = np.argsort(first)  # classes as they appear, so that neighbours stay apart and the result is deterministic
    sets: list[Ints] = []
    leftover: list[int] = []
    waiting: dict[int, list[int]] = {}
    for i in order[surplus[order] != 0]:
        opposite = waiting.get(-int(surplus[i]))
        if opposite:
            sets.append(names[[opposite.pop(0), i]])
        else:
            waiting.setdefault(int(surplus[i]), []).append(int(i))
    leftover = [i for several in waiting.values() for i in several]
    return sets + _zero_sums(leftover, surplus, names)


def _zero_sums(leftover: list[int], surplus: Ints, names: Ints) -> list[Ints]:
    """Gather classes of unlike sizes, largest first, closing a set whenever its surplus is zero."""
    sets: list[Ints] = []
    gathered: list[int] = []
    total = 0
    rest = sorted(leftover, key=lambda i: -abs(int(surplus[i])))
    while rest:
        nearest = next((i for i in rest if total * int(surplus[i]) < 0 or total == 0), rest[0])
        rest.remove(nearest)
        gathered.append(nearest)
        total += int(surplus[nearest])
        if total == 0:
            sets.append(names[gathered])
            gathered = []
    return sets + ([names[gathered]] if gathered else [])


def _same_slots(table: Ints) -> list[Ints]:
    """More than two parts: the parts lose the same slots."""
    return [np.unique(column) for column in table.T if len(np.unique(column)) > 1]
