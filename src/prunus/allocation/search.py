"""Search over keep fractions: what a draw of fractions means, and the allocator that tries many out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from prunus.allocation.ranking import finish, levels_at, on_one_scale, uniform
from prunus.allocation.trials import SAMPLERS, Outcome, Trial, Trials, run_trials
from prunus.allocation.widths import Widths
from prunus.errors import ArtifactError, BudgetNotMet, EvidenceError, InvalidBudget, PrunusWarning, UnknownName
from prunus.files import read_json_file
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

LOWEST = 0.2
"""AMC's lower bound of every action."""
_ABOVE_NOTHING = 1e-6
Evaluate = Callable[[PruningPlan], float]


@dataclass(frozen=True)
class SearchSpace:
    """Keep fractions of every group, in network order, and what they mean (He et al. 2018, AMC).

    A fraction is rounded up to an allowed width. The groups are gone through in order, and each is narrowed where needed so that
    the budget stays within reach with all later groups at the ``lowest`` fraction (the action clipping of AMC). What a draw
    leaves of the budget is given to all groups in proportion, then to the highest scores: every plan costs the same, but for the
    tolerance. AMC lets a draw stay below the budget; with one that isn't ``clipped`` (a search for a front of accuracy against
    cost) a plan costs what its fractions say.
    """

    widths: Widths
    lowest: float
    clipped: bool
    comparable: bool = False

    @classmethod
    def of(cls, graph: ChannelGraph, scores: Scores, budget: Budget, lowest: float = LOWEST, clipped: bool = True) -> SearchSpace:
        """Raises `BudgetNotMet` where even the smallest network exceeds the budget; where one at the lowest fractions does, the
        groups' own floors take their place."""
        if not 0 < lowest < 1:
            raise InvalidBudget(f"search: lowest={lowest!r} is no fraction of channels to keep: 0.2 is AMC's")
        widths = Widths(graph, scores, budget)
        widths.check_reachable()
        shortest = [_rounded_up(widths, number, lowest) for number in range(len(widths.groups))]
        return cls(widths, lowest if widths.gap(shortest) >= 0 else 0.0, clipped, scores.comparable)

    @property
    def names(self) -> list[str]:
        """The groups that fractions are drawn for, in order."""
        return [group.group.name for group in self.widths.groups]

    def fractions(self, levels: Sequence[int]) -> dict[str, float]:
        """The fractions that mean these levels."""
        kept = zip(self.widths.groups, levels, strict=True)
        return {g.group.name: max(g.levels[level] / g.levels[0], self.lowest) for g, level in kept}

    def uniform(self, graph: ChannelGraph, scores: Scores) -> dict[str, float]:
        """The fractions of the uniform plan."""
        try:
            counts = uniform(graph, scores, self.widths.budget).counts()
        except BudgetNotMet as error:  # channels are too coarse for the tolerance: the nearest plan below
            counts = cast("PruningPlan", error.plan).counts()
        return self.fractions(self.levels_of(counts))

    def holds(self, kept: Mapping[str, int]) -> bool:
        """Whether these are widths that the budget's limits allow, groups that stay whole among them."""
        levels = {group.group.name: group.levels for group in self.widths.groups}
        return all(left in levels.get(name, [self.widths.graph[name].num_channels]) for name, left in kept.items())

    def levels_of(self, kept: Mapping[str, int]) -> list[int]:
        """The levels of these numbers of channels."""
        return [group.levels.index(kept[group.group.name]) for group in self.widths.groups]

    def levels(self, fractions: Mapping[str, float]) -> list[int]:
        """The widths that a draw means."""
        wanted = [_rounded_up(self.widths, number, fractions[name]) for number, name in enumerate(self.names)]
        return self._within_reach(wanted) if self.clipped else wanted

    def plan(self, fractions: Mapping[str, float]) -> PruningPlan:
        """The plan that a draw means.

        Raises:
            BudgetNotMet: channels are too coarse to come within the budget's tolerance.
        """
        levels = self.levels(fractions)
        if not self.clipped:
            return self.widths.plan(levels, "search")
        return self._filled(levels)

    def _within_reach(self, wanted: list[int]) -> list[int]:
        levels = [_rounded_up(self.widths, number, self.lowest) for number in range(len(wanted))]
        for number, level in enumerate(wanted):
            trials = np.repeat([levels], max(levels[number] - level + 1, 1), axis=0)
            trials[:, number] = np.arange(level, level + len(trials))
            fitting = np.flatnonzero(self.widths.rooms(trials).min(axis=1) >= 0)
            levels[number] = int(trials[fitting[0] if len(fitting) else -1, number])
        return levels

    def _filled(self, levels: list[int]) -> PruningPlan:
        """Scaled up in proportion as far as the budget lets, then given back by the highest scores."""
        widths = self.widths
        kept = widths.table[np.arange(len(levels)), levels] / widths.table[:, 0]
        low, high = 1.0, 1.0 / max(float(kept.min()), 1e-9)
        for _ in range(30):
            middle = (low + high) / 2
            scaled = levels_at(widths, 1 - np.minimum(kept * middle, 1.0))
            low, high = (middle, high) if widths.gap(scaled) >= 0 else (low, middle)
        scaled = levels_at(widths, 1 - np.minimum(kept * low, 1.0))
        levels = scaled if widths.gap(scaled) >= 0 else levels
        scores = [on_one_scale(group, self.comparable) for group in widths.groups]
        steps = [(float(scores[i][level]), i) for i, deepest in enumerate(levels) for level in range(deepest)]
        return finish(widths, levels, [i for _, i in sorted(steps, reverse=True)], "search")


