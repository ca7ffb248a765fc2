"""Which images belong to which split: drawn from a seed, the same share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunus.errors import DataError

SPLIT_SEED = 0  # of every split that a source is given here: runs with different seeds see the same images


def draw_share(groups: Sequence[int] | NDArray[np.int64], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split positions into (rest, drawn), the same share of every group: at least one, but never the last that is left."""
    rest: list[int] = []
    drawn: list[int] = []
    for members in _shuffled_groups(groups, seed).values():
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        drawn += members[:count]
        rest += members[count:]
    return sorted(rest), sorted(drawn)


def hold_out(labels: Sequence[int] | NDArray[np.int64], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split positions into (rest, held out), the same share of every class; at least one image of a class stays on each side.

    Raises:
        DataError: a class has a single image.
    """
    classes, counts = np.unique(np.asarray(labels), return_counts=True)
    if counts.min() < 2:
        raise DataError(
            f"class {classes[counts.argmin()]} has a single training image, so none can be held out for validation: "
            f"add images or a validation split"
        )
    return draw_share(labels, fraction, seed)


def limit(labels: Sequence[int] | NDArray[np.int64], count: int, seed: int) -> list[int]:
    """Positions of ``count`` images, drawn class by class in turn, so that classes are as equal as they can be.

    Raises:
        DataError: fewer images than classes.
    """
    classes = _shuffled_groups(labels, seed)
    if count < len(classes):
        raise DataError(f"train_limit={count} leaves some of the {len(classes)} classes without an image: raise it")
    # The n-th image of every class comes before the (n+1)-th of any.
    turns = sorted((turn, label, index) for label, members in classes.items() for turn, index in enumerate(members))
    return sorted(index for _, _, index in turns[:count])


def _shuffled_groups(groups: Sequence[int] | NDArray[np.int64], seed: int) -> dict[int, list[int]]:
    array = np.asarray(groups)
    random = np.random.RandomState(seed)  # its stream is frozen: the same split with every version of numpy
    order = np.argsort(array, kind="stable")
    found, starts = np.unique(array[order], return_index=True)
    members = np.split(order, starts[1:])
    return {int(group): random.permutation(part).tolist() for group, part in zip(found, members, strict=True)}
