"""The knapsack against every plan there is, and what it says where it can't be sure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus import Budget, InvalidBudget, PrunusWarning
from small_nets import NETS, build, images


class Branches(nn.Module):
    """A stem read by two convolutions whose results are joined; the last one may write into the stem's channels again."""

    def __init__(self, widths: Sequence[int], residual: bool) -> None:
        super().__init__()
        stem, left, right = widths
        self.stem = nn.Conv2d(2, stem, 3, padding=1)
        self.left = nn.Conv2d(stem, left, 3, padding=1)
        self.right = nn.Conv2d(stem, right, 1)
        self.join = nn.Conv2d(left + right, stem, 1)
        self.out = nn.Linear(stem, 3)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.join(torch.cat([self.left(x).relu(), self.right(x).relu()], 1))
        return self.out((x + y if self.residual else y.relu()).mean((2, 3)))


def importance_kept(graph: prunus.ChannelGraph, scores: prunus.Scores, kept: Sequence[int]) -> float:
    """The sum of the scores kept; of scores that aren't comparable the product of the shares kept."""
    ordered = [scores.by_group[g.name].sort(descending=True).values for g in graph.prunable]
    values = [float(group[:n].sum()) for group, n in zip(ordered, kept, strict=True)]
    shares = [value / float(group.sum()) for value, group in zip(values, ordered, strict=True)]
    return sum(values) if scores.comparable else math.prod(shares)