def _rounded_up(widths: Widths, number: int, fraction: float) -> int:
    """The level of the narrowest allowed width that is at least this fraction of the group."""
    channels = widths.groups[number].levels
    least = math.ceil(fraction * channels[0] - 1e-9)
    return max(level for level, width in enumerate(channels) if width >= least or level == 0)


def search(
    graph: ChannelGraph,
    scores: Scores,
    budget: Budget,
    *,
    evaluate: Evaluate | None = None,
    result: str | Path | None = None,
    trials: int = 60,
    sampler: str = "tpe",
    lowest: float = LOWEST,
    seed: int = 0,
) -> PruningPlan:
    """The most accurate of many plans at the budget, drawn by Optuna over the groups' keep fractions (AMC, He et al. 2018).

    Fractions of ``lowest`` to 1 become plans as AMC clips its actions (`SearchSpace`), channels of the highest scores stay, and
    ``evaluate`` judges: AMC's accuracy on training images held out, here after BN recalibration, where AMC refits 1 x 1 layers by
    least squares. Optuna takes the place of the reinforcement learning: ``sampler`` is tpe, cma, random (the baseline) or nsga2.
    The first trial is the uniform plan. With nsga2 trials aren't clipped to the budget: a Pareto front of accuracy and cost is
    searched, of which the most accurate plan within the budget (and its tolerance) is taken.

    ``result`` is the ``search.json`` of ``prunus search``, by the same criterion: nothing is tried out then.

    Raises:
        EvidenceError: neither ``evaluate`` nor ``result``, an accuracy that is no finite number, a result of another network, or
            Optuna isn't installed (``pip install prunus[search]``).
        BudgetNotMet: no trial comes within the budget's tolerance.
    """
    if result is not None:
        return _of_result(graph, scores, budget, Path(result))
    if evaluate is None:
        raise EvidenceError(
            "allocator search tries plans out: hand in evaluate (plan -> accuracy), set it in a recipe, or run `prunus search` "
            "and give its search.json as the option result"
        )
    if sampler not in SAMPLERS:
        raise UnknownName.among("sampler", sampler, SAMPLERS)
    if trials < 1:
        raise InvalidBudget(f"search: trials={trials} is no number of plans to try out")
    space = SearchSpace.of(graph, scores, budget, lowest, clipped=sampler != "nsga2")
    found = run_trials(search_trials(space, graph, scores, sampler, seed, evaluate), None, trials)
    return chosen(space, found, {"sampler": sampler})


