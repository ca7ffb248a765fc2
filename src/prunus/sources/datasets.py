"""Images named by a string: ``digits``, ``folder:PATH``, ``cifar10:PATH``, ``path/to/file.py:function`` and others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from torch import Tensor

from prunus.errors import DataError, PrunusError, UnknownName
from prunus.sources.bundle import Chosen, DataBundle, ImageDataset, Splits, count_classes
from prunus.sources.small_images import digits, fake
from prunus.sources.splits import SPLIT_SEED, hold_out, limit
from prunus.sources.user_data import user_data
from prunus.sources.user_file import names_user_file


@dataclass(frozen=True)
class _Request:
    """What a source has to know besides its path."""

    any_size: bool
    check_images: bool
    download: bool
    seed: int


@dataclass(frozen=True)
class _Tensors:
    """How a stored image becomes a tensor: the arguments of `load_data` of the same names."""

    image_size: int | None = None
    augment: str = "none"
    min_area: float = 0.08
    colour: float = 0.0
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


_Read: TypeAlias = Callable[[str, _Request], Splits]


# The modules of image files are imported when they are needed: they need pillow, which digits don't.
def _folder(path: str, request: _Request) -> Splits:
    from prunus.sources.folder import folder

    return folder(path, f"folder:{path}", any_size=request.any_size, check_images=request.check_images)


def _wds(path: str, request: _Request) -> Splits:
    from prunus.sources.tar_shards import tar_shards

    return tar_shards(path, f"wds:{path}", any_size=request.any_size, check_images=request.check_images)


def _datasets(path: str, request: _Request) -> Splits:
    from prunus.sources.arrow_datasets import arrow_datasets

    return arrow_datasets(path, f"datasets:{path}", any_size=request.any_size, check_images=request.check_images)


def _cifar10(path: str, request: _Request) -> Splits:
    from prunus.sources.cifar10 import cifar10

    return cifar10(path, any_size=request.any_size, check_images=request.check_images, download=request.download)


def _mnist(path: str, request: _Request) -> Splits:
    from prunus.sources.idx import MNIST, idx_images

    return idx_images(MNIST, path)


def _fashion_mnist(path: str, request: _Request) -> Splits:
    from prunus.sources.idx import FASHION_MNIST, idx_images

    return idx_images(FASHION_MNIST, path)


def _elpv(path: str, request: _Request) -> Splits:
    from prunus.sources.elpv import elpv

    return elpv(path, any_size=request.any_size, check_images=request.check_images)


_SOURCES: dict[str, tuple[tuple[str, ...], _Read]] = {  # name: the forms it is written in, what reads it
    "digits": (("digits",), lambda _, request: digits()),
    "folder": (("folder:PATH",), _folder),
    "wds": (("wds:PATTERN",), _wds),
    "datasets": (("datasets:PATTERN",), _datasets),
    "cifar10": (("cifar10:PATH",), _cifar10),
    "fashion-mnist": (("fashion-mnist:PATH",), _fashion_mnist),
    "mnist": (("mnist:PATH",), _mnist),
    "elpv": (("elpv", "elpv:PATH"), _elpv),
    "fake": (("fake:3x32x32x10",), lambda text, request: fake(text, request.seed)),
}
_STREAMING = ("braceexpand", "datasets", "torchdata")
_FORMS = (*(form for forms, _ in _SOURCES.values() for form in forms), "path/to/file.py:function")


def load_data(
    source: str,
    *,
    image_size: int | None = None,
    augment: str = "none",
    min_area: float = 0.08,
    colour: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    network_normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    validation_fraction: float = 0.1,
    train_limit: int | None = None,
    download: bool = False,
    check_images: bool = True,
    shuffle_buffer: int | None = None,
    seed: int = 0,
) -> DataBundle:
    """Training, validation and test images of ``source``: normalised float tensors (channels, height, width) with class indices.

    Held-out validation images and limited training images are drawn with a fixed seed: they are the same in every run.

    Args:
        source: ``digits`` (1,797 handwritten digits, 1x8x8), ``folder:PATH`` (class folders under train/, validation/, test/;
            PATH may be a .zip), ``wds:PATTERN`` (tar shards as WebDataset writes them) and ``datasets:PATTERN`` (Parquet, Arrow
            or JSON files, or a folder that Hugging Face's datasets saved; both are described in docs/data.md), ``cifar10:PATH``
            (torchvision's files, or class folders or a .zip), ``fashion-mnist:PATH`` and ``mnist:PATH`` (the four idx files,
            plain or .gz), ``elpv`` or ``elpv:PATH`` (solar cells, of the package elpv-dataset or a folder with labels.csv),
            ``fake:CxHxWxCLASSES`` (made from the seed), or ``path/to/file.py:function``, which returns a `DataBundle` or a dict
            with data sets ``train``, ``test``, ``validation`` and with ``class_names``.
        image_size: pixels; the shorter side is resized to it and the centre cropped. None: as stored.
        augment: of the training images: ``none``, ``shift``, ``crop-flip`` or ``resized-crop-flip``. Its random numbers, and
            those of ``colour``, are torch's global ones.
        min_area: of ``resized-crop-flip``: the smallest share of an image's area in a crop.
        colour: random brightness, contrast and saturation of the training images, each scaled by 1 - colour to 1 + colour.
        mean: per channel, of pixels in 0..1; None is the network's, else the source's own (ImageNet's for folders and cells).
        std: standard deviation, likewise.
        network_normalisation: mean and std that the network was trained with (`own_normalisation`), used for images of as many
            channels where neither ``mean`` nor ``std`` is given.
        validation_fraction: share of every class held out of the training images where the source has no validation split.
        train_limit: use only so many training images, as equal over the classes as can be. None: all.
        download: fetch the files of ``cifar10:PATH`` where they are missing.
        check_images: decode every image file that will be used once and leave out the damaged ones, with a `PrunusWarning`;
            False: a damaged image raises when it is loaded.
        shuffle_buffer: of ``wds:`` and ``datasets:``: images among which the next one of training is drawn, as their files are
            gone through in a random order. None: `SHUFFLE_BUFFER`.
        seed: of the fake images.

    Raises:
        UnknownName: no such source, augmentation, file or function.
        DataError: images or labels are missing, damaged or don't fit together, or a setting doesn't fit.
        PrunusError: a library that the source needs isn't installed.
    """
    _check_settings(source, validation_fraction, train_limit, image_size, download, shuffle_buffer)
    tensors = _Tensors(image_size, augment, min_area, colour, mean, std)
    if names_user_file(source) and source.partition(":")[0] not in _SOURCES:
        if tensors != _Tensors():
            names = ", ".join(field.name for field in fields(_Tensors))
            raise DataError(f"{source!r} makes its own tensors: set {names} there, not beside it")
        return user_data(source, validation_fraction=validation_fraction, train_limit=train_limit)
    request = _Request(any_size=image_size is not None, check_images=check_images, download=download, seed=seed)
    splits = _splits(source, request)
    normalised_by = "the recipe" if mean or std else "the data's own"
    if network_normalisation is not None and not (mean or std) and len(network_normalisation[0]) == splits.stored_shape[0]:
        splits = replace(splits, mean=tuple(network_normalisation[0]), std=tuple(network_normalisation[1]))
        normalised_by = "the network's own"
    chosen, notes = _choose(splits, source, validation_fraction, train_limit)
    bundle = _bundle(source, replace(splits, notes=notes), chosen, tensors, check_images, shuffle_buffer)
    return replace(bundle, normalised_by=normalised_by)


def _check_settings(
    source: str,
    validation_fraction: float,
    train_limit: int | None,
    image_size: int | None,
    download: bool,
    shuffle_buffer: int | None,
) -> None:
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction={validation_fraction} is a share of the training images, between 0 and 1")
    if train_limit is not None and train_limit < 1:
        raise DataError(f"train_limit={train_limit} leaves no training image")
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size={image_size} is a number of pixels, at least 1")
    if shuffle_buffer is not None and not source.startswith(("wds:", "datasets:")):
        raise DataError(f"{source!r} is shuffled as a whole: shuffle_buffer is for wds: and datasets:, leave it out")
    if shuffle_buffer is not None and shuffle_buffer < 1:
        raise DataError(f"shuffle_buffer={shuffle_buffer} is a number of images, at least 1")
    if download and not source.startswith("cifar10:"):
        raise DataError(f"there is nothing to download for {source!r}: only cifar10:PATH can be fetched, leave download off")


def _splits(source: str, request: _Request) -> Splits:
    name, colon, path = source.partition(":")
    forms, read = _SOURCES.get(name, ((), None))
    takes_path, takes_none = any(":" in form for form in forms), name in forms
    if read is None or (path and not takes_path) or (not path and (colon or not takes_none)):
        raise UnknownName.among("data source", source, _FORMS)
    try:
        return read(path, request)
    except ModuleNotFoundError as error:
        extra = "stream" if error.name in _STREAMING else "data"
        raise PrunusError(f"{source} needs the package {error.name}, which is missing: pip install 'prunus[{extra}]'") from error


def _choose(
    splits: Splits, source: str, validation_fraction: float, train_limit: int | None
) -> tuple[dict[str, Chosen], tuple[str, ...]]:
    """The images of every split, made up where the source lacks it; and the notes of the source with one on that."""
    if splits.validation is not None:
        train, validation = Chosen.all_of(splits.train), Chosen.all_of(splits.validation)
    else:
        rest, held = hold_out(splits.train.labels, validation_fraction, SPLIT_SEED)
        train, validation = Chosen(splits.train, rest), Chosen(splits.train, held)
    if splits.test is not None:
        test, notes = Chosen.all_of(splits.test), splits.notes
    elif splits.validation is not None:
        test = validation
        notes = (*splits.notes, "there is no test split: test accuracy is measured on the validation images")
    else:
        raise DataError(f"{source} has neither a test nor a validation split: accuracy needs one of them")
    if train_limit is not None and train_limit < len(train.indices):
        positions = limit([splits.train.labels[i] for i in train.indices], train_limit, SPLIT_SEED)
        train = Chosen(splits.train, [train.indices[i] for i in positions])
    return {"train": train, "validation": validation, "test": test}, notes


def _bundle(
    source: str, splits: Splits, chosen: dict[str, Chosen], tensors: _Tensors, check_images: bool, shuffle_buffer: int | None
) -> DataBundle:
    try:
        from prunus.sources.image_check import leave_out_damaged
        from prunus.sources.streamed import SHUFFLE_BUFFER, StreamDataset, StreamedImages
        from prunus.sources.transforms import check_normalisation, evaluation_transform, training_transform
    except ModuleNotFoundError as error:
        raise PrunusError("images need the package torchvision: pip install 'prunus[data]'") from error
    channels, height, width = splits.stored_shape
    size, area, colour = tensors.image_size, tensors.min_area, tensors.colour
    mean = splits.mean if tensors.mean is None else tuple(tensors.mean)
    std = splits.std if tensors.std is None else tuple(tensors.std)
    check_normalisation(channels, mean, std)
    plain = evaluation_transform(size, mean, std)
    augmented = training_transform(tensors.augment, (height, width), size, mean, std, area, colour)
    damaged: dict[str, tuple[str, ...]] = {}
    if check_images:
        chosen, damaged = leave_out_damaged(source, chosen, splits.class_names, height * width)

    def dataset(split: str, transform: Callable[[Any], Tensor]) -> ImageDataset:
        images = chosen[split].images
        if isinstance(images, StreamedImages):
            return StreamDataset(images, chosen[split].indices, transform, shuffle_buffer or SHUFFLE_BUFFER)
        return ImageDataset(images, chosen[split].indices, transform)

    bundle = DataBundle(
        train=dataset("train", augmented),
        validation=dataset("validation", plain),
        test=dataset("test", plain),
        calibration=dataset("train", plain),
        input_shape=(channels, size or height, size or width),
        class_names=splits.class_names,
        source=source,
        mean=mean,
        std=std,
        notes=splits.notes,
        damaged=damaged,
    )
    return count_classes(bundle)
