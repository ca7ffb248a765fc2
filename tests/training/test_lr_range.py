"""The learning-rate range test on a quadratic, whose limit is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.config import OptimizerConfig
from prunus.errors import TrainingError
from prunus.training import lr_range

PLAIN = OptimizerConfig(momentum=0, weight_decay=0)
BATCHES = [(torch.ones(2, 1), torch.zeros(2))] * 3


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[2.0]]))

    def forward(self, x):
        return x @ self.w


def quadratic(output, batch):
    """4 w^2 + 1, of curvature 8: gradient descent diverges at rates above 2 / 8."""
    return 4 * output.square().mean() + 1


def test_a_quadratic_diverges_beyond_two_over_its_curvature():
    model = Weight()
    found = lr_range(model, BATCHES, PLAIN, lowest=0.2, highest=2.0, steps=40, loss_fn=quadratic)
    assert found.rates[0] == pytest.approx(0.2) and found.rates[1] / found.rates[0] == pytest.approx(10 ** (1 / 39))
    assert found.diverged_at is not None and 0.25 < found.diverged_at < 0.6
    assert 0.2 < found.lowest_at < 0.4 and found.suggested == found.lowest_at / 10
    assert len(found.rates) == len(found.losses) == len(found.smoothed) < 40
    # by hand: the loss before the first step, and before the second, at w = 2 (1 - 8 lr)
    assert found.losses[0] == pytest.approx(17.0)
    assert found.losses[1] == pytest.approx(4 * (2 * (1 - 8 * 0.2)) ** 2 + 1, rel=1e-5)
    assert found.smoothed[1] == pytest.approx((0.9 * found.losses[0] + found.losses[1]) / 1.9)
    assert model.w.item() == 2.0 and model.training


def test_rates_too_low_never_diverge():
    found = lr_range(Weight(), BATCHES, PLAIN, lowest=1e-4, highest=1e-2, steps=20, loss_fn=quadratic)
    assert found.diverged_at is None and len(found.rates) == 20 and found.rates[-1] == pytest.approx(1e-2)
    assert found.lowest_at == pytest.approx(1e-2)


def test_same_seed_same_losses(network, loader):
    model = network()
    state = torch.get_rng_state()
    first = lr_range(model, loader, OptimizerConfig(), seed=1, steps=12)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.losses == lr_range(network(), loader, OptimizerConfig(), seed=1, steps=12).losses
    assert first.losses != lr_range(network(), loader, OptimizerConfig(), seed=2, steps=12).losses


def test_what_makes_no_sense():
    with pytest.raises(TrainingError, match="give 0 < lowest < highest, and 10 steps or more"):
        lr_range(Weight(), BATCHES, PLAIN, lowest=1.0, highest=0.1)
    with pytest.raises(TrainingError, match="the training loader yields nothing"):
        lr_range(Weight(), [], PLAIN, steps=10, loss_fn=quadratic)
    with pytest.raises(TrainingError, match="the loss is nan before any step"):
        lr_range(Weight(), [(torch.full((2, 1), torch.nan), torch.zeros(2))], PLAIN, steps=10, loss_fn=quadratic)
