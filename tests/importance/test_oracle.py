"""On a trained network, Taylor scores must rank channels as the loss change of silencing each does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import prunus
from prunus.types import PruningPlan
from small_nets import Plain


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A small network after a few epochs of handwritten digits, and digits to score on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = Plain((8, 16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(8):
        for rows in torch.randperm(1200).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    model.eval()
    assert float((model(x[1200:]).argmax(1) == y[1200:]).float().mean()) > 0.9
    return model, (x[:400], y[:400])


@pytest.fixture(scope="module")
def oracle(trained: tuple[nn.Module, tuple[Tensor, Tensor]]) -> Tensor:
    """Absolute loss change of silencing every channel alone, over all groups."""
    model, (x, y) = trained
    graph = prunus.trace(model, x[:1])
    changes: list[float] = []
    with torch.no_grad():
        base = float(F.cross_entropy(model(x), y))
        for group in graph.prunable:
            for channel in range(group.num_channels):
                plan = PruningPlan({group.name: torch.arange(group.num_channels) != channel}, graph.cost())
                changes.append(abs(float(F.cross_entropy(prunus.silence(model, graph, plan)(x), y)) - base))
    return torch.tensor(changes)


def correlation(trained: tuple[nn.Module, tuple[Tensor, Tensor]], oracle: Tensor, criterion: str, **options: object) -> float:
    model, (x, y) = trained
    data = list(zip(x.split(50), y.split(50), strict=True))
    scores = prunus.score(model, prunus.trace(model, x[:1]), criterion, data, **options)
    return float(spearmanr(torch.cat(list(scores.by_group.values())), oracle).statistic)


@pytest.mark.parametrize("per_example", [False, True])
def test_taylor_ranks_like_the_oracle(
    trained: tuple[nn.Module, tuple[Tensor, Tensor]], oracle: Tensor, per_example: bool
) -> None:
    taylor = correlation(trained, oracle, "taylor", per_example=per_example)
    chance = max(correlation(trained, oracle, "random", seed=seed) for seed in range(3))
    assert taylor > 0.5
    assert taylor > chance
