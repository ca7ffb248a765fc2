"""Gates while a network trains: which groups have one, copies of the network, folding, and plans from what a method left."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import PrunusWarning, UnsupportedNetwork
from prunus.sparsity.found_widths import costs_of, plan_within
from prunus.sparsity.gated import GatedMethod, fold_gates
from prunus.training_hooks import SparsityTask
from small_nets import NETS, Plain, build, images

X = images(5, dtype=torch.float64, seed=3)


class Fixed(GatedMethod):
    """Gates that were given."""

    name = "fixed"

    def __init__(self, gates: dict[str, Tensor]) -> None:
        self.given = gates

    def gates(self) -> dict[str, Tensor]:
        return self.given

    def left(self) -> dict[str, Tensor]:
        return {name: gate > 0.5 for name, gate in self.given.items()}

    def strengths(self) -> dict[str, Tensor]:
        return self.given


def prepared(name: str, gates: dict[str, Tensor] | None = None) -> tuple[nn.Module, prunus.ChannelGraph, Fixed]:
    model = build(name, torch.float64)
    graph = prunus.trace(model, X[:1])
    generator = torch.Generator().manual_seed(1)
    drawn = {g.name: torch.rand(g.num_channels, generator=generator, dtype=torch.float64) for g in graph.prunable}
    method = Fixed(drawn if gates is None else gates)
    method.prepare(model, graph, SparsityTask(prunus.Budget(macs=0.5, tolerance=0.2), X[:1]))
    return model, graph, method


@pytest.mark.parametrize("name", NETS)
def test_folded_gates_are_the_same_function(name: str) -> None:
    model, graph, method = prepared(name)
    with torch.no_grad():
        gated = model(X)
        plain = build(name, torch.float64)(X)
        assert float((gated - plain).abs().max()) > 1e-3
        finished = method.finish()
        torch.testing.assert_close(finished(X), gated, rtol=1e-12, atol=1e-12)
    assert not finished._forward_hooks and not finished._forward_pre_hooks
    again = build(name, torch.float64)
    fold_gates(again, graph, method.given)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), finished.state_dict().values(), strict=True))


def test_a_copy_of_the_network_is_gated_like_the_network() -> None:
    model, _, _ = prepared("Residual")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(X), model(X))
        twin.classifier.weight.mul_(2)
        twin.classifier.bias.mul_(2)
        torch.testing.assert_close(twin(X), 2 * model(X))


def test_an_error_in_the_forward_pass_leaves_no_gates_behind() -> None:
    model, _, _ = prepared("Plain")
    with torch.no_grad():
        before = model(X)
        with pytest.raises(RuntimeError):
            model(X[:, :, 0])
        assert torch.equal(model(X), before)


class ByHand(nn.Module):
    """The first convolution is read by another one, the second by a product of matrices."""

    def __init__(self, first: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3) if first else None
        self.second = nn.Conv2d(6 if first else 1, 5, 3)
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first is None else torch.relu(self.first(x))
        return torch.relu(self.second(x)).mean((2, 3)) @ self.weight


@pytest.mark.parametrize("first", [True, False])
def test_groups_that_no_gate_reaches(first: bool) -> None:
    model = ByHand(first).double()
    graph = prunus.trace(model, X[:1])
    task = SparsityTask(prunus.Budget(macs=0.5), X[:1])
    if not first:
        with pytest.raises(UnsupportedNetwork, match=r"fixed masks channels where .* none of the 1 prunable groups"):
            Fixed({}).prepare(model, graph, task)
        return
    with pytest.warns(PrunusWarning, match=r"fixed: 1 of 2 groups stay whole, .*: second"):
        method = Fixed({})
        method.prepare(model, graph, task)
    assert [group.name for group in method.groups] == ["first"]


# -- plans


def case() -> tuple[prunus.ChannelGraph, dict[str, Tensor], dict[str, Tensor]]:
    graph = prunus.trace(Plain((8, 8, 8)), images())
    left = {g.name: torch.arange(8) < 4 for g in graph.prunable}
    return graph, left, {g.name: torch.arange(8.0) for g in graph.prunable}


def test_what_a_method_left_is_the_plan_where_the_budget_allows_it() -> None:
    """Also far below it: the widths are the method's finding."""
    graph, left, strengths = case()
    plan = plan_within(graph, left, strengths, prunus.Budget(macs=0.9, parameters=0.9), "mine")
    assert all(torch.equal(plan.keep[name], left[name]) for name in left)
    small = graph.cost_model.cost(dict.fromkeys(left, 4))
    assert plan.predicted == small and plan.provenance["allocator"] == "mine"
    rows = {row["target"]: (row["achieved"], row["full"], row["met"]) for row in plan.provenance["budget"]}
    assert rows == {t: (getattr(small, t), getattr(graph.cost(), t), True) for t in ("macs", "parameters")}


def test_a_tighter_budget_takes_the_weakest_of_the_rest_and_says_so() -> None:
    graph, left, strengths = case()
    with pytest.warns(PrunusWarning, match=r"mine ended with .* macs for .*: to meet the budget \d+ channels go that"):
        plan = plan_within(graph, left, strengths, prunus.Budget(macs=0.15, tolerance=0.2), "mine")
    assert plan.predicted.macs <= 0.15 * graph.cost().macs
    for name, mask in plan.keep.items():
        assert not bool((mask & ~left[name]).any())
        assert mask.tolist() == sorted(mask.tolist())[::-1] or not mask[0]  # of the four the weakest are the first


@pytest.mark.parametrize("limits", [{"min_channels": 5}, {"multiple_of": 3}, {"max_pruning_ratio": 0.4}])
def test_floors_of_the_budget_are_kept(limits: dict[str, float]) -> None:
    graph, left, strengths = case()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrunusWarning)
        plan = plan_within(graph, left, strengths, prunus.Budget(macs=0.6, tolerance=0.5, **limits), "mine")
    counts = plan.counts()
    assert min(counts.values()) >= max(1, limits.get("min_channels", 0), 8 * (1 - limits.get("max_pruning_ratio", 1)))
    assert all(n == 8 or n % limits.get("multiple_of", 1) == 0 for n in counts.values())


def test_channels_are_counted() -> None:
    graph, _, _ = case()
    (row,) = costs_of(graph, {"one.0": 3, "two.0": 4, "three.0": 8}, prunus.Budget(channels=14))
    assert (row["full"], row["achieved"], row["met"]) == (24, 15, False)
