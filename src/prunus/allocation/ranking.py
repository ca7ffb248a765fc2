"""Allocation by ranking: `uniform` gives every group the same ratio, `global_ranking` removes the lowest scores wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from prunus.allocation.widths import GroupWidths, Widths
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

Evaluate = Callable[[PruningPlan], float]


def uniform(graph: ChannelGraph, scores: Scores, budget: Budget) -> PruningPlan:
    """The same pruning ratio in every group, as far as whole channels allow, by bisection on the ratio."""
    widths = Widths(graph, scores, budget)
    widths.check_reachable()

    def levels_at(ratio: float) -> list[int]:
        return [min(range(len(g.levels)), key=lambda i, g=g: abs(g.levels[i] - g.levels[0] * (1 - ratio))) for g in widths.groups]

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if widths.gap(levels_at(middle)) >= 0 else (middle, high)
    levels = levels_at(high)
    by_ratio = sorted(range(len(levels)), key=lambda i: widths.groups[i].levels[levels[i]] / widths.groups[i].levels[0])
    return _finish(widths, levels, by_ratio, "uniform")


def global_ranking(graph: ChannelGraph, scores: Scores, budget: Budget) -> PruningPlan:
    """Remove the lowest scores of the whole network; scores that aren't comparable are divided by their group's mean first."""
    widths = Widths(graph, scores, budget)
    widths.check_reachable()
    steps: list[tuple[float, int]] = []
    for i, group in enumerate(widths.groups):
        steps += [(value, i) for value in _comparable(group, scores.comparable).step_scores()]
    steps.sort(key=lambda step: step[0])  # stable: ties fall to the earlier group, and a group's steps stay in order

    def levels_after(count: int) -> list[int]:
        taken = torch.bincount(torch.tensor([i for _, i in steps[:count]], dtype=torch.int64), minlength=len(widths.groups))
        return taken.tolist()

    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if widths.gap(levels_after(middle)) >= 0 else (middle + 1, high)
    levels = levels_after(high)
    return _finish(widths, levels, [i for _, i in reversed(steps[:high])], "global")


def _comparable(group: GroupWidths, comparable: bool) -> GroupWidths:
    mean = float(group.sorted_scores.mean())
    if comparable or mean <= 0:
        return group
    return GroupWidths(group.group, group.levels, group.order, group.sorted_scores / mean)


def _finish(widths: Widths, levels: list[int], candidates: Iterable[int], name: str) -> PruningPlan:
    """Give back what still fits, best candidates first; then trade single steps if the budget is missed by more than the tolerance."""
    gap = widths.gap(levels)
    for i in candidates:
        if levels[i] > 0 and gap > 1e-3:
            levels[i] -= 1
            if (after := widths.gap(levels)) >= 0:
                gap = after
            else:
                levels[i] += 1
    while gap > widths.budget.tolerance:
        better = _best_trade(widths, levels, gap)
        if better is None:
            break
        levels, gap = better
    widths.check_close(levels, name)
    return widths.plan(levels, name)


def _best_trade(widths: Widths, levels: list[int], gap: float) -> tuple[list[int], float] | None:
    """One group a step up, or one up and another down: the change that leaves the smallest room under the budget, if any does."""
    best: tuple[list[int], float] | None = None
    for up in range(len(levels)):
        if levels[up] == 0:
            continue
        for down in range(-1, len(levels)):
            if down == up or (down >= 0 and levels[down] == len(widths.groups[down].levels) - 1):
                continue
            trial = list(levels)
            trial[up] -= 1
            if down >= 0:
                trial[down] += 1
            after = widths.gap(trial)
            if 0 <= after < (best[1] if best else gap) - 1e-9:
                best = (trial, after)
    return best
