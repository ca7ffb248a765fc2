"""Images in data sets of Hugging Face's `datasets` library, from local files: ``datasets:PATH``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prunus.errors import DataError
from prunus.files import DamagedFile, read_bounded
from prunus.sources.archive import MOST_BYTES, UnreadableFile
from prunus.sources.bundle import Splits
from prunus.sources.file_patterns import split_files
from prunus.sources.streamed import StreamedImages, streamed_splits
from prunus.sources.tar_shards import class_names

_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}
_SUFFIXES = (*_BUILDERS, ".arrow")
_IMAGE_COLUMNS = ("image", "img", "file_name")
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
_SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
_RUN = 1000  # rows that stay together when files are gone through in a random order


class ArrowImages(StreamedImages):
    """The rows of one split, memory-mapped: ``column`` holds encoded images, or paths inside ``folder``."""

    def __init__(self, rows: Any, column: str, labels: NDArray[np.int64], place: str, folder: Path) -> None:
        self.rows, self.column, self.labels, self.place, self.folder = (
            rows.select_columns([column]),
            column,
            labels,
            place,
            folder,
        )
        self.starts = np.append(np.arange(0, len(labels), _RUN), len(labels)).astype(np.int64)

    def name(self, index: int) -> str:
        """``row 17``."""
        return f"row {index}"

    def read(self, index: int) -> bytes:
        """The encoded image."""
        try:
            value: Any = self.rows[int(index)][self.column]
        except Exception as error:  # Arrow fails in many ways on damaged files
            raise UnreadableFile(f"{self.name(index)} of {self.place} can't be read: {error}") from error
        path: Any = value
        if isinstance(value, dict):
            image = cast("dict[str, Any]", value)
            if isinstance(image.get("bytes"), bytes):
                return cast("bytes", image["bytes"])
            path = image.get("path")
        elif isinstance(value, bytes):
            return value
        if not isinstance(path, str):
            raise UnreadableFile(f"{self.name(index)} of {self.place} holds no image, but a {type(value).__name__}")
        return self._read_file(path, index)

    def _read_file(self, path: str, index: int) -> bytes:
        file = (self.folder / path).resolve()
        if not file.is_relative_to(self.folder.resolve()):
            raise DataError(
                f"{self.name(index)} of {self.place} names the file {path!r}, which lies outside of {self.folder}: images lie in "
                "the rows themselves, or beside the files under a relative path"
            )
        try:
            return read_bounded(file, MOST_BYTES)
        except (OSError, DamagedFile) as error:
            raise UnreadableFile(f"{file}, of {self.name(index)} of {self.place}, can't be read: {error}") from error


def arrow_datasets(text: str, source: str, *, any_size: bool, check_images: bool) -> Splits:
    """Read a folder that `datasets` has saved, or Parquet, Arrow, JSON or JSON Lines files, which ``text`` names as `split_files`
    takes it. Arrow files are mapped into memory as they are; the library converts the others to such once, in its cache
    (``HF_DATASETS_CACHE``).

    The image column is the one of images, or is called image, img or file_name; the label column is the one of class labels, or
    is called label, labels, cls, class or fine_label, and holds class indices or class names.

    Raises:
        DataError: no files, files that can't be read, columns that can't be told, labels that don't fit.
    """
    splits, folder = _load(text, source)
    image, label = _columns(splits["train"], source)
    for split, rows in splits.items():
        if not {image, label} <= set(rows.column_names):
            raise DataError(f"{source}: {split} lacks the columns {image} and {label} of the training images")
    names, labels = _labels(splits, label, folder, source)
    images = {split: ArrowImages(_undecoded(rows, image), image, labels[split], source, folder) for split, rows in splits.items()}
    return streamed_splits(images, names, any_size=any_size, check_images=check_images)


def _load(text: str, source: str) -> tuple[dict[str, Any], Path]:
    """The rows of every split, and the folder that relative paths in them start from."""
    path = Path(text).expanduser()
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    files = {} if saved else split_files(text, source, _SUFFIXES)
    try:
        splits = _saved(path, source) if saved else {split: _from_files(found, source) for split, found in files.items()}
        for rows in splits.values():  # lengths and offsets in mapped files are believed from here on
            rows.data.validate(full=True)
    except (DataError, ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:  # the library, and Arrow below it, fail in many ways on damaged files
        told = str(error.__cause__ or error).partition("\n")[0]
        raise DataError(f"{source} can't be read: {told}. Look at its files, or fetch them again") from error
    empty = [split for split, rows in splits.items() if len(rows) == 0]
    if empty:
        raise DataError(f"{source}: {empty[0]} has no rows")
    return splits, path if saved else files["train"][0].parent


def _saved(path: Path, source: str) -> dict[str, Any]:
    from datasets import DatasetDict, load_from_disk

    found: Any = load_from_disk(str(path))
    by_name = cast("dict[str, Any]", found) if isinstance(found, DatasetDict) else {"train": found}
    splits = {_SPLIT_NAMES[name]: rows for name, rows in by_name.items() if name in _SPLIT_NAMES}
    if "train" not in splits:
        raise DataError(f"{source} has the splits {', '.join(by_name)}: there must be one of the name train")
    return splits


def _from_files(files: Sequence[Path], source: str) -> Any:
    from datasets import Dataset, concatenate_datasets, load_dataset

    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1 or not kinds <= set(_SUFFIXES):
        raise DataError(f"{source} has files of the kinds {', '.join(sorted(kinds))}: give one of {', '.join(_SUFFIXES)}")
    (kind,) = kinds
    if kind == ".arrow":
        return concatenate_datasets([Dataset.from_file(str(file)) for file in files])
    # The builder is named, so that nothing is looked for on the network.
    return load_dataset(_BUILDERS[kind], data_files={"train": [str(file) for file in files]}, split="train")


def _columns(rows: Any, source: str) -> tuple[str, str]:
    """The columns of images and of labels."""
    from datasets import ClassLabel, Image

    found: list[str] = []
    for what, kind, usual in (("images", Image, _IMAGE_COLUMNS), ("labels", ClassLabel, _LABEL_COLUMNS)):
        typed = [name for name, feature in rows.features.items() if isinstance(feature, kind)]
        column = typed[0] if len(typed) == 1 else next((name for name in usual if name in rows.column_names), None)
        if column is None:
            raise DataError(
                f"{source} has the columns {', '.join(rows.column_names)}, and none of them tells that it holds the {what}: "
                f"call it {usual[0]}"
            )
        found.append(column)
    return found[0], found[1]


def _undecoded(rows: Any, column: str) -> Any:
    """Rows whose images come as bytes."""
    from datasets import Image

    return rows.cast_column(column, Image(decode=False)) if isinstance(rows.features[column], Image) else rows


def _labels(
    splits: dict[str, Any], column: str, folder: Path, source: str
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Names of the classes, and the class index of every row by split."""
    from datasets import ClassLabel

    values = {split: np.asarray(rows.with_format("numpy")[column][:]) for split, rows in splits.items()}
    feature = splits["train"].features[column]
    texts = values["train"].dtype.kind in "UOT"
    if texts:
        names = tuple(sorted({str(value) for value in values["train"]}))
    elif values["train"].dtype.kind not in "iu":
        raise DataError(f"{source}: the column {column} holds {values['train'].dtype} values: labels are class indices or names")
    elif isinstance(feature, ClassLabel):
        names = tuple(feature.names)
    else:
        names = class_names(int(values["train"].max()) + 1, folder, source)
    if len(names) < 2:
        raise DataError(f"{source} has the one class {', '.join(names)}: a classifier needs at least two")
    number_of = {name: number for number, name in enumerate(names)}
    labels: dict[str, NDArray[np.int64]] = {}
    for split, found in values.items():
        numbers = np.array([number_of.get(str(value), -1) for value in found] if texts else found, dtype=np.int64)
        if numbers.min() < 0 or numbers.max() >= len(names):
            wrong = found[int(np.argmax((numbers < 0) | (numbers >= len(names))))]
            raise DataError(f"{source}: {split} has the label {wrong}, which is none of the {len(names)} classes of training")
        labels[split] = numbers
    return names, labels
