"""Networks for `prunus bench`, as a user's file has them."""

from __future__ import annotations

from torch import nn


def tiny(width: int = 8) -> nn.Module:
    """Two convolutions and a head of one number for each of four channels."""
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def narrow() -> nn.Module:
    """The same at half the width."""
    return tiny(4)
