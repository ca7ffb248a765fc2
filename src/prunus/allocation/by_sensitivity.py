"""Allocation by sensitivity: from every group as much as its own curve of accuracy bears."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from prunus.allocation.hand_set import checked
from prunus.allocation.ranking import lowest_first
from prunus.allocation.sensitivity import (
    A_POINT,
    SHARES,
    Evaluate,
    Points,
    SensitivityPoint,
    check_points,
    drops,
    largest_shares,
    read_points,
    scan,
)
from prunus.allocation.widths import Widths
from prunus.errors import EvidenceError, InvalidBudget, PrunusWarning
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

Floats = npt.NDArray[np.float64]
_ROUNDING = 1e-9
_TIE = 1e-6
"""Accuracies on few images are often equal: of two groups with the same drop, the one that lost the smaller share goes first."""


def by_sensitivity(
    graph: ChannelGraph,
    scores: Scores,
    budget: Budget,
    *,
    evaluate: Evaluate | None = None,
    points: Points | None = None,
    shares: Sequence[float] | None = None,
    epsilon: float | None = None,
    fixed: bool = False,
) -> PruningPlan:
    """Remove from every group the largest share whose accuracy, pruned alone, drops by at most epsilon: found from the budget.

    Each group is scanned over ``shares`` with ``evaluate``, or ``points`` tell what a scan found (or the path of its
    ``sensitivity.json``); groups that it left out stay whole. Between two scanned shares the drop is interpolated; widths
    beyond the largest share were never measured, and go last. With ``fixed`` the ``epsilon`` is taken as it is (default: one
    point), the shares are scanned ones, and the budget is only checked. (Li et al. 2016, who choose the shares by eye.)

    The plan's provenance tells ``epsilon`` and the groups that went beyond what was scanned (``unmeasured``).
    """
    _check_options(evaluate, points, shares, epsilon, fixed)
    widths = Widths(graph, scores, budget)
    if not fixed:
        widths.check_reachable()
    if points is None:
        assert evaluate is not None
        names = {group.group.name for group in widths.groups}
        of_groups = replace(scores, by_group={name: s for name, s in scores.by_group.items() if name in names})
        found = scan(graph, of_groups, evaluate, shares or SHARES, limits=budget)
    else:
        found, criterion = read_points(points)
        _check_criterion(criterion, scores)
    curves = drops(check_points(found, graph))
    known = {name: values for name, values in scores.by_group.items() if name in curves}
    widths = Widths(graph, replace(scores, by_group=known), budget)
    if fixed:
        return _fixed(widths, largest_shares(found, A_POINT if epsilon is None else epsilon))
    required = _required(widths, curves)
    plan = lowest_first(widths, [steps for steps, _ in required], "sensitivity")
    return _told(widths, plan, curves, [drop for _, drop in required])


def _check_options(
    evaluate: Evaluate | None, points: Points | None, shares: Sequence[float] | None, epsilon: float | None, fixed: bool
) -> None:
    if evaluate is None and points is None:
        raise EvidenceError(
            "allocator sensitivity needs the accuracies of a scan: run `prunus sensitivity` and give its sensitivity.json as the "
            "option points, or hand in evaluate (plan -> accuracy) to `prunus.allocate`"
        )
    if points is not None and shares is not None:
        raise InvalidBudget("allocator sensitivity: shares are what a scan removes, and points are of one that is done: give one")
    if epsilon is not None and not fixed:
        raise InvalidBudget("allocator sensitivity finds epsilon from the budget: to hold it, set fixed=True; else leave it out")
    if epsilon is not None and not (math.isfinite(epsilon) and epsilon >= 0):
        raise InvalidBudget(f"allocator sensitivity: epsilon={epsilon!r} is no drop of accuracy: 0.01 is one point")


def _check_criterion(criterion: str | None, scores: Scores) -> None:
    # Random scores are those by which a run checks its budget before it trains.
    if criterion is not None and scores.criterion not in (criterion, "random"):
        warnings.warn(
            f"the scan removed channels by {criterion}, and {scores.criterion} removes others: its curves tell little of them; "
            "scan by the same criterion",
            PrunusWarning,
            stacklevel=4,
        )


def _fixed(widths: Widths, largest: Mapping[str, SensitivityPoint | None]) -> PruningPlan:
    levels: list[int] = []
    for group in widths.groups:
        point = largest[group.group.name]
        staying = group.levels[0] - (point.removed if point is not None else 0)
        levels.append(max(i for i, channels in enumerate(group.levels) if channels >= staying))
    return checked(widths, levels, "sensitivity")


def _required(widths: Widths, curves: Mapping[str, list[tuple[SensitivityPoint, float]]]) -> list[tuple[Floats, Floats]]:
    """For every group, by steps from one allowed width to the next: its place in the order of all steps, and the epsilon from
    which on it is allowed (infinite beyond what was scanned). Both grow with every step."""
    # The largest share within epsilon may lie behind a dip: what a share requires is the least drop from it on.
    least = {name: np.minimum.accumulate([drop for _, drop in curve][::-1])[::-1].clip(0) for name, curve in curves.items()}
    highest = max(float(drop.max()) for drop in least.values())
    found: list[tuple[Floats, Floats]] = []
    for group in widths.groups:
        name = group.group.name
        scanned = np.array([0.0, *(point.share for point, _ in curves[name])])
        removed = 1 - np.array(group.levels[1:]) / group.levels[0]
        epsilon = np.interp(removed, scanned, np.array([0.0, *least[name]]))
        beyond = removed > scanned[-1] + _ROUNDING
        place = np.where(beyond, highest + removed, epsilon) + _TIE * removed
        found.append((place, np.where(beyond, np.inf, epsilon)))
    return found


def _told(
    widths: Widths,
    plan: PruningPlan,
    curves: Mapping[str, list[tuple[SensitivityPoint, float]]],
    epsilons: Sequence[Floats],
) -> PruningPlan:
    """The plan with the largest drop it accepts in a group, as far as that was measured."""
    counts, accepted, unmeasured = plan.counts(), [0.0], list[str]()
    for group, epsilon in zip(widths.groups, epsilons, strict=True):
        level = group.levels.index(counts[group.group.name])
        within = epsilon[:level][np.isfinite(epsilon[:level])]
        accepted.append(float(within.max(initial=0.0)))
        if len(within) < level:
            unmeasured.append(group.group.name)
    return replace(plan, provenance={**plan.provenance, "epsilon": max(accepted), "unmeasured": unmeasured})
