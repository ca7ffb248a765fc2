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
SMALLEST_AREA = 0.08  # ImageNet's


def evaluation_transform(image_size: int | None, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Tensor]:
    """Resize the shorter side to ``image_size`` and crop the centre (None: as stored), then normalise."""
    return v2.Compose([*_to_size(image_size), Normalise(mean, std)])


def training_transform(
    augment: str,
    stored_size: tuple[int, int],
    image_size: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    min_area: float = SMALLEST_AREA,
    colour: float = 0.0,
) -> Callable[[Any], Tensor]:
    """The evaluation transform with one of `AUGMENTATIONS` in it; all randomness is drawn from torch's global generator.

    ``shift`` moves by up to one pixel; ``crop-flip`` by up to four, and mirrors half of the images; ``resized-crop-flip`` cuts
    ``min_area`` to all of the area, at an aspect ratio of 3/4 to 4/3, and mirrors half. What comes in from outside the image is
    black. ``colour`` scales brightness, contrast and saturation, each by a factor drawn from 1 - colour to 1 + colour.

    Raises:
        UnknownName: no such augmentation.
        DataError: a setting is out of its range, or the augmentation has no use for it.
    """
    size = stored_size if image_size is None else (image_size, image_size)
    steps: dict[str, list[Any]] = {
        "none": [*_to_size(image_size)],
        "shift": [*_to_size(image_size), v2.RandomCrop(size, padding=1)],
        "crop-flip": [*_to_size(image_size), v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()],
        "resized-crop-flip": [_resized_crop(size, min_area), v2.RandomHorizontalFlip()],
    }
    if augment not in steps:
        raise UnknownName.among("augmentation", augment, AUGMENTATIONS)
    if min_area != SMALLEST_AREA and augment != "resized-crop-flip":
        raise DataError(f"min_area={min_area} acts on augment='resized-crop-flip' only, and augment is {augment!r}: leave it out")
    return v2.Compose([*steps[augment], *_jitter(colour, len(mean)), Normalise(mean, std)])


class Normalise:
    """A PIL image of 8 bits, or a float tensor in 0..1, to ``(pixels - mean) / std``."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image: Any) -> Tensor:
        if isinstance(image, Tensor):
            return (image - self.mean) / self.std
        # Channel by channel in memory, as a batch is, and in place: three passes over new memory would take most of the time.
        pixels = pil_to_tensor(image).to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.div_(255).sub_(self.mean).div_(self.std)


def check_normalisation(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise `DataError` unless there is one mean and one positive deviation per channel."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise DataError(f"{name} has {len(values)} values and the images have {channels} channels: give one per channel")
    if min(std) <= 0:
        raise DataError(f"std={tuple(std)}: a standard deviation is above zero")


def _to_size(image_size: int | None) -> list[Any]:
    return [] if image_size is None else [v2.Resize(image_size, antialias=True), v2.CenterCrop(image_size)]


def _resized_crop(size: tuple[int, int], min_area: float) -> Any:
    if not 0 < min_area <= 1:
        raise DataError(f"min_area={min_area} is a share of an image's area, above 0 and at most 1")
    return v2.RandomResizedCrop(size, scale=(min_area, 1.0), antialias=True)


def _jitter(colour: float, channels: int) -> list[Any]:
    if not 0 <= colour < 1:
        raise DataError(f"colour={colour} is the strength of random brightness, contrast and saturation, from 0 to below 1")
    if colour == 0:
        return []
    if channels not in (1, 3):
        raise DataError(f"colour={colour} needs images of 1 or 3 channels, and these have {channels}: set it to 0")
    return [v2.ColorJitter(brightness=colour, contrast=colour, saturation=colour)]
