"""Images from a function of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Subset

from prunus.errors import DataError
from prunus.sources.bundle import DataBundle, count_classes, known_labels
from prunus.sources.splits import SPLIT_SEED, hold_out, limit
from prunus.sources.user_file import call_user_function

_KEYS = ("train", "test", "validation", "class_names")


def user_data(source: str, *, validation_fraction: float, train_limit: int | None) -> DataBundle:
    """Call the function: it returns a `DataBundle`, or a dict of data sets ``train``, ``test`` and, if it likes, ``validation``.

    A dict may name the classes under ``class_names``; otherwise they come from ``train.classes``, or from reading every training
    label. Without ``validation``, a share of ``train`` is held out. Classes are counted where labels are known without loading.

    Raises:
        DataError: something else came back, a split is missing or empty, its items aren't (float tensor CxHxW, class index), or
            labels have no class.
    """
    result = call_user_function(source, {})
    if isinstance(result, DataBundle):
        bundle = replace(result, source=source)
    elif isinstance(result, Mapping):
        bundle = _from_dict(source, cast("Mapping[str, Any]", result), validation_fraction)
    else:
        raise DataError(
            f"{source!r} returned a {type(result).__name__}: a data function returns a DataBundle or a dict with train and test"
        )
    for split in ("train", "validation", "test", "calibration"):
        _check_item(source, split, getattr(bundle, split), bundle)
    if train_limit is not None and train_limit < _size(bundle.train):
        chosen = limit(_labels(bundle.train), train_limit, SPLIT_SEED)
        # A calibration set of the same length holds the same images without augmentation.
        parallel = _size(bundle.calibration) == _size(bundle.train)
        calibration = Subset(bundle.calibration, chosen) if parallel else bundle.calibration
        bundle = replace(bundle, train=Subset(bundle.train, chosen), calibration=calibration)
    return count_classes(bundle)


_SPLITS = ("train", "test", "validation")


def _from_dict(source: str, result: Mapping[str, Any], validation_fraction: float) -> DataBundle:
    unknown = [key for key in result if key not in _KEYS]
    missing = [key for key in ("train", "test") if key not in result]
    if unknown or missing:
        what = f"an unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise DataError(f"{source!r} returned a dict with {what}: it has train and test, and may have validation and class_names")
    for split in _SPLITS:
        if result.get(split) is not None:
            _first(source, split, result[split])
    train, validation, notes = result["train"], result.get("validation"), ()
    class_names = result.get("class_names") or getattr(train, "classes", None)
    if class_names is None:
        class_names = [str(label) for label in range(max(_labels(train)) + 1)]
        notes = ("class names were not given: the classes are those of the training labels",)
    if validation is None:
        rest, held = hold_out(_labels(train), validation_fraction, SPLIT_SEED)
        train, validation = Subset(train, rest), Subset(train, held)
    image = _first(source, "train", train)[0]
    shape = tuple(image.shape) if isinstance(image, Tensor) else ()
    if len(shape) != 3:
        raise DataError(_wrong_item(source, "train", image))
    return DataBundle(
        train=train,
        validation=validation,
        test=result["test"],
        input_shape=(shape[0], shape[1], shape[2]),
        class_names=tuple(str(name) for name in class_names),
        source=source,
        mean=(0.0,) * shape[0],
        std=(1.0,) * shape[0],
        calibration=train,
        notes=notes,
    )


def _check_item(source: str, split: str, dataset: Dataset[Any], bundle: DataBundle) -> None:
    image, label = _first(source, split, dataset)
    if not isinstance(image, Tensor) or not image.is_floating_point() or image.dim() != 3:
        raise DataError(_wrong_item(source, split, image))
    if tuple(image.shape) != bundle.input_shape:
        raise DataError(f"{source!r}: images of {split} have shape {tuple(image.shape)}, and the input is {bundle.input_shape}")
    if not 0 <= int(label) < bundle.num_classes:
        raise DataError(f"{source!r}: the first label of {split} is {int(label)}, and there are {bundle.num_classes} classes")


def _first(source: str, split: str, dataset: Any) -> tuple[Any, Any]:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(f"{source!r}: {split} is a {type(dataset).__name__}: it must be a data set with a length and items")
    if len(dataset) == 0:
        raise DataError(f"{source!r}: {split} is empty")
    item = dataset[0]
    if not isinstance(item, tuple | list) or len(cast("tuple[Any, ...]", item)) != 2:
        raise DataError(_wrong_item(source, split, item))
    image, label = cast("tuple[Any, Any]", item)
    scalar = isinstance(label, Tensor) and label.dim() == 0 and not label.is_floating_point()
    if not scalar and not isinstance(label, int | np.integer):
        raise DataError(f"{source!r}: the first label of {split} is {label!r}: it must be a class index")
    return image, label


def _wrong_item(source: str, split: str, item: Any) -> str:
    what = f"a {item.dtype} tensor of shape {tuple(item.shape)}" if isinstance(item, Tensor) else f"a {type(item).__name__}"
    return f"{source!r}: an item of {split} holds {what}: items are (float tensor of channels x height x width, class index)"


def _labels(dataset: Dataset[Any]) -> list[int]:
    """Class indices: as the data set tells them, else by reading every item."""
    labels = known_labels(dataset)
    return [int(dataset[index][1]) for index in range(_size(dataset))] if labels is None else labels


def _size(dataset: Dataset[Any]) -> int:
    return len(dataset)  # pyright: ignore[reportArgumentType]
