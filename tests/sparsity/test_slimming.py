"""METHODS E3: the hand-computed percentile, the subgradient, floors, and where scales start."""

from __future__ import annotations

import pytest
import torch

import prunus
from prunus.errors import BudgetNotMet, PrunusWarning
from prunus.sparsity.slimming import NetworkSlimming, threshold
from prunus.training_hooks import SparsityTask
from small_nets import Dense, Plain, Residual, images

TENTHS = torch.arange(1, 11, dtype=torch.float64) / 10


def prepared(model, **options):
    graph = prunus.trace(model, images())
    method = NetworkSlimming(**options)
    method.prepare(model, graph, SparsityTask(prunus.Budget(macs=0.5), images()))
    return method


@pytest.mark.parametrize(("released", "kept"), [(True, [0.9, 1.0]), (False, [0.8, 0.9, 1.0])])
def test_seventy_percent_of_ten_scales(released: bool, kept: list[float]) -> None:
    """The released rule cuts at .8 and takes its channel along: two stay. Exactly seven of ten leave three."""
    cut = threshold(TENTHS[torch.randperm(10)], 0.7, released=released)
    assert TENTHS[cut <= TENTHS].tolist() == kept


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.1, 1), (0.3, 3), (0.9, 9), (0.999, 9)])
def test_exactly_the_share_goes(share: float, count: int) -> None:
    assert int((threshold(TENTHS, share) > TENTHS).sum()) == count


def test_the_subgradient_is_added_to_the_scales_alone() -> None:
    model = Plain((4, 6, 6))
    method = prepared(model, strength=0.25, initial_scale=0.0)
    with torch.no_grad():
        model.two[1].weight.copy_(torch.tensor([1.0, -2.0, 0.0, 3.0, -1.0, 1.0]))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    method.after_backward()
    assert model.two[1].weight.grad.tolist() == [1.25, 0.75, 1.0, 1.25, 0.75, 1.25]
    assert all(bool((p.grad == 1).all()) for name, p in model.named_parameters() if not name.endswith("1.weight"))


def test_scales_of_an_untrained_network_start_at_a_half() -> None:
    fresh, used = Plain((4, 6, 6)), Plain((4, 6, 6))
    with torch.no_grad():
        used.one[1].weight[2] = 0.9
    prepared(fresh), prepared(used)
    assert fresh.two[1].weight.tolist() == [0.5] * 6 and used.two[1].weight.tolist() == [1.0] * 6


def test_weight_decay_is_on_the_scales() -> None:
    options = prepared(Plain((4, 6, 6)), weight_decay=0.125).parameter_options()
    assert options == {f"{layer}.1.weight": {"weight_decay": 0.125} for layer in ("one", "two", "three")}


def test_a_percentile_goes_globally_but_for_the_floors() -> None:
    """The first layer's scales are the lowest of all: without a floor it would go whole."""
    model = Plain((4, 8, 8))
    method = prepared(model, percentile=0.5)
    with torch.no_grad():
        model.one[1].weight.copy_(torch.tensor([0.01, 0.02, 0.03, 0.04]))
        model.two[1].weight.copy_(torch.arange(8) / 8 + 0.5)
        model.three[1].weight.copy_(torch.arange(8) / 8 + 0.6)
    plan = method.plan(prunus.Budget(macs=0.9, min_channels=2))
    # of 20 scales the lowest ten are the first layer's four (of which two stay: the floor), .5, .6, .625, .725, .75 and .85
    assert {name: mask.sum().item() for name, mask in plan.keep.items()} == {"one.0": 2, "two.0": 5, "three.0": 5}
    assert plan.keep["one.0"].tolist() == [False, False, True, True]
    with pytest.raises(BudgetNotMet, match="with fixed=True misses the budget"):
        method.plan(prunus.Budget(macs=0.1))


def test_a_channel_of_several_norms_has_their_mean() -> None:
    model = Residual()
    method = prepared(model)
    with torch.no_grad():
        for norm, value in zip((model.stem[1], model.outer[0][1], model.outer[1][1]), (1.0, -0.5, 0.0), strict=True):
            norm.weight.fill_(value)
    assert method.strengths()["stem.0"].tolist() == [0.5] * 16


def test_groups_without_norms_stay_whole_with_a_warning() -> None:
    model = Dense()
    model.last[1] = torch.nn.Identity()
    with pytest.warns(
        PrunusWarning, match="slimming: 1 of 4 groups stay whole, for they have not a batch norm with scales: last"
    ):
        method = prepared(model)
    assert "last.0" not in method.plan(prunus.Budget(macs=0.5, tolerance=0.1)).keep
