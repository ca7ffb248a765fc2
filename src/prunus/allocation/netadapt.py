"""NetAdapt (Yang et al. 2018): step by step, from the group whose channels cost the least accuracy for what they save."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prunus.allocation.ranking import finish
from prunus.allocation.widths import Widths
from prunus.errors import EvidenceError, InvalidBudget, UnknownName
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

Rule = Literal["ratio", "accuracy"]
Floats = npt.NDArray[np.float64]
_DROP, _SAVED = 1e-6, 1e-5
"""What the released code adds to the drop of accuracy and to what is saved before it divides."""


def netadapt(
    graph: ChannelGraph,
    scores: Scores,
    budget: Budget,
    *,
    evaluate: Callable[[PruningPlan], float] | None = None,
    rounds: int = 10,
    decay: float = 0.96,
    step: float | None = None,
    rule: Rule = "ratio",
) -> PruningPlan:
    """Round by round shrink the one group that costs the least accuracy for what it saves, tried with ``evaluate`` (NetAdapt).

    Round t asks for a cost of ``step`` x ``decay``^(t - 1) of the full network's less than the round before left. Every group is
    tried alone: it loses channels of the lowest scores until the cost is below the target (in the last step: within the budget).
    Of these candidates the one with the smallest (drop of accuracy + 1e-6) / (cost saved + 1e-5) is taken, as in the released
    code, or with ``rule="accuracy"`` the most accurate. Costs are shares of the full network's; of several targets, the one that
    is furthest from its limit. Without ``step`` it is such that the targets of ``rounds`` rounds end at the budget; with one,
    rounds go on until the budget is met (Yang et al. 2018: 0.025, at most 30).

    Departures: a candidate isn't fine-tuned for 500 iterations before it is judged, unless ``evaluate`` does that; an accuracy
    that rises counts as no drop (the released quotient would then prefer to save little); where no group can reach a round's
    target alone, each is tried at its smallest; what the last round overshoots is given back.

    Raises:
        EvidenceError: there is no ``evaluate``, or it gives no finite number.
        InvalidBudget: options out of range, or steps that all together don't reach the budget.
    """
    if evaluate is None:
        raise EvidenceError("allocator netadapt tries plans out: hand in evaluate (plan -> accuracy), or set it in a recipe")
    _check_options(rounds, decay, step, rule)
    widths = Widths(graph, scores, budget)
    widths.check_reachable()
    resource = _Resource(widths)
    targets = _targets(resource.budget, rounds, decay, step)
    levels, history, accuracy = (
        [0] * len(widths.groups),
        list[int](),
        _finite(evaluate, widths.plan([0] * len(widths.groups), "")),
    )
    tried = 1
    told: list[dict[str, Any]] = []
    while widths.gap(levels) < 0:
        now = float(resource.of(np.array([levels]))[0])
        target = max(now - next(targets, 1.0), resource.budget)
        candidates = [
            (_finite(evaluate, widths.plan(trial, "netadapt")), float(resource.of(np.array([trial]))[0]), group, trial)
            for group, trial in _shrunk(widths, resource, levels, target)
        ]
        tried += len(candidates)
        chosen = _best([(accuracy - a, now - r) for a, r, _, _ in candidates], rule)
        accuracy, left, group, trial = candidates[chosen]
        history += [group] * (trial[group] - levels[group])
        levels = trial
        told.append({"group": widths.groups[group].group.name, "cost": left, "accuracy": accuracy})
    plan = finish(widths, levels, history[::-1], "netadapt")
    return replace(plan, provenance={**plan.provenance, "rounds": told, "evaluations": tried})


class _Resource:
    """Cost as a share of the full network's. With several targets: of the one that has the furthest to go."""

    def __init__(self, widths: Widths) -> None:
        self.widths = widths
        limits, full = widths.limits, widths.full
        shares = {target: limit / full[target] for target, limit in limits.items() if limit < full[target]}
        self.budget = min(shares.values())
        self._spans = np.array([max(full[t] / limit - 1, 0.0) for t, limit in limits.items()])

    def of(self, levels: npt.NDArray[np.int64]) -> Floats:
        """(positions, groups) -> (positions,); at most ``budget`` exactly where all limits hold."""
        over = -self.widths.rooms(levels)[:, self._spans > 0] / self._spans[self._spans > 0]
        held = self.widths.rooms(levels)[:, self._spans == 0]
        worst = over.max(axis=1)
        worst = np.where((held < 0).any(axis=1), np.maximum(worst, 1.0), worst)
        return self.budget + (1 - self.budget) * worst


def _targets(budget: float, rounds: int, decay: float, step: float | None) -> Any:
    """What every round is to save, as shares of the full cost."""
    total = float(rounds) if decay == 1 else (1 - decay**rounds) / (1 - decay)
    if step is None:
        return ((1 - budget) / total * decay**number for number in range(rounds))
    if decay < 1 and step / (1 - decay) < 1 - budget:
        raise InvalidBudget(
            f"netadapt: steps of {step:g} that shrink by {decay:g} save {step / (1 - decay):.0%} of the cost at most, the budget "
            f"asks for {1 - budget:.0%}: take a larger step or decay, or leave out step"
        )
    return (step * decay**number for number in range(10_000))


def _shrunk(widths: Widths, resource: _Resource, levels: list[int], target: float) -> list[tuple[int, list[int]]]:
    """Every group alone, at the widest level whose cost is below the target (at the budget: within it); where none gets there,
    all that can still shrink at their smallest."""
    within: list[tuple[int, list[int]]] = []
    smallest: list[tuple[int, list[int]]] = []
    for number, group in enumerate(widths.groups):
        deeper = np.arange(levels[number] + 1, len(group.levels))
        if not len(deeper):
            continue
        positions = np.repeat([levels], len(deeper), axis=0)
        positions[:, number] = deeper
        costs = resource.of(positions)
        enough = np.flatnonzero(costs <= target if target <= resource.budget else costs < target)
        smallest.append((number, positions[-1].tolist()))
        if len(enough):
            within.append((number, positions[enough[0]].tolist()))
    return within or smallest


def _best(changes: list[tuple[float, float]], rule: Rule) -> int:
    """The candidate to take, of (drop of accuracy, cost saved): the first of those that are equally good."""
    if rule == "accuracy":
        return min(range(len(changes)), key=lambda i: changes[i][0])
    return min(range(len(changes)), key=lambda i: (max(changes[i][0], 0.0) + _DROP) / (changes[i][1] + _SAVED))


def _finite(evaluate: Callable[[PruningPlan], float], plan: PruningPlan) -> float:
    accuracy = float(evaluate(plan))
    if not math.isfinite(accuracy):
        raise EvidenceError(
            f"evaluate gave {accuracy} for a plan that removes {plan.num_removed} channels: it must return a finite number, "
            "higher = better"
        )
    return accuracy


def _check_options(rounds: int, decay: float, step: float | None, rule: str) -> None:
    if rule not in ("ratio", "accuracy"):
        raise UnknownName.among("rule of netadapt", rule, ("ratio", "accuracy"))
    if rounds < 1 or not 0 < decay <= 1 or not (step is None or 0 < step < 1):
        raise InvalidBudget(
            f"netadapt: rounds={rounds} (from 1), decay={decay:g} and step={step} (shares, above 0) are out of range"
        )
