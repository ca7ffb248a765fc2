"""CIFAR-10: torchvision's files, or its images in class folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from prunus.errors import DataError
from prunus.sources.bundle import Splits
from prunus.sources.folder import folder
from prunus.sources.image_arrays import StoredArrays

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def cifar10(path: str, *, any_size: bool, check_images: bool, download: bool) -> Splits:
    """Read ``path``: a folder with ``cifar-10-batches-py/`` in it, or a folder or .zip with ``train/CLASS/IMAGE``.

    Args:
        path: where the files are, or where a download goes.
        any_size: of class folders: images are resized later, so their sizes may differ.
        check_images: of class folders: see `folder`.
        download: fetch the files where there are none, or unpack the archive that lies there already.

    Raises:
        DataError: files are missing or damaged, can't be fetched, or class folders have other names than the ten of CIFAR-10.
    """
    root = Path(path).expanduser()
    root = root.parent if root.name == CIFAR10.base_folder else root
    if root.is_file() or (not (root / CIFAR10.base_folder).exists() and (root / "train").is_dir()):
        return _class_folders(path, any_size, check_images)
    if download:
        _fetch(root)
    _check_files(root)
    train: Any = CIFAR10(root, train=True)
    test: Any = CIFAR10(root, train=False)
    return Splits(
        train=StoredArrays(train.data, list(train.targets)),
        validation=None,
        test=StoredArrays(test.data, list(test.targets)),
        class_names=CLASS_NAMES,
        stored_shape=(3, *train.data.shape[1:3]),
        mean=MEAN,
        std=STD,
    )


def _class_folders(path: str, any_size: bool, check_images: bool) -> Splits:
    splits = folder(path, f"cifar10:{path}", any_size=any_size, check_images=check_images)
    if splits.class_names != CLASS_NAMES:
        raise DataError(
            f"cifar10:{path} has the class folders {', '.join(splits.class_names)}, and CIFAR-10's are {', '.join(CLASS_NAMES)}: "
            f"rename them, or read other images as folder:{path}"
        )
    return replace(splits, mean=MEAN, std=STD)


def _fetch(root: Path) -> None:
    try:
        CIFAR10(root, download=True)
    except (OSError, RuntimeError, EOFError) as error:  # no network, a full disk, a broken archive
        raise DataError(
            f"cifar10:{root}: the files could not be fetched from {CIFAR10.url} ({type(error).__name__}: {error}): put "
            f"{CIFAR10.filename} into {root} by hand and run again, which unpacks it, or name the folder of a copy"
        ) from error


def _check_files(root: Path) -> None:
    """Every file must be there and be the published one: torchvision unpickles them, and a foreign pickle can run any code."""
    files = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    places = [(root / CIFAR10.base_folder / name, md5) for name, md5 in files]
    missing = [place.name for place, _ in places if not place.is_file()]
    if missing:
        raise DataError(
            f"cifar10:{root} lacks {', '.join(missing)}: looked in {root / CIFAR10.base_folder}, and for class folders in "
            f"{root / 'train'}; data.download = true fetches them (170 MB), or unpacks {CIFAR10.filename} if it lies in {root}"
        )
    changed = [place.name for place, md5 in places if not check_integrity(place, md5)]
    if changed:
        raise DataError(
            f"cifar10:{root}: {', '.join(changed)} in {root / CIFAR10.base_folder} have another MD5 sum than published, "
            f"so they were not opened: remove them and fetch them again, e.g. with data.download = true"
        )
