"""Scratch-E and Scratch-B: the published epochs; drawing a pruned network's weights afresh."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import RecipeError, UnsupportedNetwork
from prunus.tickets import Arm, arms, milestones, reinitialise, scratch_epochs


def test_published_epochs() -> None:
    assert scratch_epochs(160, 1.5) == 240
    assert scratch_epochs(90, 1.5, most=2) == 135
    assert scratch_epochs(90, 2.6, most=2) == 180
    assert scratch_epochs(100, 1.15) == 115  # 100 * 1.15 is 114.99...
    assert milestones(240) == (120, 180)
    with pytest.raises(RecipeError, match=r"costs 2\.00 times as much"):
        scratch_epochs(160, 0.5)


def test_arms() -> None:
    assert arms(20, 0.1, 3.0, 8, 0.01) == {
        "fine-tuned": Arm(8, pytest.approx(0.001), False),
        "rewound-lr": Arm(20, 0.1, False),
        "scratch-E": Arm(20, 0.1, True),
        "scratch-B": Arm(60, 0.1, True),
    }


def test_a_pruned_network_is_drawn_afresh_at_its_widths() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 40, 3), nn.Flatten(), nn.Linear(40, 4))
    example = torch.randn(2, 3, 5, 5)
    model(example)  # moves the statistics
    small = prunus.prune(model, example, prunus.Budget(channels=0.5), criterion="l1").model
    assert isinstance(small, nn.Sequential)
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    state = torch.get_rng_state()
    reinitialise(small, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(name.startswith("1.") or not torch.equal(p, before[name]) for name, p in small.named_parameters())
    bound = (small[3].in_channels * 9) ** -0.5  # the initialiser's own, at the new width
    assert 0.9 * bound < float(small[3].weight.detach().abs().max()) <= bound
    assert not bool(small[1].running_mean.any())
    first = small[0].weight.clone()
    reinitialise(small, 5)
    assert torch.equal(small[0].weight, first)


def test_parameters_that_nobody_draws_are_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(UnsupportedNetwork, match=r"`1` \(Scaled\) has parameters and no reset_parameters"):
        reinitialise(nn.Sequential(nn.Linear(2, 3), Scaled()), 0)
