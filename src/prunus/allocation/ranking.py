"""Allocation by ranking: `uniform` gives every group one ratio, the global ones remove the lowest scores wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from prunus.allocation.widths import GroupWidths, Widths
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_REACHES = (1, 2, 4, 8, 1_000_000)
"""How many steps any group may be moved away from the ranking to come within the tolerance: tried in this order."""
_FEW = 20_000
"""So many positions are all priced; of more, a shortlist of those that differ in two groups, up to a reach of eight."""
_SHORTLIST = 1024


def uniform(graph: ChannelGraph, scores: Scores, budget: Budget) -> PruningPlan:
    """The same pruning ratio in every group, as far as whole channels allow, by bisection on the ratio."""
    widths = Widths(graph, scores, budget)
    return proportional(widths, np.ones(len(widths.groups)), "uniform")


def proportional(widths: Widths, shares: Floats, name: str) -> PruningPlan:
    """Remove from every group a share of its channels proportional to ``shares`` (groups,), by bisection on the factor."""
    return along(widths, lambda t: t * shares / float(shares.min()), name)


def along(widths: Widths, removed: Callable[[float], Floats], name: str) -> PruningPlan:
    """Remove the shares (groups,) that ``removed`` gives, at the least number from 0 (none) to 1 (all) that meets the budget."""
    widths.check_reachable()
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if widths.gap(levels_at(widths, removed(middle))) >= 0 else (middle, high)
    levels = levels_at(widths, removed(high))
    kept = widths.table[np.arange(len(levels)), levels]
    excess = (kept / widths.table[:, 0] - 1 + np.minimum(removed(high), 1.0)).argsort(kind="stable").tolist()
    pruned = [i for i in excess if levels[i] > 0]  # what lost most beyond its share is the first to get a channel back
    return finish(widths, levels, pruned, name)


def levels_at(widths: Widths, ratios: Floats) -> list[int]:
    """The levels nearest to removing these shares of the groups' channels: (groups,)."""
    wanted = widths.table[:, 0] * (1 - np.minimum(ratios, 1.0))
    return np.abs(widths.table - wanted[:, None]).argmin(axis=1).tolist()


def global_ranking(graph: ChannelGraph, scores: Scores, budget: Budget) -> PruningPlan:
    """Remove the lowest scores of the whole network; scores that aren't comparable are divided by their group's mean first."""
    widths = Widths(graph, scores, budget)
    return lowest_first(widths, [on_one_scale(group, scores.comparable) for group in widths.groups], "global")


def global_per_cost(graph: ChannelGraph, scores: Scores, budget: Budget) -> PruningPlan:
    """Like global, but scores are divided by what their channel costs, in the unit of the budget: its tightest target.

    The greedy rule of the knapsack problem: among equally important channels the dearest goes first. Costs are those of the full
    network; scores that aren't comparable are divided by their group's mean first. To subtract the cost instead (the FLOPs
    regularisation of Molchanov et al. 2016), give the criterion a ``macs_penalty`` and rank by ``global``.
    """
    widths = Widths(graph, scores, budget)
    prices = _prices(widths)
    by_group = [_per_cost(on_one_scale(g, scores.comparable), price) for g, price in zip(widths.groups, prices, strict=True)]
    return lowest_first(widths, by_group, "global_per_cost")


def _per_cost(steps: Floats, price: float) -> Floats:
    """What frees nothing (a layer away from the peak of the activations) goes last."""
    return steps / price if price > 0 else np.full_like(steps, np.inf)


def _prices(widths: Widths) -> Floats:
    """What one channel of every group costs, as a share of the limit that is exceeded most: (groups,)."""
    groups = len(widths.groups)
    tightest = int(widths.rooms(np.zeros((1, groups), dtype=np.int64))[0].argmin())
    # A file tells of a group's surgery as soon as it loses a channel: its price is that of the channels after the first.
    first = int(list(widths.limits)[tightest] == "file_size")
    starts = np.array([first if len(group.levels) > 2 else 0 for group in widths.groups])
    before, after = (widths.rooms(np.eye(groups, dtype=np.int64) * step)[:, tightest] for step in (starts, starts + 1))
    levels = [(group.levels[start], group.levels[start + 1]) for group, start in zip(widths.groups, starts, strict=True)]
    return (after - before) / np.array([wider - narrower for wider, narrower in levels])


def lowest_first(widths: Widths, by_group: Sequence[Floats], name: str) -> PruningPlan:
    """Take the steps of all groups in the order of their scores, until the budget is met."""
    widths.check_reachable()
    owners = np.repeat(np.arange(len(by_group)), [len(steps) for steps in by_group])
    # Stable: ties fall to the earlier group, and a group's steps stay in order.
    ranked = owners[np.argsort(np.concatenate(by_group), kind="stable")]

    def levels_after(count: int) -> list[int]:
        return np.bincount(ranked[:count], minlength=len(by_group)).tolist()

    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if widths.gap(levels_after(middle)) >= 0 else (middle + 1, high)
    return finish(widths, levels_after(high), ranked[:high][::-1].tolist(), name)


