"""Image files in a folder or a .zip, decoded when asked for; and how the bytes of any image file are decoded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from prunus.errors import DataError
from prunus.files import DamagedFile
from prunus.sources.archive import Folder, UnreadableFile, Zip

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_SIZES_LOOKED_AT = 100
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # pillow knows others, some of which start programs
_MOST_PIXELS = 2**25  # a file of a few bytes can announce any size


@dataclass(frozen=True, eq=False)
class StoredFiles:
    """Image files and their class indices; ``size`` is the (height, width) that every image must have, or None for any."""

    archive: Folder | Zip
    names: Sequence[str]
    labels: list[int]
    size: tuple[int, int] | None

    def name(self, index: int) -> str:
        """What messages call this image."""
        return self.names[index]

    def load(self, index: int) -> Any:
        """The image as 8-bit RGB."""
        name = self.names[index]
        return decode_bytes(self.archive.read(name), name, self.archive.path, self.size)

    def check(self, index: int) -> None:
        """Decode the image in the cheapest way that `load` would fail in, too. Raises like `check_bytes`."""
        name = self.names[index]
        check_bytes(self.archive.read(name), name, self.archive.path, self.size)


def look_at_sizes(images: StoredFiles) -> None:
    """Open some images before hours of training do; the rest are checked when they are loaded."""
    for name in images.names[:: max(len(images.names) // _SIZES_LOOKED_AT, 1)] if images.size else []:
        _check_size(name, _open(images.archive.read(name), name, images.archive.path), images.size)


def first_size(archive: Folder | Zip, names: Sequence[str], skip_damaged: bool) -> tuple[int, int]:
    """(height, width) of the first image, or of the first undamaged one; raises `DataError` where there is none."""
    for name in names:
        try:
            image = decode_bytes(archive.read(name), name, archive.path, None)
        except UnreadableFile:
            if not skip_damaged:
                raise
            continue
        return image.height, image.width
    raise DataError(f"all of the {len(names)} training images in {archive.path} are damaged, e.g. {names[0]}: fetch them again")


def decode_bytes(data: bytes, name: str, place: Path | str, size: tuple[int, int] | None) -> Image.Image:
    """The image as 8-bit RGB; ``name`` and ``place`` are for messages. Raises like `check_bytes`."""
    image = _to_rgb(_open(data, name, place), name, place)
    _check_size(name, image, size)
    return image


def check_bytes(data: bytes, name: str, place: Path | str, size: tuple[int, int] | None) -> None:
    """Decode an image in the cheapest way that `decode_bytes` would fail in, too.

    Raises:
        UnreadableFile: the image is damaged.
        DataError: it is whole and doesn't fit: another size, more than 8 bits.
    """
    image = _open(data, name, place)
    _check_size(name, image, size)
    if image.format == "JPEG":
        # An eighth of the size: the whole stream is still read, most of the arithmetic is saved.
        image.draft(None, (1, 1))  # pyright: ignore[reportArgumentType]
    _to_rgb(image, name, place)


def _open(data: bytes, name: str, place: Path | str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > _MOST_PIXELS:
            raise DamagedFile(f"{image.width} x {image.height} pixels, more than {_MOST_PIXELS} in all")
        return image
    except Exception as error:  # decoders fail in many ways on damaged files
        raise _damaged(name, place, error) from error


def _to_rgb(image: Image.Image, name: str, place: Path | str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{name} in {place} has pixels of more than 8 bits ({image.mode}): convert it to 8 bits")
    try:
        # A palette with transparency turns into RGB without a warning only by way of RGBA.
        return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
    except Exception as error:
        raise _damaged(name, place, error) from error


def _check_size(name: str, image: Image.Image, size: tuple[int, int] | None) -> None:
    if size is not None and (image.height, image.width) != size:
        raise DataError(
            f"images have different sizes: {name} is {image.height}x{image.width} pixels (height x width) and the first training "
            f"image {size[0]}x{size[1]}: give an image_size to bring them to"
        )


def _damaged(name: str, place: Path | str, error: Exception) -> UnreadableFile:
    return UnreadableFile(f"{name} in {place} is damaged or no image ({type(error).__name__}: {error}): mend or remove it")
