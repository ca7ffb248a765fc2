"""Measurements for latency budgets on this machine: layers against width, kept on disk, and whole networks in fresh processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from torch import nn

from prunus.budgets import EXPORTED, Timing
from prunus.errors import InvalidBudget
from prunus.export.fresh_process import NetworkTimer
from prunus.export.layer_timing import LayerShape, time_layer
from prunus.export.runtimes import Latency
from prunus.export.time_cache import TimeCache, cache_folder
from prunus.pipeline.machine import timing_environment

FRACTIONS = {1: (1 / 8, 1 / 4, 1 / 2, 3 / 4), 2: (1 / 8, 3 / 8, 2 / 3)}
"""Where a layer is measured besides its full width, by the number of its widths that can change."""
_PROBES = 3
_MULTIPLES = (1, 2, 4, 8, 16)
_WIDEST = 32
_AS_FAST = 1.04
"""A multiple is liked where its widths take at most so much more time than the line between multiples of 32."""


class Timer(Protocol):
    """What measures: the machine, or what stands for it in a test."""

    def layer(self, shape: LayerShape, widths: Sequence[tuple[int, int]]) -> list[float]:
        """Milliseconds of a layer at these (reads, writes)."""
        ...

    def networks(self, networks: Mapping[str, nn.Module]) -> Mapping[str, Latency]:
        """Latency of whole networks, in turns."""
        ...


class MachineTimer:
    """The machine that Prunus runs on."""

    def __init__(self, inputs: Any, runtime: str, timing: Timing, *, fresh: bool = False) -> None:
        """``fresh``: measure layers even where their times are known, and keep the new ones.

        Raises:
            InvalidBudget: the runtime doesn't have what ``timing`` asks for.
        """
        timing.check(runtime)
        self.runtime, self.timing, self._fresh = runtime, timing, fresh
        self._networks = NetworkTimer(inputs, runtime, timing)
        # The compiler calls eager PyTorch's convolutions, so that both share what was measured.
        about = {
            **timing_environment(runtime),
            "runtime": runtime if runtime in EXPORTED else "eager",
            "threads": timing.threads,
            "dtype": timing.dtype,
            "channels_last": timing.channels_last,
        }
        self.cache = TimeCache(cache_folder(timing.cache), about)

    @property
    def in_fresh_process(self) -> bool:
        """Whether networks are timed in processes of their own."""
        return self._networks.fresh

    def __enter__(self) -> MachineTimer:
        return self

    def __exit__(self, *_: object) -> None:
        self._networks.__exit__()

    def layer(self, shape: LayerShape, widths: Sequence[tuple[int, int]]) -> list[float]:
        """See `Timer`; times that the cache knows aren't measured again."""
        key = shape.key()
        missing = [pair for pair in widths if self._fresh or self.cache.get(key, *pair) is None]
        if missing:
            self.cache.add(key, dict(zip(missing, time_layer(shape, missing, self.runtime, self.timing), strict=True)))
        return [self.cache.get(key, *pair) or 0.0 for pair in widths]

    def networks(self, networks: Mapping[str, nn.Module]) -> Mapping[str, Latency]:
        """See `Timer`."""
        return self._networks(networks)


def entered(timer: Timer) -> AbstractContextManager[Any]:
    """A timer as a context manager, whether it needs one or not."""
    return timer if isinstance(timer, AbstractContextManager) else nullcontext(timer)


def widths_to_measure(shape: LayerShape, vary: tuple[bool, bool]) -> tuple[list[int], list[int]]:
    """Points on the axes of reads and of writes; ``vary``: which of them pruning can change."""
    fractions = FRACTIONS[max(1, sum(vary))]
    step = 1 if shape.depthwise else shape.groups
    reads = _points(shape.reads, fractions, 1) if vary[0] else [shape.reads]
    return reads, _points(shape.writes, fractions, step) if vary[1] else [shape.writes]


def _points(full: int, fractions: Sequence[float], step: int) -> list[int]:
    """Widths at these fractions, as multiples of 16 where the layer is wide enough, of 8 or 4 where it isn't."""
    grid = next((m for m in (16, 8, 4) if full >= 4 * m and m % step == 0), step)
    return sorted({min(full, max(grid, round(full * share / grid) * grid)) for share in fractions} | {full})


def liked_multiple(timer: Timer, shapes: Sequence[LayerShape]) -> int:
    """The smallest multiple whose widths lie on the line between multiples of 32 in the heaviest plain convolutions (``shapes``,
    heaviest first), reads and writes alike: 1 where every width is as good."""
    plain = [s for s in shapes if s.groups == 1 and min(s.reads, s.writes) >= 2 * _WIDEST][:_PROBES]
    excesses = [_excess(timer, shape, axis) for shape in plain for axis in (0, 1)]
    if not excesses:
        return 1
    means = {multiple: sum(found[multiple] for found in excesses) / len(excesses) for multiple in _MULTIPLES}
    return next((multiple for multiple in _MULTIPLES if means[multiple] <= _AS_FAST), _WIDEST)


def _excess(timer: Timer, shape: LayerShape, axis: int) -> dict[int, float]:
    """How far widths between 32 and 64 are above the line between these two, by the largest multiple that they have."""
    widths = {multiple: [_WIDEST + multiple, 2 * _WIDEST - multiple] for multiple in _MULTIPLES}
    every = [_WIDEST, 2 * _WIDEST, *(width for pair in widths.values() for width in pair)]
    pairs = [(w, shape.writes) if axis == 0 else (shape.reads, w) for w in dict.fromkeys(every)]
    ms = {pair[axis]: value for pair, value in zip(pairs, timer.layer(shape, pairs), strict=True)}

    def above(width: int) -> float:
        return ms[width] / np.interp(width, (_WIDEST, 2 * _WIDEST), (ms[_WIDEST], ms[2 * _WIDEST]))

    return {multiple: float(np.mean([above(width) for width in pair])) for multiple, pair in widths.items()}


def check_device(model: nn.Module) -> None:
    """Raise `InvalidBudget` for a network that isn't on the CPU, where all runtimes run."""
    elsewhere = {p.device.type for p in model.parameters()} - {"cpu"}
    if elsewhere:
        raise InvalidBudget(
            f"latency is measured on the CPU, but the network is on {', '.join(sorted(elsewhere))}: move it first"
        )
