"""A tiny network with batch norm and dropout, and 90 points it can learn; each test states what it needs of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def _network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


@pytest.fixture
def network() -> Callable[[], nn.Module]:
    """The same initial weights at every call."""
    return _network


@pytest.fixture
def points() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(90) % 3
    return TensorDataset(torch.randn(90, 4, generator=generator) + 2.0 * nn.functional.one_hot(targets, 4), targets)


@pytest.fixture
def loader(points: TensorDataset) -> DataLoader[tuple[Tensor, ...]]:
    """90 points in batches of 16: the last one has 10."""
    return DataLoader(points, batch_size=16, shuffle=True)
