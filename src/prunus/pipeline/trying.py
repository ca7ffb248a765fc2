"""Plans that are tried out before one is chosen: what allocators that ask for an accuracy are handed."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from prunus.allocation import allocate
from prunus.importance import score
from prunus.surgery import remove
from prunus.surgery.prove import Checks, prove
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

JudgeFn = Callable[[nn.Module], float]


class PlansAreTried(Exception):
    """Says that an allocator came as far as its first plan to try out; raised by `stop_at_the_first_plan`."""


def stop_at_the_first_plan(plan: PruningPlan) -> float:
    """Stands for an accuracy where only what comes before trying is of interest: names, options, the reach of the budget."""
    raise PlansAreTried


def tried_out(model: nn.Module, graph: ChannelGraph, judge: JudgeFn) -> Callable[[PruningPlan], float]:
    """``evaluate`` (plan -> accuracy) for allocators: removes the plan's channels from a copy of ``model`` and judges that."""

    def evaluate_plan(plan: PruningPlan) -> float:
        return judge(remove(model, graph, plan)[0] if plan.num_removed else copy.deepcopy(model))

    return evaluate_plan


def provable(model: nn.Module, graph: ChannelGraph, checks: Checks) -> ChannelGraph:
    """The graph without the groups whose removal can't be shown to be exact, so that plans on the rest can be tried out."""
    random = score(model, graph, "random", seed=0)
    return prove(checks, graph, lambda graph: half(graph, random)).graph


def half(graph: ChannelGraph, scores: Scores) -> PruningPlan:
    """A plan that takes something from as many groups as it can."""
    known = Scores({g.name: scores.by_group[g.name] for g in graph.prunable}, scores.criterion, scores.comparable)
    return allocate(graph, known, Budget(channels=0.5, max_pruning_ratio=1.0, tolerance=0.99), "uniform")
