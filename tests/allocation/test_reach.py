"""How far a budget can go: the smallest allowed network, counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus import Budget, BudgetNotMet, InvalidBudget, NothingPruned, UnknownName
from prunus.allocation import Reach, check_reach
from small_nets import build, images


def test_the_smallest_network_by_hand() -> None:
    """1 x 1 convolutions 3 -> 4 -> 8 -> 2 on one pixel: 12 + 32 + 16 MACs; at two and four channels 6 + 8 + 8, and as many
    weights, with biases (4 + 8 + 2, then 2 + 4 + 2) beside them."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    graph = prunus.trace(net, torch.randn(1, 3, 1, 1))
    budget = Budget(macs=0.5, parameters=20, channels=9, max_pruning_ratio=0.5)
    assert prunus.reach(graph, budget) == (
        Reach("macs", 22, 30, 60),
        Reach("parameters", 30, 20, 74),
        Reach("channels", 6, 9, 12),
    )
    assert [row.reachable for row in prunus.reach(graph, budget)] == [True, False, True]
    with pytest.raises(BudgetNotMet, match=r"the budget parameters <= 20 can't be reached: the smallest allowed network has 30"):
        check_reach(graph, budget)


def test_what_is_reachable_is_what_allocation_reaches() -> None:
    model = build("Residual")
    graph = prunus.trace(model, images())
    scores = prunus.score(model, graph, "l1")
    (row,) = prunus.reach(graph, Budget(macs=0.5, min_channels=3))
    plan = prunus.allocate(graph, scores, Budget(macs=int(row.smallest), min_channels=3))
    assert plan.predicted.macs == row.smallest
    with pytest.raises(BudgetNotMet):
        prunus.allocate(graph, scores, Budget(macs=int(row.smallest) - 1, min_channels=3))


def test_what_can_not_be_told() -> None:
    graph = prunus.trace(build("Plain"), images())
    with pytest.raises(InvalidBudget, match="a budget on latency needs measurements on this machine"):
        prunus.reach(graph, Budget(latency=0.5))
    with pytest.raises(NothingPruned, match="all 4 groups are frozen, so nothing can be pruned"):
        check_reach(prunus.trace(build("Plain"), images(), keep="*"), Budget(macs=0.5))


def test_limits_of_single_groups_are_part_of_the_smallest_network() -> None:
    """The net of above, of whose second layer at most a quarter goes: 6 channels, and 2 of the first: 6 + 12 + 12 MACs."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    graph = prunus.trace(net, torch.randn(1, 3, 1, 1))
    (row,) = prunus.reach(graph, Budget(macs=0.5, max_pruning_ratio=0.5, limits={"2": 0.25}))
    assert row == Reach("macs", 30, 30, 60)
    (row,) = prunus.reach(graph, Budget(channels=0.5, limits={"*": 3, "group:2": 5, "2": 0.9}))
    assert row.smallest == 3 + 5
    with pytest.raises(UnknownName, match="unknown group or layer in limits '3'"):
        prunus.reach(graph, Budget(macs=0.5, limits={"3": 0.25}))
