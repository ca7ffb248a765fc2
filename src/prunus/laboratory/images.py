"""The images of a comparison: the same few for every criterion, drawn anew for every seed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from prunus.sources import DataBundle, make_loader

HELD_BYTES = 2**30
"""Test images up to this size are decoded once and held in memory; more are decoded for every evaluation."""


def scoring_batches(data: DataBundle, images: int, batch_size: int, seed: int) -> list[Any]:
    """Training images without augmentation, drawn from the seed, in batches ``(inputs, targets)``."""
    loader = make_loader(drawn(data.calibration, images, seed), batch_size=batch_size, shuffle=False)
    return list(loader)


def test_loader(data: DataBundle, images: int | None, batch_size: int) -> DataLoader[Any]:
    """Test images: the same for every seed."""
    chosen = drawn(data.test, images, 0)
    if images_in(chosen) * math.prod(data.input_shape) * 4 <= HELD_BYTES:
        parts = list(make_loader(chosen, batch_size=batch_size, shuffle=False))
        chosen = TensorDataset(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
    return make_loader(chosen, batch_size=batch_size, shuffle=False)


def drawn(dataset: Dataset[Any], number: int | None, seed: int) -> Dataset[Any]:
    """``number`` items of a data set without repetition, in an order that the seed gives; all of them for None."""
    order = torch.randperm(images_in(dataset), generator=torch.Generator().manual_seed(seed))
    return Subset(dataset, order[:number].tolist())


def images_in(dataset: Dataset[Any]) -> int:
    """How many items it has."""
    return len(dataset)  # pyright: ignore[reportArgumentType]
