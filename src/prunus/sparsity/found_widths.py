"""Plans of methods that find the widths themselves: what they left, if the budget allows it, and fewer channels if it doesn't."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.allocation import allocate
from prunus.allocation.widths import allowed_widths, check_closed_form, check_limits
from prunus.errors import PrunusWarning
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores


def costs_of(graph: ChannelGraph, counts: Mapping[str, int], budget: Budget) -> list[dict[str, Any]]:
    """What a network of these widths costs beside each target of the budget, as a plan's ``provenance["budget"]`` has it."""
    check_closed_form(graph, budget)
    now, full = _amounts(graph, counts), _amounts(graph, {name: graph[name].num_channels for name in counts})
    rows: list[dict[str, Any]] = []
    for target in budget.targets:
        limit = budget.limit(target, full[target])
        limit = limit if target == "latency" else math.floor(limit + 1e-9) or limit  # the others are whole numbers
        achieved = now[target]
        rows.append({"target": target, "requested": limit, "full": full[target], "achieved": achieved, "met": achieved <= limit})
    return rows


def _amounts(graph: ChannelGraph, counts: Mapping[str, int]) -> dict[str, float]:
    """Cost in every target's unit."""
    costs = graph.cost_model.costs(list(counts), np.array([list(counts.values())], dtype=np.float64))
    gone = sum((graph[name].num_channels - left) * graph[name].width_factor for name, left in counts.items())
    amounts = {name: float(values[0] if name == "latency" else np.rint(values[0])) for name, values in costs.items()}
    return {**amounts, "channels": float(graph.num_prunable_channels - gone)}


def meets(graph: ChannelGraph, counts: Mapping[str, int], budget: Budget) -> bool:
    """Whether a network of these widths is within every target of the budget."""
    return all(row["met"] for row in costs_of(graph, counts, budget))


def plan_within(
    graph: ChannelGraph,
    left: Mapping[str, Tensor],
    strengths: Mapping[str, Tensor],
    budget: Budget,
    method: str,
    allocator: str = "global",
) -> PruningPlan:
    """The channels that a method left (group name -> bool (num_channels,)), if the budget and its floors allow these widths.

    Otherwise ``allocator`` decides by ``strengths`` (at least zero), channels that aren't left going first, with a
    `PrunusWarning`: training hasn't made those removable that go besides.
    """
    keep = {name: mask.cpu() for name, mask in left.items()}
    counts = {name: int(mask.sum()) for name, mask in keep.items()}
    rows = costs_of(graph, counts, budget)
    check_limits(graph, budget)
    if all(row["met"] for row in rows) and all(_allowed(graph, name, counts[name], budget) for name in counts):
        return PruningPlan(keep, graph.cost_model.cost(counts), {"allocator": method, "budget": rows})
    scores = {name: torch.where(keep[name], values.detach().cpu().double(), -1.0) for name, values in strengths.items()}
    plan = allocate(graph, Scores(scores, method, comparable=True), budget, allocator)
    besides = sum(int((keep[name] & ~mask).sum()) for name, mask in plan.keep.items())
    if besides:
        said = ", ".join(f"{row['achieved']:,.0f} {row['target']} for {row['requested']:,.0f}" for row in rows)
        warnings.warn(
            f"{method} ended with {said}: to meet the budget {besides} channels go that training hasn't made removable, the "
            "weakest first. Train longer, let the method press harder, or fine-tune behind it",
            PrunusWarning,
            stacklevel=3,
        )
    return plan


def _allowed(graph: ChannelGraph, name: str, count: int, budget: Budget) -> bool:
    group = graph[name]
    liked = graph.cost_model.multiples
    return count in allowed_widths(group, torch.zeros(group.num_channels), budget, name in graph.emptiable, liked).levels
