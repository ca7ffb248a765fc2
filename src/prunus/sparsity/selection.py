"""The weakest channels of the whole network, towards a budget, a few at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from prunus.allocation.widths import Widths
from prunus.errors import NothingPruned
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores


def weakest(
    graph: ChannelGraph, strengths: Mapping[str, Tensor], budget: Budget, *, at_most: int | None = None, share: float = 1.0
) -> dict[str, Tensor]:
    """What stays when the weakest channels go: group name -> bool (num_channels,).

    The strengths are walked in ascending order, over the floors of the budget, until the budget is met, ``at_most`` channels are
    gone, or a ``share`` (in [0, 1]) of those that the whole budget takes. Only real removals count: a channel at its group's
    floor is passed over and the walk goes on. Groups without strengths stay whole. Nothing goes if the budget is met already.
    """
    keep = {name: torch.ones(len(v), dtype=torch.bool) for name, v in strengths.items()}
    try:
        widths, levels = _walked(graph, strengths, budget, at_most, share)
    except NothingPruned:
        return keep
    for group, level in zip(widths.groups, levels, strict=True):
        keep[group.group.name][group.order[group.levels[level] :]] = False
    return keep


def weakest_plan(graph: ChannelGraph, strengths: Mapping[str, Tensor], budget: Budget) -> PruningPlan:
    """What stays when the weakest channels go until the budget is met, as a plan; `NothingPruned` if it is met already."""
    widths, levels = _walked(graph, strengths, budget, None, 1.0)
    return widths.plan(levels, "weakest")


def _walked(
    graph: ChannelGraph, strengths: Mapping[str, Tensor], budget: Budget, at_most: int | None, share: float
) -> tuple[Widths, list[int]]:
    """Where the walk ends; methods take it every few steps, so nothing else is computed here."""
    values = {name: v.detach().double().cpu() for name, v in strengths.items()}
    widths = Widths(graph, Scores(values, "strength", comparable=True), budget)
    steps = [group.step_scores() for group in widths.groups]
    owners = np.repeat(np.arange(len(steps)), [len(s) for s in steps])
    ranked = owners[np.argsort(np.concatenate(steps), kind="stable")]
    levels = np.concatenate([np.zeros((1, len(steps)), dtype=np.int64), np.eye(len(steps), dtype=np.int64)[ranked].cumsum(0)])
    met = np.flatnonzero(widths.rooms(levels).min(axis=1) >= 0)
    count = int(met[0]) if len(met) else len(ranked)
    count = round(count * share)
    if at_most is not None:
        gone = (widths.table[:, 0] - widths.table[np.arange(len(steps)), levels]).sum(axis=1)
        count = min(count, int(np.flatnonzero(gone <= at_most)[-1]))
    return widths, levels[count].tolist()
