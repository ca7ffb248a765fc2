"""Images that lie one behind another in large files, read where they lie: nothing is unpacked, and memory holds no images.

The files are known by an index (where each image lies, and its class), so that everything that is possible with single files is
possible here: exact counts, classes drawn equally often, held-out shares, a few images looked at. Only the order of training
differs: it goes through the files one after another and draws from a window of bounded size, so that reading stays local.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.errors import DataError
from prunus.sources.archive import UnreadableFile
from prunus.sources.bundle import ImageDataset, Splits
from prunus.sources.folder import IMAGENET_MEAN, IMAGENET_STD
from prunus.sources.image_files import check_bytes, decode_bytes

SHUFFLE_BUFFER = 10_000
"""Images among which the next one of training is drawn, where the recipe doesn't say."""


class StreamedImages(ABC):
    """Images one behind another in large files, by their position.

    Attributes:
        place: where they lie, for messages.
        labels: the class index of each, shape (n,).
        starts: position of the first image of every file, and n at the end: ``(files + 1,)``.
        size: the (height, width) that every image must have, or None for any.
    """

    place: str
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]
    size: tuple[int, int] | None = None

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call this image."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image; raises `UnreadableFile` where it can't be read."""

    def load(self, index: int) -> Any:
        """The image as 8-bit RGB."""
        return decode_bytes(self.read(index), self.name(index), self.place, self.size)

    def check(self, index: int) -> None:
        """Decode the image in the cheapest way that `load` would fail in, too; raises like `check_bytes`."""
        check_bytes(self.read(index), self.name(index), self.place, self.size)

    def remember(self) -> None:
        """Keep what `check` has found, where there is a place for it."""
        return

    def first_size(self, skip_damaged: bool) -> tuple[int, int]:
        """(height, width) of the first image, or of the first undamaged one; raises `DataError` where there is none."""
        for index in range(len(self.labels)):
            try:
                image = decode_bytes(self.read(index), self.name(index), self.place, None)
            except UnreadableFile:
                if not skip_damaged:
                    raise
                continue
            return image.height, image.width
        raise DataError(f"none of the {len(self.labels)} training images in {self.place} can be decoded: fetch them again")


class Draw(NamedTuple):
    """One image of a pass in training: its position in the data set, and the seed of its augmentation."""

    position: int
    seed: int


class StreamDataset(ImageDataset):
    """Chosen images of large files, each through a transform that ends in a normalised tensor.

    An item is asked for by its position, or by a `Draw`; then its augmentation follows from the draw alone, whichever process
    makes it and whatever was made before: a pass can go on anywhere without what came before.
    """

    def __init__(self, images: StreamedImages, indices: Sequence[int], transform: Any, shuffle_buffer: int) -> None:
        super().__init__(images, (), transform)
        self.images: StreamedImages = images
        self.indices = np.asarray(indices, dtype=np.int64)  # pyright: ignore[reportIncompatibleVariableOverride, reportAttributeAccessIssue]
        self.shuffle_buffer = shuffle_buffer

    def __getitem__(self, position: int | Draw) -> tuple[Tensor, int]:
        if isinstance(position, Draw):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(position.seed)
                return self[position.position]
        index = int(self.indices[position])
        return self.transform(self.images.load(index)), int(self.images.labels[index])

    @property
    def labels(self) -> list[int]:
        """The class index of every image, without loading any."""
        return self.images.labels[self.indices].tolist()

    def bounds(self) -> NDArray[np.int64]:
        """Position in this data set of the first chosen image of every file, and its length at the end."""
        return np.searchsorted(self.indices, self.images.starts)


def streamed_splits(
    images: Mapping[str, StreamedImages], class_names: tuple[str, ...], *, any_size: bool, check_images: bool
) -> Splits:
    """The splits of one source, whose images must all have the size of the first training image, or may have ``any_size``.

    Raises:
        DataError: that image can't be read; with ``check_images``, none can.
    """
    size = images["train"].first_size(skip_damaged=check_images)
    for split in images.values():
        split.size = None if any_size else size
    return Splits(
        train=images["train"],
        validation=images.get("validation"),
        test=images.get("test"),
        class_names=class_names,
        stored_shape=(3, *size),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
