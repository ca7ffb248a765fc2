"""ISTA: exact zeros by the formula, costs of layers by hand, rescaling, and the paper's advice when a run shows a symptom."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.config import OptimizerConfig
from prunus.errors import PrunusWarning, TrainingError, UnsupportedNetwork
from prunus.sparsity.ista import Ista
from prunus.training import train
from prunus.training_hooks import SparsityTask
from small_nets import Plain, Residual, batches, build, images


def prepared(model: nn.Module, **options: float) -> Ista:
    x = images(dtype=next(model.parameters()).dtype)
    method = Ista(**options)
    method.prepare(model, prunus.trace(model, x), SparsityTask(prunus.Budget(macs=0.5), x))
    return method


def test_cost_of_a_layer_of_a_network_by_hand() -> None:
    """(16 * 16 + 3 * 3 * 16 + 3 * 3 * 32) / (32 * 32) for the middle convolution."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 5)),
    )
    x = torch.randn(1, 3, 32, 32)
    method = Ista()
    with pytest.warns(PrunusWarning, match="1 of 3 groups stay whole, for they have not a batch norm of its own: 6"):
        method.prepare(net, prunus.trace(net, x), SparsityTask(prunus.Budget(macs=0.5), x))
    assert method.costs == {"1.weight": (256 + 27 + 9 * 24) / 1024, "4.weight": 0.671875}


def test_a_step_of_training_is_the_proximal_step() -> None:
    """By hand: SGD without momentum on the scales, whatever the other weights have, then the soft threshold."""
    model, hand = build("Plain"), build("Plain").train()
    method = prepared(model, strength=0.5)
    settings = OptimizerConfig(epochs=1, lr=0.1, warmup_epochs=0, momentum=0.9, weight_decay=0.1)
    (batch,) = batches(1)
    train(model, [batch], settings, seed=0, method=method)
    nn.functional.cross_entropy(hand(batch[0]), batch[1]).backward()
    scale, cost = hand.two[1].weight, method.costs["two.1.weight"]
    moved = scale - 0.1 * scale.grad
    expected = moved.sign() * (moved.abs() - 0.1 * 0.5 * cost).clamp_min(0)
    torch.testing.assert_close(model.two[1].weight, expected)


def test_zeros_are_exact_and_counted() -> None:
    model = build("Plain")
    method = prepared(model, strength=3.0)
    train(model, batches(4), OptimizerConfig(epochs=6, lr=0.05, warmup_epochs=0), seed=0, method=method)
    zeros = sum(int((p == 0).sum()) for p in method.scales.parameters.values())
    assert 0 < zeros == sum(g.num_channels for g in method.graph.prunable) - sum(method.progress().widths.values())
    assert method.progress().macs < method.graph.cost().macs


@pytest.mark.parametrize("factor", [0.01, 4.0])
def test_rescaling_keeps_the_function_and_is_undone(factor: float) -> None:
    original = build("Plain", torch.float64)
    model = copy.deepcopy(original)
    method = prepared(model, rescale=factor)
    torch.testing.assert_close(model.one[1].weight, factor * original.one[1].weight)
    torch.testing.assert_close(model.one[1].bias, factor * original.one[1].bias)
    torch.testing.assert_close(model.two[0].weight, original.two[0].weight / factor)
    x = images(3, dtype=torch.float64)
    torch.testing.assert_close(model(x), original(x))
    finished = method.finish()
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(finished.state_dict()[name], tensor, msg=name)


def test_rescaling_is_refused_where_the_function_changes() -> None:
    model = build("Plain")
    model.two[2] = nn.SiLU()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(UnsupportedNetwork, match=r"ista can't rescale this network by 0.1: .*\(SiLU, Hardswish"):
        prepared(model, rescale=0.1)
    assert all(torch.allclose(t, model.state_dict()[name]) for name, t in before.items())


def test_ends_of_residual_branches_keep_their_scales() -> None:
    with pytest.warns(PrunusWarning, match="1 of 3 groups stay whole, for they have not a batch norm of its own: stem.0"):
        method = prepared(build("Residual"))
    assert set(method.scales.parameters) == {"inner.0.1.weight", "inner.1.1.weight"}
    model = Residual()
    model.inner[0][1] = model.inner[1][1] = nn.Identity()
    with pytest.raises(UnsupportedNetwork, match="none of the 3 prunable groups has a batch norm of its own"):
        prepared(model)


def test_adamw_is_refused() -> None:
    model = build("Plain")
    with pytest.raises(TrainingError, match="sets momentum and nesterov of single parameters, which adamw doesn't have: use opt"):
        train(model, batches(1), OptimizerConfig(epochs=1, optimizer="adamw"), seed=0, method=prepared(model))


def set_scales(method: Ista, values: float | None, zeros: int = 0) -> None:
    with torch.no_grad():
        for scale in method.scales.parameters.values():
            if values is not None:
                scale.fill_(values)
            scale[:zeros] = 0.0


def test_symptoms_and_what_to_do() -> None:
    method = prepared(Plain((16, 32, 32)), strength=0.02)
    assert method.symptoms() == ["no scale is zero: raise strength (now 0.02), or lower rescale (now 1)"]
    set_scales(method, 0.5)
    assert method.symptoms() == ["the scales shrink but none is zero: lower rescale (now 1)"]
    set_scales(method, 0.0)
    assert method.symptoms() == ["80 of 80 scales are zero: lower strength (now 0.02)"]
    set_scales(method, 1.0, zeros=8)
    assert method.symptoms() == []
    method.end_epoch(2.0), method.end_epoch(3.9)
    assert method.symptoms() == []
    method.end_epoch(4.1)
    assert method.symptoms() == ["the loss went up from 2 to 4.1: lower lr or strength"]
    with pytest.warns(PrunusWarning) as caught:
        method.plan(prunus.Budget(channels=0.5))
    told = [str(w.message) for w in caught]
    assert told[0] == "ista: the loss went up from 2 to 4.1: lower lr or strength"
    assert told[1].startswith("ista: 16 of the 40 channels that are removed still have a scale other than zero")
