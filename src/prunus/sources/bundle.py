"""What every source of images gives: splits as data sets of normalised tensors, and what a network needs to know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunus.errors import DataError


@dataclass(frozen=True, eq=False)
class DataBundle:
    """Images for training, choosing and judging a network.

    Every data set gives ``(image, label)``: a normalised float tensor (channels, height, width) and the class index.
    ``calibration`` holds the training images without augmentation, for importance and batch-norm statistics. ``mean`` and ``std``
    are what pixels in 0..1 were normalised with, per channel (0 and 1 where the user's own code did it). ``notes`` are remarks
    for the user: what was missing, ignored or replaced.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    calibration: Dataset[Any]
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


class LabelledImages(Protocol):
    """Stored images and the class index of each; ``load`` gives a PIL image or a float tensor (channels, height, width), 0..1."""

    @property
    def labels(self) -> Sequence[int]: ...

    def load(self, index: int) -> Any: ...


@dataclass(frozen=True, eq=False)
class Splits:
    """What one source stores, before transforms. None: the source has no such split."""

    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages | None
    class_names: tuple[str, ...]
    stored_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()


class ImageDataset(Dataset[Any]):
    """Chosen images of a source, each through a transform that ends in a normalised tensor."""

    def __init__(self, images: LabelledImages, indices: Sequence[int], transform: Callable[[Any], Tensor]) -> None:
        self.images, self.indices, self.transform = images, list(indices), transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = self.indices[position]
        return self.transform(self.images.load(index)), self.images.labels[index]

    @property
    def labels(self) -> list[int]:
        """The class index of every image, without loading any."""
        return [self.images.labels[i] for i in self.indices]


def hold_out(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split positions into (rest, held out), the same share of every class; at least one image of a class stays on each side.

    Raises:
        DataError: a class has a single image.
    """
    rest: list[int] = []
    held: list[int] = []
    for label, members in _shuffled_classes(labels, seed).items():
        if len(members) < 2:
            raise DataError(
                f"class {label} has a single training image, so none can be held out for validation: "
                f"add images or a validation split"
            )
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held += members[:count]
        rest += members[count:]
    return sorted(rest), sorted(held)


def limit(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Positions of ``count`` images, drawn class by class in turn, so that classes are as equal as they can be.

    Raises:
        DataError: fewer images than classes.
    """
    classes = _shuffled_classes(labels, seed)
    if count < len(classes):
        raise DataError(f"train_limit={count} leaves some of the {len(classes)} classes without an image: raise it")
    # The n-th image of every class comes before the (n+1)-th of any.
    turns = sorted((turn, label, index) for label, members in classes.items() for turn, index in enumerate(members))
    return sorted(index for _, _, index in turns[:count])


def _shuffled_classes(labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    array = np.asarray(labels)
    random = np.random.RandomState(seed)  # its stream is frozen: the same split with every version of numpy
    return {int(c): random.permutation(np.flatnonzero(array == c)).tolist() for c in np.unique(array)}


def make_loader(
    dataset: Dataset[Any], *, batch_size: int, shuffle: bool, workers: int = 0, drop_last: bool = False
) -> DataLoader[Any]:
    """Batches ``(images, labels)``. Order and augmentation follow torch's global random state at the start of each pass.

    Workers are started anew for each pass: kept ones would carry their random state from pass to pass, and a resumed run could
    not repeat it.

    Raises:
        DataError: the loader would yield nothing.
    """
    size = len(dataset)  # pyright: ignore[reportArgumentType]
    if size == 0 or (drop_last and size < batch_size):
        raise DataError(f"{size} images give no batch of {batch_size}{': the last one is dropped' if size else ''}")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
    )
