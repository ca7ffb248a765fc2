"""The room in which every allocator moves: which widths each group may have, what they cost, and what the budget allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.errors import BudgetNotMet, InvalidBudget, NothingPruned
from prunus.types import Budget, ChannelGraph, ChannelGroup, Cost, PruningPlan, Scores

_NOT_CLOSED_FORM = {"latency": "a measured latency model", "file_size": "a measured file"}


@dataclass(frozen=True, eq=False)
class GroupWidths:
    """One prunable group: ``levels`` are the allowed numbers of channels, descending from all; ``order`` lists channels by
    descending score, so that level i keeps ``order[:levels[i]]``."""

    group: ChannelGroup
    levels: list[int]
    order: Tensor
    sorted_scores: Tensor

    def step_scores(self) -> list[float]:
        """Mean score of what each step from level i to i + 1 removes, made ascending so that steps are taken in order."""
        total = torch.cat([torch.zeros(1, dtype=torch.float64), self.sorted_scores.cumsum(0)])
        steps = [float(total[a] - total[b]) / (a - b) for a, b in zip(self.levels, self.levels[1:], strict=False)]
        return torch.tensor(steps, dtype=torch.float64).cummax(0).values.tolist() if steps else []


class Widths:
    """A position in that room: one level per group, its cost, and how it stands to the budget."""

    def __init__(self, graph: ChannelGraph, scores: Scores, budget: Budget) -> None:
        """Raises `NothingPruned` if no group may change or the network already meets the budget, `InvalidBudget` for a target
        that has no closed form."""
        for target in budget.targets:
            if target in _NOT_CLOSED_FORM:
                raise InvalidBudget(f"a budget on {target} needs {_NOT_CLOSED_FORM[target]}, which this version doesn't have: use macs or parameters")
        self.graph, self.budget = graph, budget
        self.groups = [_widths(g, scores.by_group[g.name], budget) for g in graph.prunable if g.name in scores.by_group]
        self.groups = [g for g in self.groups if len(g.levels) > 1]
        if not self.groups:
            raise NothingPruned(_nothing(graph, scores))
        self.full = self._amounts(graph.cost_model.cost({}), {})
        self.limits = {target: budget.limit(target, self.full[target]) for target in budget.targets}
        if self.gap([0] * len(self.groups)) >= 0:
            raise NothingPruned(f"the network already meets the budget ({self.describe(self.full)}): ask for less")

    def kept(self, levels: list[int]) -> dict[str, int]:
        """Channels kept by group name."""
        return {g.group.name: g.levels[level] for g, level in zip(self.groups, levels, strict=True)}

    def amounts(self, levels: list[int]) -> dict[str, float]:
        """Cost in every target's unit."""
        kept = self.kept(levels)
        return self._amounts(self.graph.cost_model.cost(kept), kept)

    def _amounts(self, cost: Cost, kept: Mapping[str, int]) -> dict[str, float]:
        channels = sum(kept.get(g.name, g.num_channels) * g.width_factor for g in self.graph.prunable)
        return {"macs": cost.macs, "parameters": cost.parameters, "activation_bytes": cost.activation_bytes, "channels": channels}

    def gap(self, levels: list[int]) -> float:
        """Room left under the tightest limit, as a share of that limit; negative where a limit is exceeded."""
        amounts = self.amounts(levels)
        return min((limit - amounts[target]) / limit for target, limit in self.limits.items())

    def check_reachable(self) -> None:
        """Raise `BudgetNotMet` if even the smallest allowed network exceeds the budget, naming what holds the cost."""
        levels = [len(g.levels) - 1 for g in self.groups]
        if self.gap(levels) >= 0:
            return
        amounts = self.amounts(levels)
        target = max(self.limits, key=lambda t: amounts[t] / self.limits[t])
        raise BudgetNotMet(
            f"the budget {self._wish(target)} can't be reached: the smallest allowed network has {amounts[target]:,.0f} {target} "
            f"({amounts[target] / self.full[target]:.1%} of {self.full[target]:,.0f}). Most of it is held by {self._blockers(levels, target)}. "
            "Ask for less, lower min_channels or multiple_of, raise max_pruning_ratio, or unfreeze groups",
            self.plan(levels, "smallest"),
        )

    def check_close(self, levels: list[int], allocator: str) -> None:
        """Raise `BudgetNotMet` if the plan stays below the budget by more than its tolerance."""
        gap = self.gap(levels)
        if gap <= self.budget.tolerance + 1e-12:
            return
        amounts = self.amounts(levels)
        target = min(self.limits, key=lambda t: (self.limits[t] - amounts[t]) / self.limits[t])
        raise BudgetNotMet(
            f"the budget {self._wish(target)} can only be met with {amounts[target]:,.0f} {target}, {gap:.1%} below it (tolerance "
            f"{self.budget.tolerance:.1%}): the smallest steps are coarse, above all of {self._coarsest(levels, target)}. "
            f"Accept it with tolerance={math.ceil(gap * 100) / 100:.2f}, or lower multiple_of",
            self.plan(levels, allocator),
        )

    def _wish(self, target: str) -> str:
        amount = self.budget.targets[target]
        relative = f" ({amount:.1%} of {self.full[target]:,.0f})" if isinstance(amount, float) else ""
        return f"{target} <= {self.limits[target]:,.0f}{relative}"

    def _blockers(self, levels: list[int], target: str) -> str:
        """The three groups (frozen or at their floor) without which the cost would fall most."""
        kept = self.kept(levels)
        full = self._amounts(self.graph.cost_model.cost(kept), kept)[target]
        shares: list[tuple[float, str]] = []
        for group in self.graph.groups:
            without = self._amounts(self.graph.cost_model.cost({**kept, group.name: 0}), {**kept, group.name: 0})[target]
            why = "frozen" if group.frozen_because else f"at its floor of {kept.get(group.name, group.num_channels)}"
            shares.append(((full - without) / full, f"`{group.name}` ({why}"))
        return ", ".join(f"{text}, {share:.0%})" for share, text in sorted(shares, reverse=True)[:3] if share > 0)

    def _coarsest(self, levels: list[int], target: str) -> str:
        now = self.amounts(levels)[target]
        steps: list[tuple[float, str]] = []
        for i, group in enumerate(self.groups):
            if levels[i] > 0:
                up = self.amounts([*levels[:i], levels[i] - 1, *levels[i + 1 :]])[target]
                steps.append(((up - now) / self.limits[target], group.group.name))
        return ", ".join(f"`{name}` (one step is {share:.1%} of the budget)" for share, name in sorted(steps, reverse=True)[:3])

    def describe(self, amounts: Mapping[str, float]) -> str:
        """E.g. ``1,234 macs <= 2,000``."""
        return ", ".join(f"{amounts[t]:,.0f} {t} <= {limit:,.0f}" for t, limit in self.limits.items())

    def plan(self, levels: list[int], allocator: str) -> PruningPlan:
        """The plan at these levels: the channels of highest score stay."""
        keep: dict[str, Tensor] = {}
        for group, level in zip(self.groups, levels, strict=True):
            mask = torch.zeros(group.group.num_channels, dtype=torch.bool)
            mask[group.order[: group.levels[level]]] = True
            keep[group.group.name] = mask
        amounts = self.amounts(levels)
        targets = [
            {"target": t, "requested": limit, "full": self.full[t], "achieved": amounts[t], "met": amounts[t] <= limit}
            for t, limit in self.limits.items()
        ]
        return PruningPlan(keep, self.graph.cost_model.cost(self.kept(levels)), {"allocator": allocator, "budget": targets})


def _widths(group: ChannelGroup, scores: Tensor, budget: Budget) -> GroupWidths:
    n, factor = group.num_channels, group.width_factor
    floor = max(1, budget.min_channels, math.ceil(n * (1 - budget.max_pruning_ratio) - 1e-9))
    levels = [n] + [c for c in range(n - 1, min(floor, n) - 1, -1) if (c * factor) % budget.multiple_of == 0]
    order = torch.argsort(scores.double(), descending=True, stable=True)
    return GroupWidths(group, levels, order, scores.double()[order])


def _nothing(graph: ChannelGraph, scores: Scores) -> str:
    if graph.prunable:
        return f"no group can lose a channel: {len(graph.prunable)} groups are at their floors or unscored by {scores.criterion}; lower min_channels or multiple_of"
    reasons = [f"`{g.name}`: {g.frozen_because}" for g in graph.frozen[:3]]
    return f"all {len(graph.frozen)} groups are frozen, so nothing can be pruned. {'; '.join(reasons)}"
