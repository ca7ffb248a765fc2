"""The table of allocators, and `allocate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prunus.allocation import hand_set, ranking
from prunus.allocation.by_sensitivity import by_sensitivity
from prunus.allocation.knapsack import knapsack
from prunus.allocation.latency import LatencyModel
from prunus.allocation.netadapt import netadapt
from prunus.allocation.search import search
from prunus.errors import BudgetNotMet, UnknownName
from prunus.types import Allocator, Budget, ChannelGraph, PruningPlan, Scores

Evaluate = Callable[[PruningPlan], float]
DEFAULT = "auto"
"""The allocator where none is named."""


@dataclass(frozen=True)
class AllocatorRow:
    """A row of `ALLOCATORS`. ``options``: names of the function's keyword options; ``bound``: those that were given; ``asks``:
    which of ``evaluate`` and ``measure`` its function takes besides scores and costs, as keywords that may be None."""

    name: str
    function: Callable[..., PruningPlan]
    options: tuple[str, ...] = ()
    bound: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
    asks: frozenset[str] = frozenset()

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    @property
    def tries_plans(self) -> bool:
        """Whether it needs ``evaluate``: not where an option tells what an earlier scan or search found."""
        return "evaluate" in self.asks and not {"points", "result"} & self.bound.keys()

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
        handed_in = {name: value for name, value in (("evaluate", evaluate), ("measure", measure)) if name in self.asks}
        return self.function(graph, scores, budget, **handed_in, **self.bound)

    def with_options(self, options: Mapping[str, Any]) -> AllocatorRow:
        """The row with these options bound; `UnknownName` for one that it doesn't have."""
        for name in options:
            if not self.options:
                raise UnknownName(f"unknown option of allocator {self.name} {name!r}: it takes none")
            if name not in self.options:
                raise UnknownName.among(f"option of allocator {self.name}", name, self.options)
        return replace(self, bound={**self.bound, **options})


def suited(graph: ChannelGraph, scores: Scores, budget: Budget) -> PruningPlan:
    """What measured best for such scores: ``global_per_cost`` where groups compare, else ``uniform``; for latency ``knapsack``.

    Scores of one scale say which group can spare channels; others, even divided by their group's mean, say so worse than no
    answer at all (docs/adr/0028). No order of single channels follows the steps of latency. The plan names what was taken.
    """
    if budget.latency is not None:
        return knapsack(graph, scores, budget)
    return (ranking.global_per_cost if scores.comparable else ranking.uniform)(graph, scores, budget)


ALLOCATORS: dict[str, AllocatorRow] = {
    row.name: row
    for row in (
        AllocatorRow(DEFAULT, suited),
        AllocatorRow("uniform", ranking.uniform),
        AllocatorRow("global", ranking.global_ranking),
        AllocatorRow("global_per_cost", ranking.global_per_cost),
        AllocatorRow("knapsack", knapsack),
        AllocatorRow("per_layer", hand_set.per_layer, ("ratios", "fixed")),
        AllocatorRow("thresholds", hand_set.thresholds, ("thresholds", "fixed")),
        AllocatorRow("mean_minus_deviations", hand_set.mean_minus_deviations),
        AllocatorRow(
            "sensitivity",
            by_sensitivity,
            ("points", "shares", "epsilon", "fixed"),
            asks=frozenset({"evaluate"}),
        ),
        AllocatorRow("netadapt", netadapt, ("rounds", "decay", "step", "rule"), asks=frozenset({"evaluate"})),
        AllocatorRow("search", search, ("result", "trials", "sampler", "lowest", "seed"), asks=frozenset({"evaluate"})),
    )
}


def resolve_allocator(allocator: str | Allocator, options: Mapping[str, Any]) -> Allocator:
    """The allocator of this name and options; an object is taken as it is.

    Raises:
        UnknownName: no such allocator or option, or an object that isn't an allocator.
    """
    if not isinstance(allocator, str):
        if options:
            raise UnknownName(f"options {sorted(options)} are for allocators that are given by name")
        if not callable(getattr(allocator, "allocate", None)):
            raise UnknownName(
                f"{allocator!r} is no allocator: give a name ({', '.join(ALLOCATORS)}), or an object with a method allocate "
                "(see prunus.types.Allocator); left out, it is auto"
            )
        return allocator
    if allocator not in ALLOCATORS:
        raise UnknownName.among("allocator", allocator, ALLOCATORS)
    return ALLOCATORS[allocator].with_options(options)


def allocate(
    graph: ChannelGraph,
    scores: Scores,
    budget: Budget,
    allocator: str | Allocator = DEFAULT,
    *,
    evaluate: Evaluate | None = None,
    measure: Evaluate | None = None,
    **options: Any,
) -> PruningPlan:
    """Decide how many and which channels stay, so that every target of ``budget`` holds, from below and within its tolerance.

    Args:
        allocator: a name from `ALLOCATORS`, with its ``options``, e.g. ``"per_layer", ratios={"layer1.*": 1, "layer4.*": 2}``; or
            your own `Allocator`.

    Raises:
        UnknownName: no such allocator or option.
        NothingPruned: all groups are frozen or at their floors, or the network already meets the budget.
        BudgetNotMet: even the smallest allowed network costs more, or channels are too coarse to come close;
            ``plan`` is the nearest.
    """
    chosen = resolve_allocator(allocator, options)
    while True:
        try:
            return chosen.allocate(graph, scores, budget, evaluate=evaluate, measure=measure)
        except BudgetNotMet:  # with the widths that the runtime likes: try half of their multiple
            model = graph.cost_model.relaxed() if budget.liked_widths and isinstance(graph.cost_model, LatencyModel) else None
            if model is None:
                raise
            graph = replace(graph, cost_model=model)
