"""A growing sample of minibatches, drawn where the loss is likely to change, and what it tells about the mean of all of them."""

from __future__ import annotations

import torch
from torch import Tensor

EVENLY = 0.1
"""Share of the drawing weight that all minibatches have alike: what is predicted may be wrong."""
_STEEPEST = 2.0
"""A prediction is stretched by at most this factor."""


class Sample:
    """Minibatches drawn one after the other, none twice, with a probability about proportional to their predicted effect.

    The order is that of sequential Poisson sampling (Ohlsson 1998): ascending u / size, with u uniform, so that a small sample is
    part of every larger one. Means are estimated by regression on the prediction, whose mean over all minibatches is known
    (Särndal, Swensson and Wretman 1992, chapter 6): slope x mean of the prediction + mean of what it misses in the sample, where
    a drawn minibatch counts by one over its probability.

    Args:
        predicted: of every channel on every minibatch, float64 (channels, minibatches).
        examples: how much each minibatch counts in the mean, float64 (minibatches,).
    """

    def __init__(self, predicted: Tensor, examples: Tensor, seed: int) -> None:
        self.predicted, self.examples = predicted, examples
        effect = predicted.square().mean(0).sqrt() * examples
        even = torch.ones_like(examples)
        self.sizes = EVENLY * even + (1 - EVENLY) * effect / effect.mean() if float(effect.sum()) > 0 else even
        numbers = torch.rand(len(examples), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.order: list[int] = (numbers / self.sizes).argsort().tolist()
        self.drawn = 0
        self._values = torch.full_like(predicted, torch.nan)

    def grow(self, size: int) -> list[int]:
        """Numbers of the minibatches that join a sample of ``size``."""
        new = self.order[self.drawn : size]
        self.drawn += len(new)
        return new

    def add(self, minibatch: int, channels: Tensor, values: Tensor) -> None:
        """The measured values (n,) of these channels (int64) on one minibatch."""
        self._values[channels, minibatch] = values

    def estimate(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over all minibatches and its standard error for channels with values on the whole sample: float64 (n,) each."""
        drawn = torch.tensor(self.order[: self.drawn])
        probability = inclusion(self.sizes, self.drawn)[drawn]
        counts = self.examples[drawn] / probability
        values, predicted = self._values[channels][:, drawn], self.predicted[channels][:, drawn]
        steepness = (values * predicted * counts).sum(1) / (predicted.square() * counts).sum(1).clamp_min(1e-300)
        slope = steepness.clamp(0, _STEEPEST)[:, None]
        missed = values - slope * predicted
        mean_missed = (missed * counts).sum(1) / counts.sum()
        mean = slope[:, 0] * (self.predicted[channels] @ self.examples) / self.examples.sum() + mean_missed
        spread = (1 - probability) * (counts * (missed - mean_missed[:, None])).square()
        few = self.drawn / max(self.drawn - 1, 1)
        return mean, (spread.sum(1) * few).sqrt() / counts.sum()


def inclusion(sizes: Tensor, expected: float) -> Tensor:
    """Probabilities proportional to ``sizes``, at most one, that add up to ``expected``: float64 (n,)."""
    certain = torch.zeros(len(sizes), dtype=torch.bool)
    while True:
        rest = sizes[~certain].sum()
        share = torch.where(certain, torch.ones_like(sizes), sizes * (expected - int(certain.sum())) / rest.clamp_min(1e-300))
        if bool((share <= 1 + 1e-12).all()):
            return share.clamp(max=1)
        certain |= share > 1
