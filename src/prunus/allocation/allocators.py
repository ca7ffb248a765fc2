"""The table of allocators, and `allocate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunus.allocation import ranking
from prunus.allocation.knapsack import knapsack
from prunus.errors import UnknownName
from prunus.types import Allocator, Budget, ChannelGraph, PruningPlan, Scores

Evaluate = Callable[[PruningPlan], float]


@dataclass(frozen=True)
class AllocatorRow:
    """A row of `ALLOCATORS` that needs nothing but scores and costs."""

    name: str
    function: Callable[[ChannelGraph, Scores, Budget], PruningPlan]

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def allocate(
        self,
        graph: ChannelGraph,
        scores: Scores,
        budget: Budget,
        *,
        evaluate: Evaluate | None = None,
        measure: Evaluate | None = None,
    ) -> PruningPlan:
        """A plan that meets the budget from below; ``evaluate`` and ``measure`` are for allocators that search."""
        return self.function(graph, scores, budget)


ALLOCATORS: dict[str, AllocatorRow] = {
    row.name: row
    for row in (
        AllocatorRow("uniform", ranking.uniform),
        AllocatorRow("global", ranking.global_ranking),
        AllocatorRow("global_per_cost", ranking.global_per_cost),
        AllocatorRow("knapsack", knapsack),
    )
}


def allocate(
    graph: ChannelGraph,
    scores: Scores,
    budget: Budget,
    allocator: str | Allocator = "global",
    *,
    evaluate: Evaluate | None = None,
    measure: Evaluate | None = None,
) -> PruningPlan:
    """Decide how many and which channels stay, so that every target of ``budget`` holds, from below and within its tolerance.

    Raises:
        UnknownName: no such allocator.
        NothingPruned: all groups are frozen or at their floors, or the network already meets the budget.
        BudgetNotMet: even the smallest allowed network costs more, or channels are too coarse to come close;
            ``plan`` is the nearest.
    """
    if isinstance(allocator, str):
        if allocator not in ALLOCATORS:
            raise UnknownName.among("allocator", allocator, ALLOCATORS)
        allocator = ALLOCATORS[allocator]
    return allocator.allocate(graph, scores, budget, evaluate=evaluate, measure=measure)