@settings(max_examples=40, deadline=None)
@given(
    widths=st.tuples(*[st.integers(2, 5)] * 3),
    residual=st.booleans(),
    budget=st.dictionaries(
        st.sampled_from(["macs", "parameters", "activation_bytes", "channels"]), st.floats(0.5, 0.95), min_size=1, max_size=2
    ),
    comparable=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_no_plan_keeps_more(
    widths: tuple[int, int, int], residual: bool, budget: dict[str, float], comparable: bool, seed: int
) -> None:
    """Of all widths of all groups that meet every limit, the plan's keep the most importance."""
    graph = prunus.trace(Branches(widths, residual), torch.randn(1, 2, 4, 4))
    generator = torch.Generator().manual_seed(seed)
    by_group = {g.name: torch.rand(g.num_channels, generator=generator, dtype=torch.float64) for g in graph.prunable}
    scores = prunus.Scores(by_group, "drawn", comparable)
    asked: Any = Budget(**budget, tolerance=0.99, max_pruning_ratio=1.0)  # type: ignore[arg-type]
    names = [g.name for g in graph.prunable]
    every = np.array(list(product(*(range(1, g.num_channels + 1) for g in graph.prunable))), dtype=np.float64)
    costs = {**graph.cost_model.costs(names, every), "channels": every @ [g.width_factor for g in graph.prunable]}
    limits = {t: np.floor(asked.limit(t, float(costs[t].max())) + 1e-9) for t in budget}
    fits = np.all([np.rint(costs[t]) <= limit for t, limit in limits.items()], axis=0)
    if not fits.any():
        with pytest.raises(prunus.BudgetNotMet):
            prunus.allocate(graph, scores, asked, "knapsack")
        return
    best = max(importance_kept(graph, scores, row) for row in every[fits].astype(int).tolist())
    plan = prunus.allocate(graph, scores, asked, "knapsack")
    found = importance_kept(graph, scores, [plan.counts()[name] for name in names])
    assert found == pytest.approx(best, rel=1e-6)
    assert plan.provenance["optimality_gap"] <= 1e-6


def test_a_case_by_hand() -> None:
    """Two layers of four channels in a chain, 1 x 1 convolutions on one pixel: 3a + ab + 2b multiply-adds, 36 in all.

    a's channels are worth 4, 3, 2, 1 and b's 5, 5, 1, 1. Of the (a, b) that cost at most 18 and can't grow, (2, 3) keeps
    7 + 11 = 18, (1, 4) keeps 4 + 12 = 16 and (4, 1) keeps 10 + 5 = 15.
    """
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph = prunus.trace(net, torch.randn(1, 3, 1, 1))
    assert graph.cost_model.terms("macs") == [{("0",): 3.0, ("0", "2"): 1.0, ("2", "4"): 1.0}]
    worth = {"0": torch.tensor([1.0, 2, 3, 4]), "2": torch.tensor([5.0, 1, 5, 1])}
    scores = prunus.Scores(worth, "by hand", comparable=True)
    plan = prunus.allocate(graph, scores, Budget(macs=18), "knapsack")
    assert plan.counts() == {"0": 2, "2": 3}
    assert plan.keep["0"].tolist() == [False, False, True, True]
    assert plan.keep["2"].tolist() == [True, True, True, False]
    assert plan.predicted.macs == 18


class Beside(nn.Module):
    """Two layers of 16 channels: 320 multiply-adds for a channel of the first, 80 for one of the second, 6,400 in all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_out = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1)
        self.b, self.b_out = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.a_out(self.a(x).relu()), self.b_out(self.b(x[:, :, ::2, ::2]).relu())
        return first.mean((2, 3)) + second.mean((2, 3))


@pytest.mark.parametrize(("comparable", "a", "b"), [(True, 2, 16), (False, 3, 12)])
def test_scores_that_are_not_comparable_are_not_summed(comparable: bool, a: int, b: int) -> None:
    """Equal scores, 1,920 multiply-adds: 2 + 16 is the largest sum, 3/16 x 12/16 the largest product of shares."""
    graph = prunus.trace(Beside(), torch.randn(1, 3, 8, 8))
    scores = prunus.Scores({name: torch.ones(16) for name in ("a", "b")}, "ones", comparable)
    assert prunus.allocate(graph, scores, Budget(macs=1920), "knapsack").counts() == {"a": a, "b": b}


@pytest.mark.parametrize("target", ["macs", "parameters", "activation_bytes"])
@pytest.mark.parametrize("name", NETS)
def test_written_out_costs_are_the_closed_form(name: str, target: str) -> None:
    graph = prunus.trace(build(name), images())
    sums = graph.cost_model.terms(target)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        kept = {g.name: int(torch.randint(1, g.num_channels + 1, (), generator=generator)) for g in graph.prunable}
        counts = {g.name: g.num_channels for g in graph.groups} | kept
        found = [sum(v * np.prod([counts[n] for n in names]) for names, v in terms.items()) for terms in sums]
        assert max(found) == pytest.approx(getattr(graph.cost(None) if not kept else graph.cost_model.cost(kept), target))


def test_it_keeps_more_than_the_greedy_rule_on_a_real_network() -> None:
    import torchvision

    graph = prunus.trace(torchvision.models.resnet18().eval(), torch.randn(1, 3, 64, 64))
    scores = prunus.score(torchvision.models.resnet18(), graph, "random", seed=1)
    removed: dict[str, float] = {}
    for allocator in ("knapsack", "global_per_cost"):
        plan = prunus.allocate(graph, scores, Budget(macs=0.5), allocator)
        removed[allocator] = sum(float(scores.by_group[name][~mask].sum()) for name, mask in plan.keep.items())
    assert removed["knapsack"] < removed["global_per_cost"]


def test_products_of_three_groups_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = prunus.trace(build("Plain"), images())
    names = tuple(g.name for g in graph.prunable[:3])
    monkeypatch.setattr(type(graph.cost_model), "terms", lambda self, target: [{names: 1e9}])
    with pytest.raises(
        InvalidBudget, match=r"products of three groups' channels \(one\.0, two\.0, three\.0\): use allocator='glo"
    ):
        prunus.allocate(graph, prunus.score(build("Plain"), graph, "l1"), Budget(macs=0.5), "knapsack")


def test_a_solver_out_of_time_says_so_and_still_meets_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = prunus.trace(build("Plain"), images())
    scores = prunus.score(build("Plain"), graph, "l1")
    monkeypatch.setattr("scipy.optimize.milp", lambda *_, **__: type("Nothing", (), {"x": None})())
    with pytest.warns(
        PrunusWarning, match="knapsack's solver stopped after 30 s and found no plan: the smallest network is filled"
    ):
        plan = prunus.allocate(graph, scores, Budget(macs=0.5), "knapsack")
    assert 0.99 * 0.5 <= plan.predicted.macs / graph.cost().macs <= 0.5
    assert plan.provenance["optimality_gap"] == np.inf
