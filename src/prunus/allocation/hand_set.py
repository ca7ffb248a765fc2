"""Allocation with a hand in it: shares or thresholds for single layers, and thresholds made from each layer's own scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from prunus.allocation.by_stage import shallow_to_deep
from prunus.allocation.ranking import levels_at, lowest_first, proportional
from prunus.allocation.widths import GroupWidths, Widths, fits
from prunus.errors import BudgetNotMet, InvalidBudget, UnknownName
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

Floats = npt.NDArray[np.float64]
ALL: Mapping[str, float] = {"*": 1.0}


def per_layer(
    graph: ChannelGraph,
    scores: Scores,
    budget: Budget,
    *,
    ratios: Mapping[str, float] | Literal["shallow_to_deep"] = ALL,
    fixed: bool = False,
) -> PruningPlan:
    """Remove a share of each group's channels, in the proportions of ``ratios``; how much in all, the budget says.

    ``ratios``: glob -> share, of which the first that fits a group (its name, or a layer that writes it) counts; groups that no
    glob fits stay whole. ``{"layer1.*": 1, "layer4.*": 1.5}`` removes half as much again from layer4 as from layer1. With
    ``fixed`` the shares are removed as they are, rounded to whole channels, and the budget is only checked. ``"shallow_to_deep"``
    are the ratios of He et al. (ICCV 2017) instead: see `prunus.allocation.by_stage`.
    """
    if isinstance(ratios, str):
        if ratios != "shallow_to_deep" or fixed:
            raise UnknownName(f"ratios = {ratios!r}: a table of shares, or 'shallow_to_deep', which the budget alone scales")
        return shallow_to_deep(graph, scores, budget)
    widths, chosen = _of_matching(graph, scores, budget, ratios, "ratios")
    shares = np.array([chosen[group.group.name] for group in widths.groups])
    if not fixed:
        return proportional(widths, shares, "per_layer")
    if shares.max() > 1:
        raise InvalidBudget(f"per_layer: {shares.max():g} is no share that can be removed: with fixed=True ratios are at most 1")
    return checked(widths, levels_at(widths, shares), "per_layer")


def thresholds(
    graph: ChannelGraph, scores: Scores, budget: Budget, *, thresholds: Mapping[str, float] = ALL, fixed: bool = False
) -> PruningPlan:
    """Remove what scores below its layer's threshold; the budget says by which factor all thresholds are multiplied.

    ``thresholds``: glob -> positive number, of which the first that fits a group (its name, or a layer that writes it) counts;
    groups that no glob fits stay whole. The default is one threshold for all layers. With ``fixed`` they are taken as they are
    (score < threshold goes, exactly) and the budget is only checked.
    """
    widths, chosen = _of_matching(graph, scores, budget, thresholds, "thresholds")
    if fixed:
        return checked(widths, [_level_at(group, chosen[group.group.name]) for group in widths.groups], "thresholds")
    return lowest_first(widths, [group.step_scores() / chosen[group.group.name] for group in widths.groups], "thresholds")


def mean_minus_deviations(graph: ChannelGraph, scores: Scores, budget: Budget) -> PruningPlan:
    """Remove what scores below its layer's mean - c * standard deviation, with the one c that the budget asks for."""
    widths = Widths(graph, scores, budget)
    return lowest_first(widths, [_standardised(group) for group in widths.groups], "mean_minus_deviations")


def _standardised(group: GroupWidths) -> Floats:
    values = group.sorted_scores.numpy()
    deviation = float(values.std())
    return (group.step_scores() - values.mean()) / (deviation if deviation > 0 else 1.0)


def _level_at(group: GroupWidths, threshold: float) -> int:
    """The narrowest allowed width that keeps every channel that scores at least the threshold."""
    staying = int((group.sorted_scores >= threshold).sum())
    return max(i for i, channels in enumerate(group.levels) if channels >= staying or i == 0)


def checked(widths: Widths, levels: list[int], allocator: str) -> PruningPlan:
    """The plan as it is asked for; `BudgetNotMet` if it costs too much."""
    plan = widths.plan(levels, allocator)
    missed = [row for row in plan.provenance["budget"] if not row["met"]]
    if missed:
        told = ", ".join(f"{row['target']} {row['achieved']:,.0f} > {row['requested']:,.0f}" for row in missed)
        raise BudgetNotMet(f"{allocator} with fixed=True misses the budget ({told}): remove more, or leave out fixed", plan)
    return plan


def _of_matching(
    graph: ChannelGraph, scores: Scores, budget: Budget, numbers: Mapping[str, float], what: str
) -> tuple[Widths, dict[str, float]]:
    """The room of the groups that a glob fits, and the number of each."""
    for glob, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not number > 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidBudget(f"{what}: {glob!r} must have a number above zero, not {number!r}: leave out what stays whole")
        if not any(fits(glob, group) for group in graph.groups):
            raise UnknownName.among(f"group or layer in {what}", glob, [group.name for group in graph.groups])
    found = {g.name: next((n for glob, n in numbers.items() if fits(glob, g)), None) for g in graph.prunable}
    chosen = {name: float(number) for name, number in found.items() if number is not None}
    by_group = {name: values for name, values in scores.by_group.items() if name in chosen}
    return Widths(graph, replace(scores, by_group=by_group), budget), chosen
