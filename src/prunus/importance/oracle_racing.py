"""The oracle with less work: channels that are surely not among the lowest are left alone early."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PrunusWarning
from prunus.importance.evidence import DataRun, NoGradient, gate_derivatives
from prunus.importance.oracle_batches import Ablation, Batch
from prunus.importance.oracle_sample import Sample
from prunus.types import ChannelGraph, first_tensor

LOWEST = 0.1
"""The share of all channels that the race looks for."""
OVERLAP = 0.95
"""It ends once so much of that set is certain."""
FIRST = 0.04
"""Share of the minibatches in the first sample, before anything is decided, but at least `FEWEST`."""
FEWEST = 4
GROWTH = 1.4
"""By how much the sample grows from one decision to the next."""
DEVIATIONS = 1.75
"""Half a confidence interval in standard errors of the mean."""
SHARE = 0.1
"""At most this share of the full oracle's evaluations is spent."""


class Race:
    """What is known of every channel's mean loss change, and which channels the next sample still needs.

    A channel is out of the race when its confidence interval lies wholly above the k-th lowest upper bound (it isn't among the k
    lowest), or wholly below the (k+1)-th lowest lower bound (it is). Intervals are those of the absolute mean.
    """

    def __init__(self, num_channels: int, lowest: int) -> None:
        self.lowest = lowest
        self.mean = torch.zeros(num_channels, dtype=torch.float64)
        self.error = torch.full((num_channels,), torch.inf, dtype=torch.float64)
        self.active = torch.ones(num_channels, dtype=torch.bool)

    def decide(self) -> None:
        """Take decided channels out of the race."""
        if not 0 < self.lowest < len(self.mean):
            self.active[:] = False
            return
        margin = DEVIATIONS * self.error
        low, high = (self.mean.abs() - margin).clamp_min(0), self.mean.abs() + margin
        last_in = high.kthvalue(self.lowest).values
        first_out = low.kthvalue(self.lowest + 1).values
        self.active &= ~((low > last_in) | (high < first_out))
        undecided = int(self.active.sum())
        places = self.lowest - int((~self.active & (self.mean.abs() <= last_in)).sum())
        if min(places, undecided - places) <= (1 - OVERLAP) * self.lowest:  # so many of the set can be wrong at most
            self.active[:] = False


@dataclass(frozen=True, eq=False)
class RaceResult:
    """``changes``: estimated mean loss changes, group name -> float64 (num_channels,). ``evaluations``: of one channel on one
    minibatch each, of ``all_evaluations`` that the full oracle takes. ``undecided``: channels still in the race at its end."""

    changes: dict[str, Tensor]
    evaluations: int
    all_evaluations: int
    undecided: int


def raced_loss_changes(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Loss changes by silencing each channel alone, on as many minibatches as it takes: group name -> float64 (num_channels,).

    Successive elimination on a growing sample of the minibatches (`Sample`): all channels see the first one, then only those of
    which it isn't clear, at `DEVIATIONS` standard errors, whether they are among the `LOWEST` tenth by absolute change. It ends
    when that set is certain (but for `OVERLAP` and chance), or, with a warning, when `SHARE` of the full oracle's evaluations is
    spent; channels that left early are estimated roughly. One backward pass of every minibatch tells beforehand, to first
    order, where losses will change: such minibatches are drawn more often, and only what that straight line misses is estimated
    from the sample. All minibatches are held in memory.

    Raises:
        EvidenceError: the data are empty or a loss isn't finite.
    """
    return race(model, graph, run).changes


def race(model: nn.Module, graph: ChannelGraph, run: DataRun) -> RaceResult:
    """The race: its estimates and what they took."""
    held: list[Any] = []
    asked: list[int] = [0]  # the ablation learns from its first minibatch which groups it can silence
    ablation = Ablation(model, graph, replace(run, data=_asked_for(run, held, asked), batches=None), shared=True)
    with ablation() as batches:
        first = next(batches)
        sizes = dict(ablation.sizes)
        if not sizes:
            return RaceResult({}, 0, 0, 0)
        predicted = ablation.agreed(lambda: _predictions(model, graph, replace(run, data=held, batches=None), sizes))
        sample = Sample(predicted, _examples(held), run.seed)
        found = Race(len(predicted), max(1, math.floor(LOWEST * len(predicted) + 1e-9)))
        everything = predicted.numel()
        size = max(FEWEST, FIRST * len(held))
        while bool(found.active.any()):
            affordable = int((SHARE * everything - ablation.evaluations) // int(found.active.sum()))
            new = sample.grow(round(size) if sample.drawn == 0 else min(round(size), sample.drawn + affordable))
            if not new:
                break
            for index in new:
                batch = first if index == 0 else _next(batches, asked, index)
                for name, channels, rows in _active(sizes, found.active):
                    sample.add(index, rows, ablation.changes(batch, name, channels))
            rows = found.active.nonzero()[:, 0]
            found.mean[rows], found.error[rows] = sample.estimate(rows)
            found.decide()
            size *= GROWTH
    undecided = int(found.active.sum()) if sample.drawn < len(held) else 0
    if undecided:
        _warn_of_undecided(undecided, found.lowest, len(found.mean))
    changes = dict(zip(sizes, found.mean.split(list(sizes.values())), strict=True))
    return RaceResult(changes, ablation.evaluations, everything, undecided)


def _asked_for(run: DataRun, held: list[Any], asked: list[int]) -> Iterator[Any]:
    """Hold all minibatches; yield those whose numbers are asked for, one after the other."""
    held.extend(run)
    while asked:
        yield held[asked.pop(0)]


def _active(sizes: dict[str, int], active: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Groups with active channels: name, the channels' numbers in the group and among all channels (int64)."""
    start = 0
    for name, size in sizes.items():
        channels = active[start : start + size].nonzero()[:, 0]
        if len(channels):
            yield name, channels, channels + start
        start += size


def _next(batches: Iterator[Batch], asked: list[int], index: int) -> Batch:
    asked.append(index)
    return next(batches)


def _predictions(model: nn.Module, graph: ChannelGraph, run: DataRun, sizes: dict[str, int]) -> Tensor:
    """First-order loss changes of gates that go from one to zero, float64 (channels, minibatches); zero where none is known."""
    try:
        found = list(gate_derivatives(model, graph, run))
    except NoGradient:  # the oracle takes any loss
        found = []
    found = found or [dict[str, Tensor]() for _ in run]
    none = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
    return torch.stack([-torch.cat([d.get(name, none[name]).cpu() for name in sizes]) for d in found], dim=1)


def _examples(held: list[Any]) -> Tensor:
    """Examples in every minibatch: float64 (minibatches,)."""
    inputs = [first_tensor(batch) for batch in held]
    return torch.tensor([len(x) if x is not None and x.ndim else 1 for x in inputs], dtype=torch.float64)


def _warn_of_undecided(undecided: int, lowest: int, total: int) -> None:
    text = (
        f"the race for the {lowest} lowest of {total} channels ended at its budget with {undecided} channels undecided: these "
        "are ranked by their estimates; give more data, or racing=False for the full oracle"
    )
    warnings.warn(text, PrunusWarning, stacklevel=5)
