"""Images in folders named after their class: ``train/cat/1.jpg``, ``validation/...``, ``test/...``, on disk or in a .zip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from prunus.errors import DataError
from prunus.sources.archive import Folder, Zip, open_archive
from prunus.sources.bundle import Splits
from prunus.sources.image_files import SUFFIXES, StoredFiles, first_size, look_at_sizes

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


def folder(path: str, source: str, *, any_size: bool, check_images: bool) -> Splits:
    """Read the layout ``{train,validation,test}/CLASS/.../IMAGE`` (or ``val``); images are decoded when asked for.

    Args:
        path: a folder, or a .zip with that layout in it, at its top or inside one folder.
        source: how the user named it, for messages.
        any_size: images are resized later, so their sizes may differ.
        check_images: damaged images will be left out, so they don't stop the reading here.

    Raises:
        DataError: nothing there, no training images, images outside class folders, splits whose classes differ, damaged
            images, or images of different sizes.
    """
    archive = open_archive(path)
    files, ignored = _sort_files(archive, source)
    class_names = _class_names(source, files)
    size = first_size(archive, [name for c in class_names for name in files["train"][c]], skip_damaged=check_images)
    stored = {split: _stored(archive, classes, class_names, None if any_size else size) for split, classes in files.items()}
    for images in [] if check_images else stored.values():
        look_at_sizes(images)
    return Splits(
        train=stored["train"],
        validation=stored.get("validation"),
        test=stored.get("test"),
        class_names=class_names,
        stored_shape=(3, *size),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        notes=_ignored_note(ignored),
    )


def _sort_files(archive: Folder | Zip, source: str) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """Names by split and class; and the files that are no images."""
    names = [n for n in archive.names() if not any(part.startswith((".", "__MACOSX")) for part in n.split("/"))]
    depth = _depth_of_splits(names)
    files: dict[str, dict[str, list[str]]] = {}
    ignored: list[str] = []
    for name in names:
        parts = name.split("/")[depth:]
        split = _SPLITS.get(parts[0])
        if split is None or PurePosixPath(name).suffix.lower() not in SUFFIXES:
            ignored.append(name)
        elif len(parts) < 3:
            raise DataError(f"{source}: {name} is in no class folder: move it to {parts[0]}/CLASS/")
        else:
            files.setdefault(split, {}).setdefault(parts[1], []).append(name)
    return files, ignored


def _depth_of_splits(names: list[str]) -> int:
    """0, or 1 where everything lies inside one folder (as archives often are)."""
    tops = {name.split("/")[0] for name in names}
    return 1 if len(tops) == 1 and not tops & set(_SPLITS) and all("/" in name for name in names) else 0


def _class_names(source: str, files: dict[str, dict[str, list[str]]]) -> tuple[str, ...]:
    """The sorted class folders of train/, which every other split must have as well."""
    expected = sorted(files.get("train", {}))
    if not expected:
        found = ", ".join(f"{split}/" for split in files) or "no images in folders of these names"
        raise DataError(
            f"{source} has no train/CLASS/IMAGE: found {found}. "
            f"The layout is train/, validation/ and test/, each with a folder per class"
        )
    if len(expected) == 1:
        raise DataError(f"{source} has the one class {expected[0]!r}: a classifier needs at least two folders in train/")
    for split, classes in files.items():
        lacking = [name for name in expected if name not in classes]
        foreign = sorted(classes.keys() - files["train"].keys())
        for which, names in (("lacks", lacking), ("has, and train/ lacks,", foreign)):
            if names:
                shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise DataError(
                    f"{source}: {split}/ {which} the class folders {shown}: every split needs images of the same classes"
                )
    return tuple(expected)


def _stored(
    archive: Folder | Zip, classes: dict[str, list[str]], class_names: Sequence[str], size: tuple[int, int] | None
) -> StoredFiles:
    pairs = [(name, label) for label, class_name in enumerate(class_names) for name in classes[class_name]]
    return StoredFiles(archive, [name for name, _ in pairs], [label for _, label in pairs], size)


def _ignored_note(ignored: list[str]) -> tuple[str, ...]:
    if not ignored:
        return ()
    return (f"files that are no images of train/, validation/ or test/ were ignored: {len(ignored)}, the first {ignored[0]}",)
