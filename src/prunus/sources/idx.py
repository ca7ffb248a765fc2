"""MNIST and Fashion-MNIST: four files of bytes in LeCun's idx format, as they are or as .gz."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunus.errors import DataError
from prunus.files import DamagedFile, read_bounded
from prunus.sources.bundle import Splits
from prunus.sources.image_arrays import StoredArrays

_UNSIGNED_BYTE = 8  # idx's code of the element type
_MOST_BYTES = 2**28  # five times MNIST


@dataclass(frozen=True)
class IdxData:
    """What the files don't say; ``folder`` is where torchvision lays them, under its root."""

    name: str
    folder: str
    class_names: tuple[str, ...]
    mean: float
    std: float


MNIST = IdxData("mnist", "MNIST/raw", tuple(str(digit) for digit in range(10)), 0.1307, 0.3081)
FASHION_MNIST = IdxData(
    "fashion-mnist",
    "FashionMNIST/raw",
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    0.2860,
    0.3530,
)


def idx_images(data: IdxData, path: str) -> Splits:
    """The training and the test images of ``path``, 1-channel.

    Raises:
        DataError: a file is missing or damaged, has other dimensions or counts than its partner, or an unknown label.
    """
    found = _find(data, Path(path).expanduser())
    train = _split(data, found["train-images-idx3-ubyte"], found["train-labels-idx1-ubyte"])
    test = _split(data, found["t10k-images-idx3-ubyte"], found["t10k-labels-idx1-ubyte"])
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        sizes = ["x".join(str(n) for n in images.pixels.shape[1:]) for images in (train, test)]
        raise DataError(
            f"{data.name}:{path}: the training images are {sizes[0]} pixels (height x width) and the test images {sizes[1]}: "
            f"the files belong to different data sets"
        )
    height, width = train.pixels.shape[1:]
    return Splits(train, None, test, data.class_names, (1, height, width), (data.mean,), (data.std,))


def _find(data: IdxData, root: Path) -> dict[str, Path]:
    folders = (root, root / data.folder)
    found: dict[str, Path] = {}
    missing: list[str] = []
    for name in (f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")):
        places = [folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".gz")]
        place = next((place for place in places if place.is_file()), None)
        if place is None:
            missing.append(name)
        else:
            found[name] = place
    if missing:
        raise DataError(
            f"{data.name}:{root} lacks the files {', '.join(missing)} (looked for each, and with .gz, in {folders[0]} and "
            f"{folders[1]}): put them there, or name the folder that has them"
        )
    return found


def _split(data: IdxData, images: Path, labels: Path) -> StoredArrays:
    pixels, classes = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(classes):
        raise DataError(f"{images} has {len(pixels)} images and {labels} {len(classes)} labels: they don't belong together")
    if pixels.size == 0:
        raise DataError(f"{images} holds no image: fetch it again")
    if classes.max() >= len(data.class_names):
        raise DataError(f"{labels} has the label {classes.max()}, and {data.name} has {len(data.class_names)} classes")
    return StoredArrays(pixels, classes.tolist())


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of bytes in an idx file of so many dimensions.

    Raises:
        DataError: the file can't be read, isn't idx, holds something else, or isn't as long as it says.
    """
    magic, start = bytes([0, 0, _UNSIGNED_BYTE, dimensions]), 4 + 4 * dimensions
    content = _contents(path)
    if content[:4] != magic or len(content) < start:
        raise DataError(
            f"{path} is no idx file of bytes in {dimensions} dimension{'s' if dimensions > 1 else ''}: it begins with "
            f"{content[:4].hex(' ') or 'nothing'}, not {magic.hex(' ')}: fetch it again"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} announces {' x '.join(str(n) for n in shape)} = {math.prod(shape)} bytes and holds {len(content) - start}: "
            f"it is cut off or damaged, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _contents(path: Path) -> bytes:
    """The file, unpacked. A small .gz can unfold to any size, so that is bounded."""
    try:
        if path.suffix != ".gz":
            return read_bounded(path, _MOST_BYTES)
        with gzip.open(path) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise DamagedFile(f"it unfolds to more than {_MOST_BYTES} bytes")
        return content
    except (OSError, EOFError, zlib.error, DamagedFile) as error:
        raise DataError(f"{path} can't be read ({type(error).__name__}: {error}): fetch it again") from error
