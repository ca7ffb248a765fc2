"""Network Slimming: an L1 penalty on the scales of batch norms while the network trains, then the smallest scales go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunus.allocation import allocate
from prunus.sparsity.base import BaseMethod, NormScales
from prunus.types import Budget, PruningPlan, Scores

NEGLIGIBLE = 0.01
"""On the way a channel counts as gone when its scale is below this share of the largest: the subgradient gives no exact zeros."""


class NetworkSlimming(BaseMethod):
    """Add ``strength * sign(gamma)`` to the gradient of every batch norm's scales; the channels of the smallest scales go.

        dL/dgamma <- dL/dgamma + strength * sign(gamma)

    Liu et al., Network Slimming, ICCV 2017. A channel's strength is abs(gamma), averaged where several batch norms act on it
    (residual stages). Departures: exactly as many channels go as asked for, where the released code takes one more
    (``released``); every group keeps its floor (``min_channels``, ``max_pruning_ratio`` of the budget). Repeat it with
    ``prune.rounds``. In pre-activation networks and DenseNets ``prune.select_inputs`` (`prunus.surgery.select_streams`) gives the
    norms that read a stream channels of their own to lose.

    Args:
        strength: factor of the penalty.
        initial_scale: what scales that are all one (an untrained network's) start at; 0: they stay one.
        weight_decay: on the scales (the paper decays them like weights).
        percentile: share of all channels with scales that goes, in place of the budget's own amount, which must then hold;
            0: the budget decides.
        released: with ``percentile``: the rule of the released code, abs(gamma) <= t goes, t the scale at place
            int(N * percentile) of the sorted N.
    """

    name = "slimming"

    def __init__(
        self,
        *,
        strength: float = 1e-4,
        initial_scale: float = 0.5,
        weight_decay: float = 1e-4,
        percentile: float = 0.0,
        released: bool = False,
    ) -> None:
        self.strength, self.initial_scale, self.weight_decay = strength, initial_scale, weight_decay
        self.percentile, self.released = percentile, released

    def attach(self) -> None:
        """Find the scales."""
        self.scales = NormScales(self.model, self.graph, self.name)
        untrained = all(bool((scale == 1).all()) for scale in self.scales.parameters.values())
        if untrained and self.initial_scale:
            with torch.no_grad():
                for scale in self.scales.parameters.values():
                    scale.fill_(self.initial_scale)

    def parameter_options(self) -> Mapping[str, Mapping[str, Any]]:
        """Weight decay of the scales."""
        return {name: {"weight_decay": self.weight_decay} for name in self.scales.parameters}

    def after_backward(self) -> None:
        """The subgradient of the penalty."""
        for scale in self.scales.parameters.values():
            if scale.grad is not None:
                scale.grad.add_(scale.detach().sign(), alpha=self.strength)

    def strengths(self) -> dict[str, Tensor]:
        """Mean abs(gamma) of every channel."""
        return self.scales.strengths()

    def left(self) -> dict[str, Tensor]:
        """Channels whose scale isn't negligible beside the network's largest."""
        strengths = self.strengths()
        bound = NEGLIGIBLE * max(float(values.max()) for values in strengths.values())
        return {name: values > bound for name, values in strengths.items()}

    def plan(self, budget: Budget) -> PruningPlan:
        """The smallest scales of the whole network go: as many as the budget asks for, or the percentile."""
        if not self.percentile:
            return super().plan(budget)
        strengths = {name: values.double().cpu() for name, values in self.strengths().items()}
        cut = threshold(torch.cat(list(strengths.values())), self.percentile, released=self.released)
        scores = Scores(strengths, self.name, comparable=True)
        return allocate(self.graph, scores, budget, "thresholds", thresholds={"*": cut}, fixed=True)


def threshold(scales: Tensor, percentile: float, *, released: bool = False) -> float:
    """What scores below it goes, if a share ``percentile`` of ``scales`` (n,) is to go: exactly that many, or the released rule.

    The released code cuts at ``t = sort(scales)[int(n * percentile)]`` and keeps what is above t, so that t's own channel goes,
    too: of .1, .2, ... 1 at 70 % t is .8 and two stay; the exact rule keeps three.
    """
    ordered = scales.sort().values
    count = min(int(len(ordered) * percentile + 1e-9), len(ordered) - 1)
    smallest_kept = float(ordered[count])
    return math.nextafter(smallest_kept, math.inf) if released else max(smallest_kept, math.ulp(0.0))
