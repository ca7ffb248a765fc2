"""Which groups may lose all their channels: those of branches around which another way leads to every output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from prunus.graph.labels import LabelVector
from prunus.graph.tracer import LayerCall, Tracer

OUTPUT = "it is the network's output"
CONVOLUTIONS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
EMPTIABLE: tuple[type[nn.Module], ...] = (
    *CONVOLUTIONS,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)
"""Exactly these: a subclass may compute something else."""


class _Step(NamedTuple):
    """A weighted layer as a step from the groups it reads to those it writes (as bits); a source reads the network's input."""

    reads: int
    writes: int
    source: bool


def emptiable(tracers: Sequence[Tracer], group_of: npt.NDArray[np.int64], candidates: Sequence[int]) -> frozenset[int]:
    """The candidates (indices of groups) that may be emptied, all of them at once: every output can still be reached.

    Taken in order, so that of parallel branches the last one stays.
    """
    found = 0
    steps = {tuple(step for call in t.layers if (step := _step(call, group_of)) is not None): None for t in tracers}
    outputs = _bits(g for t in tracers for labels, why in t.frozen if why == OUTPUT for g in _groups(labels, group_of))
    wanted = [outputs & _reached(several, 0) for several in steps]
    if not all(wanted):
        return frozenset()
    for group in candidates:
        trial = found | 1 << group
        if all(ends & ~_reached(several, trial) == 0 for ends, several in zip(wanted, steps, strict=True)):
            found = trial
    return frozenset(group for group in candidates if found >> group & 1)


def _bits(groups: Iterable[int]) -> int:
    return sum(1 << group for group in set(groups))


def _step(call: LayerCall, group_of: npt.NDArray[np.int64]) -> _Step | None:
    if not call.weighted:
        return None
    reads, writes = (_bits(_groups(width, group_of)) for width in (call.reads, call.writes))
    if call.groups > 1 and not reads:
        return None  # every channel is filtered by itself: nothing new is reached
    return _Step(reads, writes, not reads)


def _groups(labels: LabelVector | int, group_of: npt.NDArray[np.int64]) -> frozenset[int]:
    if isinstance(labels, int):
        return frozenset()
    groups = group_of[labels[labels >= 0]]
    return frozenset(np.unique(groups[groups >= 0]).tolist())


def _reached(steps: Sequence[_Step], emptied: int) -> int:
    """Groups that still depend on the network's input, in the order of execution."""
    reached = 0
    for reads, writes, source in steps:
        if source or reads & reached:
            reached |= writes & ~emptied
    return reached
