"""How far a budget's targets can go in a network, before anything is scored or removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from prunus.allocation.widths import Widths, allowed_widths, check_closed_form, check_limits
from prunus.errors import NothingPruned
from prunus.types import Budget, ChannelGraph, Scores


@dataclass(frozen=True)
class Reach:
    """One target: what the ``smallest`` allowed network costs, what is ``asked`` for, what the ``full`` network costs."""

    target: str
    smallest: float
    asked: float
    full: float

    @property
    def reachable(self) -> bool:
        """Whether the smallest allowed network is within the target."""
        return self.smallest <= self.asked


def reach(graph: ChannelGraph, budget: Budget) -> tuple[Reach, ...]:
    """A row for every target of ``budget``; the smallest network is the same for all of them: every group at its floor.

    Raises:
        InvalidBudget: a target that has no closed form (latency, unless the graph was timed).
        UnknownName: a limit that fits no group.
    """
    check_closed_form(graph, budget)
    check_limits(graph, budget)
    ones = {group.name: torch.ones(group.num_channels) for group in graph.prunable}
    liked, may_go = graph.cost_model.multiples, graph.emptiable
    widths = {g.name: allowed_widths(g, ones[g.name], budget, g.name in may_go, liked).levels for g in graph.prunable}
    floors = {name: levels[-1] for name, levels in widths.items()}
    rows: list[Reach] = []
    for target in budget.targets:
        if target == "channels":
            full, smallest = (
                float(sum(kept[g.name] * g.width_factor for g in graph.prunable))
                for kept in ({g.name: g.num_channels for g in graph.prunable}, floors)
            )
        else:
            full, smallest = (
                float(graph.cost_model.costs(list(kept), np.array([list(kept.values())], dtype=np.float64))[target][0])
                for kept in (dict[str, int](), floors)
            )
        rows.append(Reach(target, smallest, budget.limit(target, full), full))
    return tuple(rows)


def check_reach(graph: ChannelGraph, budget: Budget) -> None:
    """Raise `BudgetNotMet`, naming the groups that hold the cost, if the smallest allowed network exceeds the budget; or
    `NothingPruned` if all groups are frozen or the network already meets it."""
    if not graph.prunable:
        raise NothingPruned(f"all {len(graph.frozen)} groups are frozen, so nothing can be pruned")
    ones = Scores({group.name: torch.ones(group.num_channels) for group in graph.prunable}, "none", comparable=True)
    Widths(graph, ones, budget).check_reachable()