def search_trials(space: SearchSpace, graph: ChannelGraph, scores: Scores, sampler: str, seed: int, evaluate: Evaluate) -> Trials:
    """The trials of a search in this space, judged by ``evaluate``."""
    bounds = (max(space.lowest, _ABOVE_NOTHING), 1.0)
    return Trials(space.names, bounds, sampler, seed, space.uniform(graph, scores), lambda f: judged(space, f, evaluate))


def judged(space: SearchSpace, fractions: Mapping[str, float], evaluate: Evaluate) -> Outcome:
    """What comes of a draw. Where channels are too coarse for the tolerance, that is the nearest plan below the budget."""
    try:
        plan = space.plan(fractions)
    except BudgetNotMet as error:
        plan = cast("PruningPlan", error.plan)
    return Outcome(plan.counts(), float(evaluate(plan)), 1 - space.widths.gap(space.levels_of(plan.counts())))


def chosen(space: SearchSpace, trials: Sequence[Trial], about: Mapping[str, Any]) -> PruningPlan:
    """The plan of the most accurate trial that meets the budget within its tolerance; of equals, the first.

    Raises:
        BudgetNotMet: there is none; ``plan`` is that of the trial that comes nearest.
    """
    gaps = {trial.number: space.widths.gap(space.levels_of(trial.kept)) for trial in trials}
    within = [trial for trial in trials if 0 <= gaps[trial.number] <= space.widths.budget.tolerance + 1e-12]
    below = [trial for trial in trials if gaps[trial.number] >= 0]
    if not within:
        nearest = min(below, key=lambda trial: gaps[trial.number])
        space.widths.check_close(space.levels_of(nearest.kept), "search")
    best = max(within, key=lambda trial: (trial.accuracy, -trial.number))
    plan = space.widths.plan(space.levels_of(best.kept), "search")
    told = {**about, "trial": best.number, "trials": len(trials), "accuracy": best.accuracy}
    return replace(plan, provenance={**plan.provenance, **told})


def _of_result(graph: ChannelGraph, scores: Scores, budget: Budget, path: Path) -> PruningPlan:
    try:
        tree = read_json_file(path)
        criterion, widths = str(tree["criterion"]), {name: int(width) for name, width in tree["widths"].items()}
        trials = [Trial.from_json(trial) for trial in tree["trials"]]
        if any(trial.kept.keys() != widths.keys() for trial in trials):
            raise ValueError("a trial doesn't say what is kept of every group")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ArtifactError(
            f"can't read the result of a search from {path} ({type(error).__name__}: {error}): give the search.json that "
            "`prunus search` wrote"
        ) from None
    space = SearchSpace.of(graph, scores, budget)
    sizes = {group.name: group.num_channels for group in graph.groups}
    if any(sizes.get(name) != width for name, width in widths.items()) or not set(space.names) <= set(widths):
        raise EvidenceError(f"{path} is a search of another network: search this one with `prunus search`")
    if scores.criterion not in (criterion, "random"):
        warnings.warn(
            f"the search kept channels by {criterion}, and {scores.criterion} keeps others: its accuracies tell little of them; "
            "search by the same criterion",
            PrunusWarning,
            stacklevel=4,
        )
    allowed = [trial for trial in trials if space.holds(trial.kept)]
    gaps = [space.widths.gap(space.levels_of(trial.kept)) for trial in allowed]
    if not any(0 <= gap <= budget.tolerance + 1e-12 for gap in gaps):
        nearest = min((gap for gap in gaps if gap >= 0), default=None)
        within = "none is within it" if nearest is None else f"the nearest stays {nearest:.1%} below it"
        raise BudgetNotMet(
            f"no trial of {path} meets the budget and its limits within the tolerance of {budget.tolerance:.1%}: {within}. "
            "Search for this budget with `prunus search`, or raise the tolerance"
        )
    return chosen(space, allowed, {"result": str(path)})