def on_one_scale(group: GroupWidths, comparable: bool) -> Floats:
    """Mean score of every step (see `GroupWidths.step_scores`); divided by the group's mean where scores aren't comparable."""
    steps = group.step_scores()
    mean = float(group.sorted_scores.abs().mean())
    return steps if comparable or mean == 0 else steps / mean


def finish(widths: Widths, levels: list[int], candidates: list[int], name: str) -> PruningPlan:
    """Give back what still fits, best candidates first; if the budget is still missed by more than the tolerance, look around."""
    levels = closest = _give_back(widths, levels, candidates)
    for reach in _REACHES:
        if widths.gap(closest) <= widths.budget.tolerance:
            break
        closest = _closest(widths, levels, closest, reach)
    widths.check_close(closest, name)
    return widths.plan(closest, name)


def _give_back(widths: Widths, levels: list[int], candidates: list[int]) -> list[int]:
    """One step up for each candidate that fits. Cost only grows by it, so a group that didn't fit once never will."""
    now, rest = np.array(levels), np.array(candidates, dtype=np.int64)
    while len(rest):
        fitting = _fitting(widths, now, rest)
        now = _stepped_up(now, rest[:fitting])
        rest = rest[fitting:]
        rest = rest[rest != rest[0]] if len(rest) else rest
    return now.tolist()


def _fitting(widths: Widths, now: Ints, candidates: Ints) -> int:
    """How many leading candidates may all go a step up: by doubling, then by bisection."""
    low, high = 0, 1
    while high <= len(candidates) and widths.gap(_stepped_up(now, candidates[:high]).tolist()) >= 0:
        low, high = high, 2 * high
    high = min(high, len(candidates) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if widths.gap(_stepped_up(now, candidates[:middle]).tolist()) >= 0 else (low, middle)
    return low


def _stepped_up(levels: Ints, groups: Ints) -> Ints:
    return levels - np.bincount(groups, minlength=len(levels))


def _closest(widths: Widths, levels: list[int], closest: list[int], reach: int) -> list[int]:
    """Within ``reach`` steps of ``levels``: the fewest steps that meet the tolerance, else what comes closest to the budget."""
    now = np.array(levels)
    last = np.array([len(g.levels) - 1 for g in widths.groups])
    low, high = np.maximum(now - reach, 0), np.minimum(now + reach, last)
    few = np.prod((high - low + 1).astype(np.float64)) <= _FEW
    if not few and reach > 8:
        return closest
    trials = np.concatenate([np.array([closest]), _all(low, high) if few else _pairs(widths, now, low, high)])
    gaps = widths.rooms(trials).min(axis=1)
    steps = np.abs(trials - now).sum(axis=1)
    met = (gaps >= 0) & (gaps <= widths.budget.tolerance)
    order = np.lexsort((gaps, np.where(met, steps, 0), ~met, gaps < 0))
    return trials[order[0]].tolist()


def _all(low: Ints, high: Ints) -> Ints:
    """Every position between two corners: (positions, groups)."""
    ranges = [np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
    return np.stack([axis.reshape(-1) for axis in np.meshgrid(*ranges, indexing="ij")], axis=1)


def _pairs(widths: Widths, now: Ints, low: Ints, high: Ints) -> Ints:
    """Positions that differ from ``now`` in one or two groups and come close to the budget: (positions, groups).

    Each group's moves are priced once; the pairs whose prices add up to nearly nothing left are returned, to be priced exactly.
    """
    moves = [(i, step) for i in range(len(now)) for step in range(low[i] - now[i], high[i] - now[i] + 1) if step]
    owners = np.array([-1, *(i for i, _ in moves)])  # the first is no move at all
    changes = np.zeros((len(owners), len(now)), dtype=np.int64)
    changes[np.arange(1, len(owners)), owners[1:]] = [step for _, step in moves]
    rooms = widths.rooms(now + changes)
    prices = rooms - rooms[0]
    estimate = np.abs(np.min([rooms[0, t] + prices[:, None, t] + prices[None, :, t] for t in range(prices.shape[1])], axis=0))
    estimate[owners[:, None] <= owners[None]] = np.inf  # each pair once, and never two moves of one group
    nearest = np.argpartition(estimate, min(_SHORTLIST, estimate.size - 1), axis=None)[:_SHORTLIST]
    first, second = np.unravel_index(nearest, estimate.shape)
    return now + changes[first] + changes[second]
