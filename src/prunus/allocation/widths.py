"""The room in which every allocator moves: which widths each group may have, what they cost, and what the budget allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunus.budgets import shown_amount
from prunus.costs import Terms
from prunus.errors import BudgetNotMet, InvalidBudget, NothingPruned, UnknownName
from prunus.types import Budget, ChannelGraph, ChannelGroup, PruningPlan, Scores

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_NEEDS = (
    "needs measurements on this machine: prunus.prune, `prunus prune` and recipes make them; to allocate by hand, take the graph "
    "that prunus.time_network returns"
)
EXACTLY = "group:"


@dataclass(frozen=True, eq=False)
class GroupWidths:
    """One prunable group: ``levels`` are the allowed numbers of channels, descending from all; ``order`` lists channels by
    descending score, so that level i keeps ``order[:levels[i]]``."""

    group: ChannelGroup
    levels: list[int]
    order: Tensor
    sorted_scores: Tensor

    def step_scores(self) -> Floats:
        """Mean score of what each step from level i to i + 1 removes, made ascending so that steps are taken in order."""
        total = np.concatenate([[0.0], self.sorted_scores.cumsum(0).numpy()])
        levels = np.array(self.levels)
        return np.maximum.accumulate(np.diff(total[levels]) / np.diff(levels))


class Widths:
    """A position in that room: one level per group, its cost, and how it stands to the budget."""

    def __init__(self, graph: ChannelGraph, scores: Scores, budget: Budget) -> None:
        """Raises `NothingPruned` if no group may change or the network already meets the budget, `InvalidBudget` for a target
        that has no closed form, `UnknownName` for a limit that fits no group."""
        check_closed_form(graph, budget)
        check_limits(graph, budget)
        self.graph, self.budget, self._scored = graph, budget, set(scores.by_group)
        self.groups = [
            allowed_widths(g, scores.by_group[g.name], budget, g.name in graph.emptiable, graph.cost_model.multiples)
            for g in graph.prunable
            if g.name in scores.by_group
        ]
        self.groups = [g for g in self.groups if len(g.levels) > 1]
        if not self.groups:
            raise NothingPruned(_nothing(graph, scores))
        self._names = [g.group.name for g in self.groups]
        self.table = np.full((len(self.groups), max(len(g.levels) for g in self.groups)), np.inf)
        """Allowed channel counts (groups, levels), descending, padded with infinity."""
        for row, group in zip(self.table, self.groups, strict=True):
            row[: len(group.levels)] = group.levels
        self._factors = np.array([float(g.group.width_factor) for g in self.groups])
        self._other_channels = sum(g.num_channels * g.width_factor for g in graph.prunable if g.name not in self._names)
        whole = np.zeros((1, len(self.groups)), dtype=np.int64)
        self.full = {target: float(values[0]) for target, values in self._amounts(whole).items()}
        limits = {target: budget.limit(target, self.full[target]) for target in budget.targets}
        # Costs are whole numbers, but for milliseconds.
        self.limits = {t: limit if t == "latency" else math.floor(limit + 1e-9) or limit for t, limit in limits.items()}
        if all(self.full[target] <= limit for target, limit in self.limits.items()):
            raise NothingPruned(f"the network already meets the budget ({self.describe(self.full)}): ask for less")

    def kept(self, levels: Sequence[int]) -> dict[str, int]:
        """Channels kept by group name."""
        return {g.group.name: g.levels[level] for g, level in zip(self.groups, levels, strict=True)}

    def amounts(self, levels: Sequence[int]) -> dict[str, float]:
        """Cost in every target's unit."""
        return {target: float(values[0]) for target, values in self._amounts(np.array([levels])).items()}

    def _amounts(self, levels: Ints) -> dict[str, Floats]:
        """Costs (positions,) of many positions (positions, groups) at once, in every target's unit."""
        kept = self.table[np.arange(len(self.groups)), levels]
        costs = self.graph.cost_model.costs(self._names, kept)
        whole = {name: values if name == "latency" else np.rint(values) for name, values in costs.items()}
        return {**whole, "channels": kept @ self._factors + self._other_channels}

    def channel_terms(self) -> Terms:
        """The number of channels as `CostModel.terms` writes costs."""
        factors = zip(self._names, self._factors.tolist(), strict=True)
        return {(): float(self._other_channels)} | {(name,): factor for name, factor in factors}

    def rooms(self, levels: Ints) -> Floats:
        """Room left under every limit, as a share of it, for many positions (positions, groups): (positions, targets)."""
        amounts = self._amounts(levels)
        return np.stack([(limit - amounts[target]) / limit for target, limit in self.limits.items()], axis=1)

    def gap(self, levels: Sequence[int]) -> float:
        """Room left under the tightest limit, as a share of that limit; negative where a limit is exceeded."""
        return float(self.rooms(np.array([levels])).min())

    def check_reachable(self) -> None:
        """Raise `BudgetNotMet` if even the smallest allowed network exceeds the budget, naming what holds the cost."""
        levels = [len(g.levels) - 1 for g in self.groups]
        if self.gap(levels) >= 0:
            return
        amounts = self.amounts(levels)
        target = max(self.limits, key=lambda t: amounts[t] / self.limits[t])
        raise BudgetNotMet(
            f"the budget {self._wish(target)} can't be reached: the smallest allowed network has "
            f"{shown_amount(target, amounts[target])} ({amounts[target] / self.full[target]:.1%} of "
            f"{shown_amount(target, self.full[target]).split()[0]}). "
            f"Most of it is held by {self._blockers(levels, target)}. "
            "Allow more, lower min_channels or multiple_of, raise max_pruning_ratio, or unfreeze groups"
            + (" or loosen their limits" if self.budget.limits else ""),
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
            f"the budget {self._wish(target)} is missed: the closest plan found has {shown_amount(target, amounts[target])}, "
            f"{gap:.1%} below it (tolerance {self.budget.tolerance:.1%}). "
            f"The smallest steps are coarse, above all of {self._coarsest(levels, target)}. "
            f"Accept it with tolerance={math.ceil(gap * 1000) / 1000:.3f}, or lower multiple_of",
            self.plan(levels, allocator),
        )

    def _wish(self, target: str) -> str:
        amount = self.budget.targets[target]
        full, limit = (shown_amount(target, value[target]).removesuffix(f" {target}") for value in (self.full, self.limits))
        relative = f" ({amount:.1%} of {full})" if isinstance(amount, float) else ""
        return f"{target} <= {limit}{relative}"

    def _blockers(self, levels: list[int], target: str) -> str:
        """The three groups (frozen, unscored or at their floor) without which the cost would fall most."""
        kept = self.kept(levels)
        full = self.amounts(levels)[target]
        shares: list[tuple[float, str]] = []
        for group in self.graph.groups:
            left = kept.get(group.name, group.num_channels)
            if target == "channels":
                without = full - (left * group.width_factor if group.frozen_because is None else 0)
            else:
                others = {**kept, group.name: 0}
                costs = self.graph.cost_model.costs(list(others), np.array([list(others.values())], dtype=np.float64))
                without = float(costs[target][0])
            scored = group.name in self._scored
            why = "frozen" if group.frozen_because else (f"at its floor of {left}" if scored else "without scores, so kept whole")
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
        limits = {t: shown_amount(t, limit).removesuffix(f" {t}") for t, limit in self.limits.items()}
        return ", ".join(f"{shown_amount(t, amounts[t])} <= {limit}" for t, limit in limits.items())

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


