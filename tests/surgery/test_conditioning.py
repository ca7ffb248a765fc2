"""Rounding errors that random weights amplify must not be taken for a fault of surgery."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import prunus
import prunus.testing
from prunus.surgery.prove import CHAOTIC
from prunus.surgery.verify import amplification, randomise, settled


class Waves(nn.Module):
    """Amplifies every error 32-fold a layer unless batch norm scales it back: chaos on random statistics."""

    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1, bias=False) for i in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(depth))
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.sin(norm(32 * conv(x)))
        return self.head(x)


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_amplification_of_a_product_is_the_product() -> None:
    class Power(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**50

    assert amplification(Power(), torch.full((1, 100), 1.3)) == pytest.approx(50 / 1.3, rel=0.01)  # a step is eps / 1.3
    assert amplification(nn.Identity(), torch.ones(4)) <= 1.0
    assert math.isnan(amplification(nn.Linear(3, 3), torch.ones(1, 4)))


def test_statistics_of_the_inputs_calm_a_chaotic_network() -> None:
    twin = randomise(Waves())
    before = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    assert amplification(twin, images()) > 1e12
    calm = settled(twin, images())
    assert amplification(calm, images()) < CHAOTIC
    assert all(torch.equal(before[name], tensor) for name, tensor in twin.state_dict().items())
    changed = {name.rpartition(".")[2] for name, tensor in calm.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert [n.momentum for n in calm.modules() if isinstance(n, nn.BatchNorm2d)] == [0.1] * 12


def test_a_network_that_does_not_train_on_the_inputs_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4))
    one = images()[:1]  # one value per channel has no variance
    assert all(torch.equal(a, b) for a, b in zip(settled(net, one).state_dict().values(), net.state_dict().values(), strict=True))


@pytest.mark.filterwarnings("error")
def test_chaos_on_random_weights_freezes_nothing() -> None:
    report = prunus.testing.check_network(Waves(), images())
    assert (report.verdict, len(report.frozen)) == ("exact", 1)
    trained = settled(Waves(), images())
    result = prunus.prune(trained, images(), prunus.Budget(macs=0.5))
    assert result.verification is not None
    assert result.verification.passed and not result.notes


def test_a_fault_shows_on_the_calmed_network_too() -> None:
    class Scaled(Waves):
        def forward(self, x: Tensor) -> Tensor:
            x = self.convs[0](x)
            x = x / x.shape[1]  # removal changes what silencing doesn't: no label shows it
            for conv, norm in zip(list(self.convs)[1:], self.norms, strict=False):
                x = torch.sin(norm(32 * conv(x)))
            return self.head(x)

    report = prunus.testing.check_network(Scaled(), images())
    assert list(report.frozen) == ["convs.0", "head"]
    assert "relative error" in report.frozen["convs.0"]
    assert "the network computes with a width that the trace doesn't see" in report.frozen["convs.0"]
