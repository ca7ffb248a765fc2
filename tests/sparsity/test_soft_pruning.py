"""Soft filter pruning by norm and by geometric median: the filters of METHODS E2, and what is zero when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.sparsity.soft_pruning import GeometricMedianPruning, SoftFilterPruning
from prunus.training_hooks import SparsityTask
from small_nets import Plain, images

X = images(4, dtype=torch.float64, seed=6)


def of_filters(*weights: float) -> nn.Module:
    """A 1 x 1 convolution of these filters of one weight, and one that reads it."""
    model = nn.Sequential(nn.Conv2d(1, len(weights), 1, bias=False), nn.ReLU(), nn.Conv2d(len(weights), 3, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(weights).reshape(-1, 1, 1, 1))
    return model


def zeroed(method: SoftFilterPruning, model: nn.Module, share: float) -> list[int]:
    """Filters that one epoch's end sets to zero."""
    before = model[0].weight.detach().flatten().clone()
    graph = prunus.trace(model, X[:1])
    method.prepare(model, graph, SparsityTask(prunus.Budget(channels=share), X[:1]))
    method.begin(1, 1)
    method.end_epoch(0.0)
    now = model[0].weight.detach().flatten()
    gone = (~method.left()["0"]).nonzero()[:, 0].tolist()
    assert all(float(now[c]) == 0 for c in gone) and all(now[c] == before[c] for c in range(len(now)) if c not in gone)
    return gone


def test_filters_by_hand() -> None:
    """Of (0, 1, 2, 4, 10) the distances are (17, 14, 13, 15, 33): 40 % are 1 and 2; by the norm they are 0 and 1."""
    filters = (0.0, 1.0, 2.0, 4.0, 10.0)
    assert zeroed(GeometricMedianPruning(), of_filters(*filters), 0.6) == [1, 2]
    assert zeroed(SoftFilterPruning(), of_filters(*filters), 0.6) == [0, 1]


def test_the_mix_by_hand() -> None:
    """Of (0, 1, 2, 4, 7, 12) the norm takes 0, then the distances (21, 18, 16, 19, 34) take the filter of 4."""
    assert zeroed(GeometricMedianPruning(norm_share=1 / 6), of_filters(0.0, 1.0, 2.0, 4.0, 7.0, 12.0), 4 / 6) == [0, 3]


def prepared(method: SoftFilterPruning) -> tuple[nn.Module, prunus.ChannelGraph]:
    torch.manual_seed(2)
    model = Plain((8, 8, 8)).double()
    for block in (model.one, model.two, model.three):
        for tensor, low, high in ((block[1].weight, 0.5, 1.5), (block[1].bias, -0.3, 0.3), (block[1].running_mean, -0.3, 0.3)):
            nn.init.uniform_(tensor, low, high)
    graph = prunus.trace(model, X[:1])
    method.prepare(model, graph, SparsityTask(prunus.Budget(macs=0.4, tolerance=0.1), X[:1]))
    return model, graph


def step(model: nn.Module, method: SoftFilterPruning) -> None:
    model.train()
    model.zero_grad()
    model(X).square().sum().backward()
    method.after_backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad


@pytest.mark.parametrize("masked", [False, True])
def test_filters_return_unless_their_gradients_are_masked(masked: bool) -> None:
    method = SoftFilterPruning(mask_gradients=masked)
    model, _ = prepared(method)
    method.begin(2, 1)
    method.end_epoch(0.0)
    gone = ~method.left()["two.0"]
    assert int(gone.sum()) > 1 and not bool(model.two[0].weight[gone].any())
    step(model, method)
    assert bool(model.two[0].weight[gone].any()) != masked
    assert not bool((model.two[0].weight[~gone] == 0).any())


def test_filters_that_come_back_as_giants_are_told_once() -> None:
    method = SoftFilterPruning()
    model, _ = prepared(method)
    method.begin(4, 1)
    method.end_epoch(0.0)
    gone = ~method.left()["two.0"]
    with torch.no_grad():
        model.two[0].weight[gone] = 2 * model.two[0].weight[~gone].abs().max()
    with pytest.warns(
        prunus.PrunusWarning, match=r"filters of `two.0` that were zero came back \d+\.\d times as large.*mask_grad"
    ):
        method.end_epoch(0.0)
    with torch.no_grad():
        model.two[0].weight[gone] = 100.0
    method.end_epoch(0.0)  # warnings are errors here


@pytest.mark.parametrize("zero", ["filters", "channels"])
def test_whole_channels_are_silent_and_filters_alone_are_not(zero: Any) -> None:
    """The small network is the training network only where everything that a channel emits was set to zero."""
    method = SoftFilterPruning(zero=zero)
    model, graph = prepared(method)
    method.begin(1, 1)
    step(model, method)
    method.end_epoch(0.0)
    with torch.no_grad():
        as_trained = model.eval()(X)
        plan = method.plan(prunus.Budget(macs=0.4, tolerance=0.1))
        masked = prunus.silence(model, graph, plan)(X)
        small, _ = prunus.remove(method.finish(), graph, plan)
        torch.testing.assert_close(small(X), masked, rtol=1e-10, atol=1e-12)
    difference = float((as_trained - masked).abs().max())
    assert difference < 1e-12 if zero == "channels" else difference > 1e-3
    scales: Tensor = model.two[1].weight
    assert bool((scales != 0).all())


def test_zeroing_every_second_epoch_and_at_the_end() -> None:
    method = SoftFilterPruning(every=2)
    prepared(method)
    method.begin(10, 2)  # five epochs
    zeroings: list[int] = []
    for epoch in range(5):
        method._kept = {name: torch.ones_like(mask) for name, mask in method._kept.items()}
        for within in range(2):
            method.before_step(2 * epoch + within, 0.1)
        method.end_epoch(0.0)
        zeroings += [epoch + 1] * any(not bool(mask.all()) for mask in method._kept.values())
    assert zeroings == [2, 4, 5]


def test_the_plan_is_that_of_the_last_zeroing_even_where_the_ranking_would_now_differ() -> None:
    """Zeroed filters lie close together, so that the geometric median of what is left would choose others."""
    method = GeometricMedianPruning(zero="channels")
    prepared(method)
    method.begin(1, 1)
    method.end_epoch(0.0)
    kept = {name: mask.clone() for name, mask in method._kept.items()}
    plan = method.plan(method.task.budget)
    assert all(torch.equal(plan.keep[name], kept[name]) for name in kept) and plan.num_removed > 5
