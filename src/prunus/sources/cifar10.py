"""CIFAR-10: torchvision's files, or its images in class folders."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_and_extract_archive

from prunus.errors import DataError
from prunus.files import DamagedFile, read_bounded
from prunus.sources.bundle import Splits
from prunus.sources.folder import folder
from prunus.sources.image_arrays import StoredArrays

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SIZE = (32, 32)
_MOST_BYTES = 2**26  # twice a published file
_BUILDERS = frozenset({"_reconstruct", "_frombuffer", "ndarray", "dtype"})
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
    files = _published_files(root)
    return Splits(
        train=_stored([files[name] for name, _ in CIFAR10.train_list]),
        validation=None,
        test=_stored([files[name] for name, _ in CIFAR10.test_list]),
        class_names=CLASS_NAMES,
        stored_shape=(3, *_SIZE),
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
    if all(_matches(root / CIFAR10.base_folder / name, md5) for name, md5 in _files()):
        return
    try:
        download_and_extract_archive(CIFAR10.url, root, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
    except (OSError, RuntimeError, EOFError) as error:  # no network, a full disk, a broken archive
        raise DataError(
            f"cifar10:{root}: the files could not be fetched from {CIFAR10.url} ({type(error).__name__}: {error}): put "
            f"{CIFAR10.filename} into {root} by hand and run again, which unpacks it, or name the folder of a copy"
        ) from error


def _files() -> list[tuple[str, str]]:
    """Names and MD5 sums of the published files."""
    listed = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    return [(str(name), str(md5)) for name, md5 in listed]


def _read(path: Path, md5: str) -> bytes | None:
    """The contents, or None where they aren't the published ones."""
    try:
        content = read_bounded(path, _MOST_BYTES)
    except (OSError, DamagedFile):
        return None
    return content if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5 else None


def _matches(path: Path, md5: str) -> bool:
    return _read(path, md5) is not None


def _published_files(root: Path) -> dict[str, bytes]:
    """Every file's contents: each must be there and be the published one, for a pickle may ask for anything."""
    folder = root / CIFAR10.base_folder
    missing = [name for name, _ in _files() if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"cifar10:{root} lacks {', '.join(missing)}: looked in {root / CIFAR10.base_folder}, and for class folders in "
            f"{root / 'train'}; data.download = true fetches them (170 MB), or unpacks {CIFAR10.filename} if it lies in {root}"
        )
    found = {name: _read(folder / name, md5) for name, md5 in _files()}
    changed = [name for name, content in found.items() if content is None]
    if changed:
        raise DataError(
            f"cifar10:{root}: {', '.join(changed)} in {root / CIFAR10.base_folder} have another MD5 sum than published, "
            f"so they were not opened: remove them and fetch them again, e.g. with data.download = true"
        )
    return {name: content for name, content in found.items() if content is not None}


class _Arrays(pickle.Unpickler):
    """Reads dicts of arrays, and builds nothing else whatever the file asks for."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) != ("_codecs", "encode") and (
            module_name.partition(".")[0] != "numpy" or global_name not in _BUILDERS
        ):
            raise DataError(
                f"a file of CIFAR-10 asks for {module_name}.{global_name}: it was not opened any further, fetch it again"
            )
        return super().find_class(module_name, global_name)


def _stored(files: list[bytes]) -> StoredArrays:
    batches: list[Any] = [_Arrays(io.BytesIO(content), encoding="latin1").load() for content in files]
    pixels = np.vstack([batch["data"] for batch in batches]).reshape(-1, 3, *_SIZE).transpose(0, 2, 3, 1)
    return StoredArrays(pixels, [int(label) for batch in batches for label in batch["labels"]])
