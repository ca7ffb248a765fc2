"""The recipe's images, prepared the way its network was trained."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from prunus.config import Recipe
from prunus.errors import DataError
from prunus.sources import DataBundle, load_data, own_normalisation
from prunus.sources.bundle import ImageDataset


def load_images(recipe: Recipe, *, at_least: int) -> DataBundle:
    """The images that ``recipe.data`` names; a torchvision or timm network's own normalisation is used unless one is given.

    Raises:
        DataError: what `load_data` raises, or fewer than ``at_least`` test images.
    """
    data = recipe.data
    bundle = load_data(
        data.source,
        image_size=data.image_size,
        augment=data.augment,
        min_area=data.min_area,
        colour=data.colour,
        mean=data.mean,
        std=data.std,
        network_normalisation=own_normalisation(recipe.model.source),
        validation_fraction=data.validation_fraction,
        train_limit=data.train_limit,
        download=data.download,
        check_images=data.check_images,
        shuffle_buffer=data.shuffle_buffer,
        seed=recipe.seed,
    )
    if len(bundle.test) < at_least:  # pyright: ignore[reportArgumentType]
        raise DataError(f"{data.source} has fewer than {at_least} test images: nothing could be judged on them")
    return bundle


def evaluation_images(data: DataBundle, split: str) -> tuple[Dataset[Any], str, list[str]]:
    """The images of this split, its name, and what to tell the user: validation images that are the test images aren't taken."""
    if split == "validation" and not _same_images(data.validation, data.test):
        return data.validation, split, []
    if split == "training":
        return data.calibration, split, []
    note = "the validation images of these data are the test images: accuracies of the scan are those on training images"
    return data.calibration, "training", [note]


def _same_images(one: Dataset[Any], other: Dataset[Any]) -> bool:
    if isinstance(one, ImageDataset) and isinstance(other, ImageDataset):
        return one.images is other.images and not set(one.indices).isdisjoint(other.indices)
    return one is other
