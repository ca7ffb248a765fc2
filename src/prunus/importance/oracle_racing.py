"""The oracle with less work: channels that are surely not among the lowest are left alone early."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sized
from typing import cast

import torch
from torch import Tensor, nn

from prunus.errors import PrunusWarning
from prunus.importance.evidence import DataRun
from prunus.importance.oracle_batches import Ablation, Batch
from prunus.types import ChannelGraph

LOWEST = 0.1
"""The share of all channels that the race looks for."""
OVERLAP = 0.95
"""It ends once so much of that set is certain."""
FIRST_CHECK = 4
"""Minibatches before anything is decided; the next decisions are at 6, 9, 13, ..."""
DEVIATIONS = 2.0
"""Half a confidence interval in standard errors of the mean."""
SHARE = 0.1
"""At most this share of the full oracle's evaluations is spent, where the number of minibatches is known."""


class Race:
    """Running means of the loss change of every channel, and which channels the next minibatch still needs.

    A channel is out of the race when its confidence interval lies wholly above the k-th lowest upper bound (it isn't among the k
    lowest), or wholly below the (k+1)-th lowest lower bound (it is). Intervals are those of the absolute mean.
    """

    def __init__(self, num_channels: int, lowest: int) -> None:
        self.lowest = lowest
        self.count = torch.zeros(num_channels, dtype=torch.float64)
        self.mean = torch.zeros(num_channels, dtype=torch.float64)
        self.squares = torch.zeros(num_channels, dtype=torch.float64)  # sum of squared deviations from the mean
        self.active = torch.ones(num_channels, dtype=torch.bool)

    def add(self, channels: Tensor, values: Tensor) -> None:
        """One more value of each of these channels (int64), by Welford's update."""
        self.count[channels] += 1
        away = values - self.mean[channels]
        self.mean[channels] += away / self.count[channels]
        self.squares[channels] += away * (values - self.mean[channels])

    def decide(self) -> None:
        """Take decided channels out of the race."""
        if not 0 < self.lowest < len(self.mean):
            self.active[:] = False
            return
        error = DEVIATIONS * (self.squares / (self.count - 1).clamp_min(1) / self.count.clamp_min(1)).sqrt()
        low, high = (self.mean.abs() - error).clamp_min(0), self.mean.abs() + error
        last_in = high.kthvalue(self.lowest).values
        first_out = low.kthvalue(self.lowest + 1).values
        above, below = low > last_in, high < first_out
        self.active &= ~(above | below)
        undecided = int(self.active.sum())
        places = self.lowest - int((~self.active & (self.mean.abs() <= last_in)).sum())
        if min(places, undecided - places) <= (1 - OVERLAP) * self.lowest:  # so many of the set can be wrong at most
            self.active[:] = False


def raced_loss_changes(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Loss changes by silencing each channel alone, on as many minibatches as it takes: group name -> float64 (num_channels,).

    Successive elimination: all channels see the first `FIRST_CHECK` minibatches, then only those of which it isn't clear, at
    `DEVIATIONS` standard errors, whether they are among the `LOWEST` tenth by absolute change. It ends when that set is certain
    (but for `OVERLAP` and chance), or, with a warning, when `SHARE` of the full oracle's evaluations is spent; channels that left
    early are estimated roughly. The minibatches should be in random order; how many there are is ``batches`` or the length of
    ``data``.

    Raises:
        EvidenceError: the data are empty or a loss isn't finite.
    """
    return race(Ablation(model, graph, run, shared=True))[0]


def race(ablation: Ablation) -> tuple[dict[str, Tensor], Race]:
    """The mean loss changes by group, and the race they came from."""
    with ablation() as batches:
        batch: Batch | None = next(batches)
        sizes = dict(ablation.sizes)
        starts = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0).tolist(), strict=False))
        total = sum(sizes.values())
        found = Race(total, max(1, math.floor(LOWEST * total + 1e-9)))
        budget = SHARE * total * _number_of_batches(ablation.run)
        check, seen = FIRST_CHECK, 0
        while batch is not None:
            for name, size in sizes.items():
                channels = found.active[starts[name] : starts[name] + size].nonzero()[:, 0]
                if len(channels):
                    found.add(channels + starts[name], ablation.changes(batch, name, channels))
            seen += 1
            if seen == check:
                found.decide()
                check += max(1, check // 2)
            spent = float(found.count.sum()) + int(found.active.sum())
            over = seen >= FIRST_CHECK and spent > budget
            batch = next(batches, None) if bool(found.active.any()) and not over else None
            if over and bool(found.active.any()):
                _warn_of_undecided(int(found.active.sum()), found.lowest, total)
    return {name: found.mean[starts[name] : starts[name] + size] for name, size in sizes.items()}, found


def _warn_of_undecided(undecided: int, lowest: int, total: int) -> None:
    text = (
        f"the race for the {lowest} lowest of {total} channels ended at its budget with {undecided} channels undecided: these "
        "are ranked by their estimates; give more data, or racing=False for the full oracle"
    )
    warnings.warn(text, PrunusWarning, stacklevel=5)


def _number_of_batches(run: DataRun) -> float:
    """How many minibatches the full oracle would see; infinite where nobody knows."""
    length = len(cast("Sized", run.data)) if isinstance(run.data, Sized) else math.inf
    return min(length, math.inf if run.batches is None else run.batches)
