"""What passes of several processes say: medians and speed-ups with an interval, and whether the machine was busy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rounds = Sequence[Sequence[float]]
"""Milliseconds of the passes of one network, process by process."""
BUSY = 0.15
"""Spread of the passes from which on the machine is taken to be busy."""
_DRAWS = 1000


def median_interval(rounds: Rounds, seed: int = 0) -> tuple[float, float]:
    """Where the median lies (ms): the 95 % intervals of the median in every process, together."""
    return _hull([(np.asarray(times, dtype=np.float64),) for times in rounds], lambda drawn: np.median(drawn[0], axis=1), seed)


def ratio_interval(reference: Rounds, other: Rounds, seed: int = 0) -> tuple[float, float]:
    """Where the reference's median over the other's lies, likewise.

    Passes are drawn again, with replacement, turn by turn: the networks' passes of one turn stay together, so that what slowed
    both down doesn't count. A process that was slower for one of them widens what is told.
    """
    pairs = [(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)) for a, b in zip(reference, other, strict=True)]
    return _hull(pairs, lambda drawn: np.median(drawn[0], axis=1) / np.median(drawn[1], axis=1), seed)


def _hull(rounds: Sequence[tuple[Floats, ...]], figure: Callable[[tuple[Floats, ...]], Floats], seed: int) -> tuple[float, float]:
    """From the lowest to the highest end of the processes' intervals."""
    generator = np.random.default_rng(seed)
    ends: list[tuple[float, float]] = []
    for times in rounds:
        drawn = generator.integers(len(times[0]), size=(_DRAWS, len(times[0])))
        low, high = np.quantile(figure(tuple(each[drawn] for each in times)), [0.025, 0.975]).tolist()
        ends.append((low, high))
    return min(low for low, _ in ends), max(high for _, high in ends)


def spread(rounds: Rounds) -> float:
    """From the 10th to the 90th percentile of all passes, as a share of the median."""
    low, middle, high = np.quantile(np.concatenate([np.asarray(times) for times in rounds]), [0.1, 0.5, 0.9]).tolist()
    return (high - low) / middle


def verdict(interval: tuple[float, float]) -> str:
    """What an interval of a speed-up allows to say: faster, slower, or no difference shown."""
    low, high = interval
    return "faster" if low > 1 else "slower" if high < 1 else "no difference shown"
