"""Parameter groups and the learning rate as a function of the step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.config import OptimizerConfig
from prunus.training.optimizers import build_optimizer, learning_rate, warmup_steps


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_decay_acts_on_matrices_only(name, kind):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2, bias=False))
    optimizer = build_optimizer(model, OptimizerConfig(optimizer=name, weight_decay=0.3))
    assert type(optimizer) is kind
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert found == {"0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.3}


def test_nesterov_momentum_unless_there_is_none():
    layer = nn.Linear(2, 2)
    with_momentum = build_optimizer(layer, OptimizerConfig(momentum=0.8)).param_groups[0]
    assert (with_momentum["momentum"], with_momentum["nesterov"]) == (0.8, True)
    assert build_optimizer(layer, OptimizerConfig(momentum=0)).param_groups[0]["nesterov"] is False


def test_linear_warmup_then_cosine():
    rates = [learning_rate(step, 12, 4, 0.8) for step in range(12)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == pytest.approx(0.8)
    assert rates[8] == pytest.approx(0.4)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.05


def test_warmup_may_be_fractional_and_is_capped_to_the_run():
    assert warmup_steps(OptimizerConfig(epochs=4, warmup_epochs=0.5), 10) == 5
    assert warmup_steps(OptimizerConfig(epochs=2, warmup_epochs=9), 10) == 20
    assert warmup_steps(OptimizerConfig(epochs=2, warmup_epochs=0), 10) == 0
