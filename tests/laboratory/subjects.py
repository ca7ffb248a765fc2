"""A small network, images and settings for the tests of the laboratory: a comparison takes a second."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunus.laboratory import Recovery, Settings, Subject
from prunus.sources import DataBundle
from prunus.surgery import randomise


def network(seed: int = 0, *, norms: bool = True) -> nn.Sequential:
    """Two convolutions of 6 and 8 channels and a classifier of three classes; random weights from the seed."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in ((2, 6), (6, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), *([nn.BatchNorm2d(outputs)] if norms else []), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return randomise(model).eval()


def bundle(number: int = 40) -> DataBundle:
    """Images that the network of seed 0 labels itself, so that it is always right."""
    images = torch.randn(number, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = network(0)(images).argmax(1)
    data = TensorDataset(images, labels)
    return DataBundle(data, data, data, (2, 6, 6), ("a", "b", "c"), "test images", (0.0,), (1.0,), calibration=data)


def subject(model: nn.Module | None = None) -> Subject:
    return Subject(lambda _: model or network(0), bundle(), {"model": "small", "data": "test images"})


SETTINGS = Settings(images=16, batch_size=8, test_images=20, shares=())
REMOVAL = Settings(images=16, batch_size=8, test_images=20, shares=(0.25, 0.5), recovery=Recovery(steps=2))
