"""The knapsack over groups, solved exactly: which widths keep the most importance within the budget."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix

from prunus.allocation.ranking import finish
from prunus.allocation.widths import GroupWidths, Widths
from prunus.costs import CostTable
from prunus.errors import InvalidBudget, PrunusWarning
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

Floats = npt.NDArray[np.float64]
CHOICES = 600
"""About so many widths are offered to the solver in all, at least `FEWEST` to a group, evenly spread over those allowed."""
FEWEST = 8
TABLE_CHOICES = 12
"""At most so many to a group where layer times are given as tables: every pair of two groups' widths is a column then."""
_TRIES = 5
GAP = 1e-3
"""It stops once no plan can keep more importance by this share of what the found one removes; on small networks at none."""
SECONDS = 30.0


def knapsack(graph: ChannelGraph, scores: Scores, budget: Budget) -> PruningPlan:
    """The widths that keep the most importance under every limit: an integer program, solved to its optimum.

    A width of a group is worth the scores of the channels that stay, where scores are comparable. Where they aren't, sums over
    groups mean little, and emptying a dear layer may give the largest. Then the product of the shares of their scores that the
    groups keep is as large as can be, as Zhang et al. ("Accelerating Very Deep Convolutional Networks", 2015) choose ranks by
    the product of the energies kept. Costs are the closed form with all its products of widths,
    so that two layers that share channels are priced together. Solved by HiGHS (scipy.optimize.milp): one binary variable for
    each width of a group, and for each product of two groups' channels one continuous variable to a width of the first, which is
    the second's channels where that width is chosen and zero elsewhere. Large networks are offered `CHOICES` widths in all; what
    is left of the budget is then given back channel by channel. A layer's time, a table over the widths of two groups and no
    product, is priced by a continuous variable to each pair of offered widths (`TABLE_CHOICES` to a group), which is exact; where
    more than two groups meet in a layer (concatenation), its nearest products stand in. If time runs out first, a warning says
    how far from the optimum the plan may be. ``provenance["optimality_gap"]`` holds the same.

    Raises:
        InvalidBudget: a cost holds products of three groups' channels (attention over channels).
    """
    widths = Widths(graph, scores, budget)
    widths.check_reachable()
    by_group = [group.step_scores() if scores.comparable else _share_losses(group) for group in widths.groups]
    levels, gap = _solved(widths, by_group)
    steps = [(float(by_group[i][level - 1]), i) for i, deepest in enumerate(levels) for level in range(1, deepest + 1)]
    plan = finish(widths, levels, [i for _, i in sorted(steps, reverse=True)], "knapsack")
    return PruningPlan(plan.keep, plan.predicted, {**plan.provenance, "optimality_gap": gap})


def _share_losses(group: GroupWidths) -> Floats:
    """What each step costs of -log(share of the group's scores that is kept), by removed channel; ascending."""
    removed = -np.diff(group.levels)
    scores = group.sorted_scores.clamp(min=0).numpy()
    if not scores.any():
        scores = np.ones(len(scores))
    kept = np.concatenate([[0.0], scores.cumsum()])[group.levels] / scores.sum()
    smallest = float(kept[kept > 0].min())
    logs = np.log(np.maximum(kept, smallest / 2))  # an emptied group has half of the least that can be kept
    return np.maximum.accumulate(-np.diff(logs) / removed)


def _solved(widths: Widths, steps: Sequence[Floats]) -> tuple[list[int], float]:
    """Levels within the budget, and the gap. Where a layer's time was written as products, which only come near to it, the plan
    may cost too much: then the program is solved again with limits that are lower by as much."""
    tightened, levels, gap = 1.0, list[int](), 0.0
    for _ in range(_TRIES):
        levels, gap = _Program(widths, steps, tightened).solve()
        room = widths.gap(levels)
        if room >= 0:
            return levels, gap
        tightened /= (1 - room) * 1.001
    return [len(group.levels) - 1 for group in widths.groups], np.inf


