"""Iterative pruning: how much every round removes, and which scores the next one remembers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from prunus.allocation import AllocatorRow, allocate, resolve_allocator
from prunus.budgets import Budget
from prunus.config import PruneConfig
from prunus.importance import kept
from prunus.pipeline.pace import absolute
from prunus.types import Allocator, ChannelGraph, Cost, PruningPlan, Scores


@dataclass(frozen=True)
class Round:
    """What one round is asked for."""

    budget: Budget
    allocator: Allocator


def plan_round(settings: PruneConfig, full: ChannelGraph, number: int, carried: int = 0) -> Round:
    """Round ``number``, from 1. The recipe's budget is a share of the network before the first round, ``full``, and so are the
    largest shares that groups may lose. ``carried``: bytes of the record of earlier rounds, which the file holds as well.

    With a number of rounds, costs go down at the recipe's ``pace``. With ``channels_per_round`` (the global removal of a fixed
    count of Molchanov 2016 and 2019) every round removes so many channels, or fewer once the budget can be met.
    """
    allocator = resolve_allocator(settings.allocator, settings.allocator_options)
    if settings.channels_per_round is not None:
        return Round(
            absolute(settings.to_budget(), full, carried=carried), ChannelsPerRound(allocator, settings.channels_per_round)
        )
    return Round(absolute(settings.to_budget(), full, number / settings.rounds, settings.pace, carried), allocator)


def meets(settings: PruneConfig, full: ChannelGraph, cost: Cost, channels: int, carried: int = 0) -> bool:
    """Whether a network that costs so much and has so many prunable channels left needs no further round."""
    final, costs = absolute(settings.to_budget(), full, carried=carried), {**asdict(cost), "channels": channels}
    return all(costs[target] <= final.limit(target, 0) for target in final.targets if target != "latency")


@dataclass(frozen=True)
class ChannelsPerRound:
    """Removes ``count`` channels the way ``inner`` does, or fewer if that meets the budget."""

    inner: Allocator
    count: int

    def allocate(
        self,
        graph: ChannelGraph,
        scores: Scores,
        budget: Budget,
        *,
        evaluate: Callable[[PruningPlan], float] | None = None,
        measure: Callable[[PruningPlan], float] | None = None,
    ) -> PruningPlan:
        """The plan that meets ``budget`` if it removes at most ``count`` channels, else the one that removes ``count``.

        Where widths are multiples of something, that is the next number above ``count`` that they allow.
        """
        plan = allocate(graph, scores, budget, self.inner, evaluate=evaluate, measure=measure)
        if removed_channels(plan) <= self.count:
            return plan
        only_channels = dict.fromkeys(budget.targets) | {"channels": graph.num_prunable_channels - self.count}
        return allocate(graph, scores, replace(budget, tolerance=0.99, **only_channels), self.inner, evaluate=evaluate)


def tries_plans(allocator: Allocator) -> bool:
    """Whether this allocator, as it is set, needs the accuracies of plans."""
    inner = allocator.inner if isinstance(allocator, ChannelsPerRound) else allocator
    return isinstance(inner, AllocatorRow) and inner.tries_plans


def removed_channels(plan: PruningPlan) -> int:
    """Channels that ``plan`` takes out, over all groups."""
    return sum(int((~keep).sum()) for keep in plan.keep.values())


def remembered(scores: Scores, plan: PruningPlan) -> dict[str, Any]:
    """What a round leaves for the scores of the next one: those of the channels that ``plan`` keeps, exactly, as JSON."""
    left = kept(scores, plan)
    by_group = {name: values.tolist() for name, values in left.by_group.items()}
    return {"criterion": left.criterion, "comparable": left.comparable, "by_group": by_group}


def recalled(entry: dict[str, Any]) -> Scores:
    """The scores that `remembered` wrote down."""
    by_group = {name: torch.tensor(values, dtype=torch.float64) for name, values in entry["by_group"].items()}
    return Scores(by_group, entry["criterion"], entry["comparable"])