def check_closed_form(graph: ChannelGraph, budget: Budget) -> None:
    """Raise `InvalidBudget` for a target that can't be computed from the channels kept, and for liked widths nobody measured."""
    for target in budget.targets:
        if target != "channels" and target not in graph.cost_model.targets:
            raise InvalidBudget(f"a budget on {target} {_NEEDS}")
    if budget.liked_widths and "latency" not in graph.cost_model.targets:
        raise InvalidBudget(f'multiple_of="auto" {_NEEDS}')


def fits(glob: str, group: ChannelGroup) -> bool:
    """Whether a glob fits the name of a group, or of a layer that writes it; ``group:NAME`` is the group of just that name."""
    if glob.startswith(EXACTLY):
        return group.name == glob.removeprefix(EXACTLY)
    layers = {member.parameter_axis.parameter.rpartition(".")[0] for member in group.with_role("writes")}
    return any(fnmatchcase(name, glob) for name in (group.name, *layers))


def check_limits(graph: ChannelGraph, budget: Budget) -> None:
    """Raise `UnknownName` for a limit of the budget that fits no group."""
    for glob in budget.limits:
        if not any(fits(glob, group) for group in graph.groups):
            raise UnknownName.among("group or layer in limits", glob, [group.name for group in graph.groups])


def floor_of(group: ChannelGroup, budget: Budget) -> int:
    """The fewest channels that a group keeps, unless it goes as a whole: shares removed are rounded down to whole channels."""
    own = [limit for glob, limit in budget.limits.items() if fits(glob, group)]
    shares = [budget.max_pruning_ratio, *(limit for limit in own if isinstance(limit, float))]
    numbers = [1, budget.min_channels, *(limit for limit in own if not isinstance(limit, float))]
    return max(*numbers, *(math.ceil(group.num_channels * (1 - share) - 1e-9) for share in shares))


def allowed_widths(
    group: ChannelGroup, scores: Tensor, budget: Budget, may_go: bool, liked: Mapping[str, int] | None = None
) -> GroupWidths:
    """The widths that the budget's limits allow a group; ``may_go``: it can be emptied; ``liked``: `CostModel.multiples`."""
    multiple = budget.multiple_of if isinstance(budget.multiple_of, int) else 1
    if budget.liked_widths and liked is not None:
        multiple = liked.get(group.name, 1)
    n, factor = group.num_channels, group.width_factor
    floor = floor_of(group, budget)
    levels = [n] + [c for c in range(n - 1, min(floor, n) - 1, -1) if (c * factor) % multiple == 0]
    order = torch.argsort(scores.double(), descending=True, stable=True)
    if may_go and budget.min_channels == 0 and not any(fits(glob, group) for glob in budget.limits):
        levels.append(0)
    return GroupWidths(group, levels, order, scores.double()[order])


def _nothing(graph: ChannelGraph, scores: Scores) -> str:
    if graph.prunable:
        return (
            f"no group can lose a channel: {len(graph.prunable)} groups are at their floors or unscored by {scores.criterion}; "
            "lower min_channels or multiple_of"
        )
    reasons = [f"`{g.name}`: {g.frozen_because}" for g in graph.frozen[:3]]
    return f"all {len(graph.frozen)} groups are frozen, so nothing can be pruned. {'; '.join(reasons)}"
