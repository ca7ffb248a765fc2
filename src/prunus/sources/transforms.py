"""From a stored image to the tensor that a network reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

from prunus.errors import DataError, UnknownName

AUGMENTATIONS = ("none", "shift", "crop-flip", "resized-crop-flip")


def evaluation_transform(image_size: int | None, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Tensor]:
    """Resize the shorter side to ``image_size`` and crop the centre (None: as stored), then normalise."""
    return v2.Compose([*_to_size(image_size), Normalise(mean, std)])


def training_transform(
    augment: str, stored_size: tuple[int, int], image_size: int | None, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Any], Tensor]:
    """The evaluation transform with one of `AUGMENTATIONS` in it; all randomness is drawn from torch's global generator.

    ``shift`` moves by up to one pixel; ``crop-flip`` by up to four, and mirrors half of the images; ``resized-crop-flip`` cuts
    8 % to 100 % of the area, at an aspect ratio of 3/4 to 4/3, and mirrors half. What comes in from outside the image is black.
    """
    size = stored_size if image_size is None else (image_size, image_size)
    steps: dict[str, list[Any]] = {
        "none": [*_to_size(image_size)],
        "shift": [*_to_size(image_size), v2.RandomCrop(size, padding=1)],
        "crop-flip": [*_to_size(image_size), v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()],
        "resized-crop-flip": [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()],
    }
    if augment not in steps:
        raise UnknownName.among("augmentation", augment, AUGMENTATIONS)
    return v2.Compose([*steps[augment], Normalise(mean, std)])


class Normalise:
    """A PIL image of 8 bits, or a float tensor in 0..1, to ``(pixels - mean) / std``."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image: Any) -> Tensor:
        pixels = image if isinstance(image, Tensor) else pil_to_tensor(image).float().div_(255)
        return (pixels - self.mean) / self.std


def check_normalisation(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise `DataError` unless there is one mean and one positive deviation per channel."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise DataError(f"{name} has {len(values)} values and the images have {channels} channels: give one per channel")
    if min(std) <= 0:
        raise DataError(f"std={tuple(std)}: a standard deviation is above zero")


def _to_size(image_size: int | None) -> list[Any]:
    return [] if image_size is None else [v2.Resize(image_size, antialias=True), v2.CenterCrop(image_size)]
