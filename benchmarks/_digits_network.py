"""The small network for 8x8 digits as a recipe can name it: three convolutions with batch norm and ReLU, 80 channels in all."""

from __future__ import annotations

from torch import nn


def network(num_classes: int = 10) -> nn.Sequential:
    """Untrained: 16, 32 and 32 channels, max-pooling behind the first two, global average pooling, a linear layer."""
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((1, 16, True), (16, 32, True), (32, 32, False)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))
