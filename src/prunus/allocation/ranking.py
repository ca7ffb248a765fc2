"""Allocation by ranking: `uniform` gives every group the same ratio, `global_ranking` removes the lowest scores wherever they are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from prunus.allocation.widths import GroupWidths, Widths
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

Floats = npt.NDArray[np.float64]
_SHORTLIST = 256


def uniform(graph: ChannelGraph, scores: Scores, budget: Budget) -> PruningPlan:
    """The same pruning ratio in every group, as far as whole channels allow, by bisection on the ratio."""
    widths = Widths(graph, scores, budget)
    widths.check_reachable()

    def levels_at(ratio: float) -> list[int]:
        wanted = widths.table[:, :1] * (1 - ratio)
        return np.abs(widths.table - wanted).argmin(axis=1).tolist()

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
    by_group = [_on_one_scale(group, scores.comparable) for group in widths.groups]
    owners = np.repeat(np.arange(len(by_group)), [len(steps) for steps in by_group])
    # Stable: ties fall to the earlier group, and a group's steps stay in order.
    ranked = owners[np.argsort(np.concatenate(by_group), kind="stable")]

    def levels_after(count: int) -> list[int]:
        return np.bincount(ranked[:count], minlength=len(by_group)).tolist()

    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if widths.gap(levels_after(middle)) >= 0 else (middle + 1, high)
    return _finish(widths, levels_after(high), ranked[:high][::-1].tolist(), "global")


def _on_one_scale(group: GroupWidths, comparable: bool) -> Floats:
    steps = group.step_scores()
    mean = float(group.sorted_scores.abs().mean())
    return steps if comparable or mean == 0 else steps / mean


def _finish(widths: Widths, levels: list[int], candidates: Iterable[int], name: str) -> PruningPlan:
    """Give back what still fits, best candidates first; then trade single steps if the budget is missed by more than the tolerance.

    Trades stay within one step of the ranking as long as that helps.
    """
    levels = _give_back(widths, levels, candidates)
    ranking, gap, reach = list(levels), widths.gap(levels), 1
    while gap > widths.budget.tolerance:
        better = _best_trade(widths, levels, gap, [(level - reach, level + reach) for level in ranking])
        if better is not None:
            levels, gap = better
        elif reach == 1:
            reach = widths.table.shape[1]
        else:
            break
    widths.check_close(levels, name)
    return widths.plan(levels, name)


def _give_back(widths: Widths, levels: list[int], candidates: Iterable[int]) -> list[int]:
    """One step up for each candidate that fits. Cost only grows by it, so a group that didn't fit once never will."""
    levels = list(levels)
    full: set[int] = set()
    for i in candidates:
        if i not in full and levels[i] > 0:
            levels[i] -= 1
            if widths.gap(levels) < 0:
                levels[i] += 1
                full.add(i)
    return levels


def _best_trade(widths: Widths, levels: list[int], gap: float, allowed: list[tuple[int, int]]) -> tuple[list[int], float] | None:
    """One group a step up, or one up and another down: the change that leaves the smallest room under the budget, if any does.

    Each step is priced once; the pairs that come closest by the sum of their prices are then priced exactly.
    """
    now = np.array(levels)
    last = np.array([len(g.levels) - 1 for g in widths.groups])
    lowest, highest = np.array(allowed).T
    ups = np.flatnonzero(now > np.maximum(lowest, 0))
    downs = np.flatnonzero(now < np.minimum(highest, last))
    steps = np.eye(len(levels), dtype=np.int64)
    nothing = np.zeros((1, len(levels)), dtype=np.int64)
    shrink = np.concatenate([nothing, steps[downs]])
    room = widths.rooms(now[None])  # (1, targets)
    dearer = widths.rooms(now - steps[ups]) - room
    cheaper = widths.rooms(now + shrink) - room
    estimate = (room + dearer[:, None] + cheaper[None]).min(axis=2)  # (ups, 1 + downs)
    estimate[ups[:, None] == np.concatenate([[-1], downs])[None]] = -np.inf
    nearest = np.argsort(np.where(estimate >= gap, np.inf, np.abs(estimate)), axis=None, kind="stable")[:_SHORTLIST]
    up, down = np.unravel_index(nearest, estimate.shape)
    trials = now - steps[ups][up] + shrink[down]
    after = widths.rooms(trials).min(axis=1)
    after[(after < 0) | (after >= gap - 1e-9)] = np.inf
    if not len(after) or not np.isfinite(after.min()):
        return None
    best = int(after.argmin())
    return trials[best].tolist(), float(after[best])
