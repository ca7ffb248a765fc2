"""Sparse activation gradients: small ones are set to zero at random, so that their mean stays right."""

from __future__ import annotations

from collections import deque
from statistics import NormalDist

import torch
from torch import Tensor


def threshold_of_normal(gradient: Tensor, share: float) -> float:
    """The threshold below which a ``share`` in (0, 1) of the gradient's magnitudes lies, if they are those of a normal law.

        sigma = sqrt(pi / 2) * mean abs(g),   tau = Phi^-1((1 + share) / 2) * sigma

    Ye et al., ECCV 2020 (from memory: the algorithm is unverified, its constants are checked). ``share`` is what lies below tau,
    not what becomes zero: of 90 % below it 54 % do.
    """
    deviation = (torch.pi / 2) ** 0.5 * float(gradient.abs().mean())
    return NormalDist().inv_cdf((1 + share) / 2) * deviation


def prune_gradient(gradient: Tensor, threshold: float, generator: torch.Generator | None = None) -> Tensor:
    """Gradients below the threshold become ``threshold * sign(g)`` with probability abs(g) / threshold, else zero: a new tensor.

    The expectation of every entry is the entry itself; those at or above the threshold stay as they are.
    """
    if threshold <= 0:
        return gradient.clone()
    drawn = torch.rand(gradient.shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
    kept = torch.where(drawn * threshold < gradient.abs(), threshold * gradient.sign(), torch.zeros_like(gradient))
    return torch.where(gradient.abs() < threshold, kept, gradient)


class ThresholdForecast:
    """The threshold of a step, forecast as the mean of the last ones, so that a gradient is looked at once only.

    Args:
        length: how many thresholds are remembered (5; unverified).
    """

    def __init__(self, length: int = 5) -> None:
        self._last: deque[float] = deque(maxlen=length)

    @property
    def threshold(self) -> float | None:
        """The forecast, or None until there are enough thresholds: nothing is pruned before."""
        full = len(self._last) == self._last.maxlen
        return sum(self._last) / len(self._last) if full else None

    def push(self, threshold: float) -> None:
        """The threshold that the step's own gradient had."""
        self._last.append(threshold)