class _Program:
    """The integer program: columns are widths (chosen or not), products and pairs of widths; rows are constraints.

    ``tightened`` is what the limits are multiplied by.
    """

    def __init__(self, widths: Widths, steps: Sequence[Floats], tightened: float = 1.0) -> None:
        self.widths, self.steps, self.tightened = widths, steps, tightened
        tables = any(widths.graph.cost_model.tables(target) for target in widths.limits)
        each = max(FEWEST, min(CHOICES // len(widths.groups), TABLE_CHOICES if tables else CHOICES))
        self.offered = [_spread(len(group.levels), each) for group in widths.groups]
        self.channels = [np.array(g.levels, dtype=np.float64)[o] for g, o in zip(widths.groups, self.offered, strict=True)]
        self.first = np.cumsum([0, *(len(offered) for offered in self.offered)])
        self.columns = int(self.first[-1])
        self._numbers = {group.group.name: i for i, group in enumerate(widths.groups)}
        self._products: dict[tuple[int, int], int] = {}
        self._pairs: dict[tuple[int, int], int] = {}
        self._entries: list[tuple[int, int, float]] = []
        self._low: list[float] = []
        self._high: list[float] = []
        for number in range(len(self.channels)):  # one width of each group
            self._row({column: 1.0 for column in self._columns_of(number)}, 1.0, 1.0)
        self._limits()

    def solve(self) -> tuple[list[int], float]:
        """Chosen levels by group, and by what share of the removed importance a better plan may exist.

        A solver that ran out of time before it found any plan leaves the smallest network, from which `finish` gives back.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp  # a third of the time that `import prunus` would take

        losses = [self._losses(number) for number in range(len(self.channels))]
        objective = np.zeros(self.columns)
        objective[: self.first[-1]] = np.concatenate(losses)
        scale = float(np.abs(objective).max()) or 1.0
        rows, columns, values = zip(*self._entries, strict=True)
        matrix = coo_matrix((values, (rows, columns)), shape=(len(self._low), self.columns)).tocsr()
        whole = np.arange(self.columns) < self.first[-1]
        found: Any = milp(
            objective / scale,
            constraints=LinearConstraint(matrix, cast("Any", np.array(self._low)), cast("Any", np.array(self._high))),
            integrality=whole.astype(np.int64),
            bounds=Bounds(0, 1),
            options={"time_limit": SECONDS, "mip_rel_gap": GAP if self.columns > CHOICES else 0.0},
        )
        if found.x is None:
            return self._smallest("found no plan")
        levels = [int(offered[found.x[self._columns_of(n)].argmax()]) for n, offered in enumerate(self.offered)]
        gap = float(found.mip_gap or 0.0)
        if gap > GAP:
            _warn(f"had not proven its plan the best: one that removes up to {gap:.1%} less importance may exist")
        return levels, gap

    def _smallest(self, what: str) -> tuple[list[int], float]:
        _warn(f"{what}: the smallest network is filled up by the highest scores")
        return [len(group.levels) - 1 for group in self.widths.groups], np.inf

    def _losses(self, number: int) -> Floats:
        """Importance removed at every offered width of a group."""
        group, steps = self.widths.groups[number], self.steps[number]
        removed = -np.diff(np.array(group.levels))
        return np.concatenate([[0.0], np.cumsum(steps * removed)])[self.offered[number]]

    def _columns_of(self, number: int) -> npt.NDArray[np.int64]:
        return np.arange(self.first[number], self.first[number + 1])

    def _row(self, entries: dict[int, float], low: float, high: float) -> None:
        self._entries += [(len(self._low), int(column), float(value)) for column, value in entries.items()]
        self._low.append(low)
        self._high.append(high)

    def _limits(self) -> None:
        """A row for each limit; for the activations, one for every moment that exceeds it in the full network."""
        model = self.widths.graph.cost_model
        for target, wanted in self.widths.limits.items():
            limit = wanted * self.tightened
            for terms in [self.widths.channel_terms()] if target == "channels" else model.terms(target):
                entries, constant = self._priced(terms)
                for table in model.tables(target):
                    constant += self._add_table(entries, table)
                if constant + sum(value for value in entries.values() if value > 0) > limit:
                    self._row({column: value / limit for column, value in entries.items()}, -np.inf, (limit - constant) / limit)

    def _priced(self, terms: dict[tuple[str, ...], float]) -> tuple[dict[int, float], float]:
        """A cost as a linear form of the program's columns, and its constant. Groups that can't change count as they are."""
        full = {group.name: group.num_channels for group in self.widths.graph.groups}
        entries: dict[int, float] = defaultdict(float)
        constant = 0.0
        for names, value in terms.items():
            free = [self._numbers[name] for name in names if name in self._numbers]
            for name in names:
                value *= 1.0 if name in self._numbers else full[name]
            if not free:
                constant += value
            elif len(set(free)) == 1:
                for column, channels in zip(self._columns_of(free[0]), self.channels[free[0]], strict=True):
                    entries[column] += value * channels ** len(free)
            elif len(free) == 2:
                self._add_product(entries, value, *sorted(free, key=lambda n: (len(self.channels[n]), n)))
            else:
                raise InvalidBudget(
                    f"knapsack can't price products of three groups' channels ({', '.join(names)}): "
                    "use allocator='global_per_cost'"
                )
        return dict(entries), constant

    def _add_table(self, entries: dict[int, float], table: CostTable) -> float:
        """Price a layer's time, exactly at the offered widths of one or two groups, else by products; returns what is fixed."""
        sizes = {group.name: group.num_channels for group in self.widths.graph.groups}
        free = [self._numbers[name] for name in table.groups if name in self._numbers]
        if len(free) > 2:
            priced, constant = self._priced(table.products)
            for column, value in priced.items():
                entries[column] = entries.get(column, 0.0) + value
            return constant
        choices = [self.channels[self._numbers[n]] if n in self._numbers else np.array([sizes[n]]) for n in table.groups]
        grid = np.stack([axis.ravel() for axis in np.meshgrid(*choices, indexing="ij")], axis=1) if choices else np.zeros((1, 0))
        values: Floats = table.at(grid)
        if not free:
            return float(values[0])
        columns = self._columns_of(free[0]) if len(free) == 1 else self._pair_columns(free[0], free[1])
        for column, value in zip(columns.tolist(), values.tolist(), strict=True):
            entries[column] = entries.get(column, 0.0) + value
        return 0.0

    def _pair_columns(self, first: int, second: int) -> npt.NDArray[np.int64]:
        """A column for each pair of widths of two groups, 1 where both are chosen: each sums up to its group's choice."""
        rows, columns = len(self.channels[first]), len(self.channels[second])
        if (first, second) not in self._pairs:
            self._pairs[first, second], self.columns = self.columns, self.columns + rows * columns
            grid = self._pairs[first, second] + np.arange(rows * columns).reshape(rows, columns)
            for number, lines in ((first, grid), (second, grid.T)):
                for column, line in zip(self._columns_of(number), lines, strict=True):
                    self._row({**dict.fromkeys(line.tolist(), 1.0), int(column): -1.0}, 0.0, 0.0)
        return self._pairs[first, second] + np.arange(rows * columns)

    def _add_product(self, entries: dict[int, float], value: float, chosen: int, other: int) -> None:
        """The product of two groups' channels: a column for each width of ``chosen``, in shares of the other's full width."""
        widest = self.channels[other][0]
        if (chosen, other) not in self._products:
            self._products[chosen, other] = first = self.columns
            self.columns += len(self.channels[chosen])
            columns = range(first, self.columns)
            smallest = self.channels[other][-1] / widest
            for column, choice in zip(columns, self._columns_of(chosen), strict=True):
                self._row({column: 1.0, choice: -1.0}, -np.inf, 0.0)
                self._row({column: 1.0, choice: -smallest}, 0.0, np.inf)
            shares = zip(self._columns_of(other), self.channels[other] / widest, strict=True)
            self._row({**dict.fromkeys(columns, 1.0), **{column: -share for column, share in shares}}, 0.0, 0.0)
        for column, channels in enumerate(self.channels[chosen], start=self._products[chosen, other]):
            entries[column] += value * channels * widest


def _spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most ``most`` of ``count`` levels, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _warn(what: str) -> None:
    warnings.warn(f"knapsack's solver stopped after {SECONDS:.0f} s and {what}", PrunusWarning, stacklevel=2)
