"""Images in folders named after their class: ``train/cat/1.jpg``, ``validation/...``, ``test/...``, on disk or in a .zip."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from prunus.errors import DataError
from prunus.sources.archive import Folder, Zip, open_archive
from prunus.sources.bundle import Splits

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIZES_LOOKED_AT = 100


@dataclass(frozen=True, eq=False)
class StoredFiles:
    """Image files and their class indices; ``size`` is the (height, width) that every image must have, or None for any."""

    archive: Folder | Zip
    names: Sequence[str]
    labels: list[int]
    size: tuple[int, int] | None

    def load(self, index: int) -> Any:
        """The image as 8-bit RGB."""
        name = self.names[index]
        image = _decode(self.archive, name)
        _check_size(name, image, self.size)
        return image


def folder(path: str, any_size: bool) -> Splits:
    """Read the layout ``{train,validation,test}/CLASS/.../IMAGE`` (or ``val``); images are decoded when asked for.

    Args:
        path: a folder, or a .zip with that layout in it, at its top or inside one folder.
        any_size: images are resized later, so their sizes may differ.

    Raises:
        DataError: nothing there, no training images, images outside class folders, splits whose classes differ, damaged
            images, or images of different sizes.
    """
    archive = open_archive(path)
    files, ignored = _sort_files(archive, path)
    class_names = _class_names(path, files)
    first = _decode(archive, files["train"][class_names[0]][0])
    size = (first.height, first.width)
    stored = {split: _stored(archive, classes, class_names, None if any_size else size) for split, classes in files.items()}
    for images in stored.values():
        _look_at_sizes(images)
    return Splits(
        train=stored["train"],
        validation=stored.get("validation"),
        test=stored.get("test"),
        class_names=class_names,
        stored_shape=(3, *size),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        notes=_ignored_note(ignored),
    )


def _sort_files(archive: Folder | Zip, path: str) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """Names by split and class; and the files that are no images."""
    names = [n for n in archive.names() if not any(part.startswith((".", "__MACOSX")) for part in n.split("/"))]
    depth = _depth_of_splits(names)
    files: dict[str, dict[str, list[str]]] = {}
    ignored: list[str] = []
    for name in names:
        parts = name.split("/")[depth:]
        split = _SPLITS.get(parts[0])
        if split is None or PurePosixPath(name).suffix.lower() not in _SUFFIXES:
            ignored.append(name)
        elif len(parts) < 3:
            raise DataError(f"folder:{path}: {name} is in no class folder: move it to {parts[0]}/CLASS/")
        else:
            files.setdefault(split, {}).setdefault(parts[1], []).append(name)
    return files, ignored


def _depth_of_splits(names: list[str]) -> int:
    """0, or 1 where everything lies inside one folder (as archives often are)."""
    tops = {name.split("/")[0] for name in names}
    return 1 if len(tops) == 1 and not tops & set(_SPLITS) and all("/" in name for name in names) else 0


def _class_names(path: str, files: dict[str, dict[str, list[str]]]) -> tuple[str, ...]:
    """The sorted class folders of train/, which every other split must have as well."""
    expected = sorted(files.get("train", {}))
    if not expected:
        found = ", ".join(f"{split}/" for split in files) or "no images in folders of these names"
        raise DataError(
            f"folder:{path} has no train/CLASS/IMAGE: found {found}. "
            f"The layout is train/, validation/ and test/, each with a folder per class"
        )
    if len(expected) == 1:
        raise DataError(f"folder:{path} has the one class {expected[0]!r}: a classifier needs at least two folders in train/")
    for split, classes in files.items():
        lacking = [name for name in expected if name not in classes]
        foreign = [name for name in sorted(classes) if name not in expected]
        for which, names in (("lacks", lacking), ("has, and train/ lacks,", foreign)):
            if names:
                shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise DataError(
                    f"folder:{path}: {split}/ {which} the class folders {shown}: every split needs images of the same classes"
                )
    return tuple(expected)


def _stored(
    archive: Folder | Zip, classes: dict[str, list[str]], class_names: Sequence[str], size: tuple[int, int] | None
) -> StoredFiles:
    pairs = [(name, label) for label, class_name in enumerate(class_names) for name in classes[class_name]]
    return StoredFiles(archive, [name for name, _ in pairs], [label for _, label in pairs], size)


def _look_at_sizes(images: StoredFiles) -> None:
    """Open some images before hours of training do; the rest are checked when they are loaded."""
    for name in images.names[:: max(len(images.names) // _SIZES_LOOKED_AT, 1)] if images.size else []:
        _check_size(name, _open(images.archive, name), images.size)


def _check_size(name: str, image: Image.Image, size: tuple[int, int] | None) -> None:
    if size is not None and (image.height, image.width) != size:
        raise DataError(
            f"images have different sizes: {name} is {image.height}x{image.width} pixels (height x width) and the first training "
            f"image {size[0]}x{size[1]}: give an image_size to bring them to"
        )


def _open(archive: Folder | Zip, name: str) -> Image.Image:
    data = archive.read(name)
    try:
        return Image.open(io.BytesIO(data))
    except Exception as error:  # decoders fail in many ways on damaged files
        raise _damaged(archive, name, error) from error


def _decode(archive: Folder | Zip, name: str) -> Image.Image:
    image = _open(archive, name)
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{name} in {archive.path} has pixels of more than 8 bits ({image.mode}): convert it to 8 bits")
    try:
        # A palette with transparency turns into RGB without a warning only by way of RGBA.
        return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
    except Exception as error:
        raise _damaged(archive, name, error) from error


def _damaged(archive: Folder | Zip, name: str, error: Exception) -> DataError:
    return DataError(f"{name} in {archive.path} is damaged or no image ({type(error).__name__}: {error}): mend or remove it")


def _ignored_note(ignored: list[str]) -> tuple[str, ...]:
    if not ignored:
        return ()
    return (f"files that are no images of train/, validation/ or test/ were ignored: {len(ignored)}, the first {ignored[0]}",)
