"""Images named by a string: ``digits``, ``folder:PATH``, ``fake:3x32x32x10`` or ``path/to/file.py:function``."""

from __future__ import annotations

from collections.abc import Sequence

from prunus.errors import DataError, PrunusError, UnknownName
from prunus.sources.bundle import DataBundle, ImageDataset, Splits, hold_out, limit
from prunus.sources.small_images import digits, fake
from prunus.sources.user_data import user_data
from prunus.sources.user_file import names_user_file

_FORMS = ("digits", "folder:PATH", "fake:3x32x32x10", "path/to/file.py:function")


def load_data(
    source: str,
    *,
    image_size: int | None = None,
    augment: str = "none",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    validation_fraction: float = 0.1,
    train_limit: int | None = None,
    seed: int = 0,
) -> DataBundle:
    """Training, validation and test images of ``source``: normalised float tensors (channels, height, width) with class indices.

    Args:
        source: ``digits`` (1,797 handwritten digits, 1x8x8), ``folder:PATH`` (class folders under train/, validation/, test/;
            PATH may be a .zip), ``fake:CxHxWxCLASSES`` (made from the seed), or ``path/to/file.py:function``, which returns a
            `DataBundle` or a dict with data sets ``train``, ``test``, ``validation`` and with ``class_names``.
        image_size: pixels; the shorter side is resized to it and the centre cropped. None: as stored.
        augment: of the training images: ``none``, ``shift``, ``crop-flip`` or ``resized-crop-flip``. Its random numbers are
            torch's global ones.
        mean: per channel, of pixels in 0..1; None is the source's own (ImageNet's for folders).
        std: standard deviation, likewise.
        validation_fraction: share of every class held out of the training images where the source has no validation split.
        train_limit: use only so many training images, as equal over the classes as can be. None: all.
        seed: of the held-out images, the limited ones and the fake ones; digits have the same test images with every seed.

    Raises:
        UnknownName: no such source, augmentation, file or function.
        DataError: images or labels are missing, damaged or don't fit together.
        PrunusError: a library that the source needs isn't installed.
    """
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction={validation_fraction} is a share of the training images, between 0 and 1")
    if train_limit is not None and train_limit < 1:
        raise DataError(f"train_limit={train_limit} leaves no training image")
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size={image_size} is a number of pixels, at least 1")
    if names_user_file(source) and not source.startswith(("folder:", "fake:")):
        if augment != "none" or any(setting is not None for setting in (image_size, mean, std)):
            raise DataError(f"{source!r} makes its own tensors: set image_size, augment, mean and std there, not beside it")
        return user_data(source, validation_fraction=validation_fraction, train_limit=train_limit, seed=seed)
    splits = _splits(source, image_size, seed)
    splits, rest, held = _complete(splits, source, validation_fraction, seed)
    if train_limit is not None and train_limit < len(rest):
        chosen = limit([splits.train.labels[i] for i in rest], train_limit, seed)
        rest = [rest[i] for i in chosen]
    return _bundle(source, splits, rest, held, image_size=image_size, augment=augment, mean=mean, std=std)


def _splits(source: str, image_size: int | None, seed: int) -> Splits:
    prefix, _, rest = source.partition(":")
    if source == "digits":
        return digits()
    if prefix == "fake":
        return fake(rest, seed)
    if prefix == "folder" and rest:
        try:
            from prunus.sources.folder import folder
        except ModuleNotFoundError as error:
            raise PrunusError("folders of images need the package pillow: pip install 'prunus[data]'") from error
        return folder(rest, any_size=image_size is not None)
    raise UnknownName.among("data source", source, _FORMS)


def _complete(splits: Splits, source: str, validation_fraction: float, seed: int) -> tuple[Splits, list[int], list[int]]:
    """Fill in missing splits; returns the positions of the training and the validation images as well."""
    notes = list(splits.notes)
    if splits.validation is not None:
        rest, held = list(range(len(splits.train.labels))), list(range(len(splits.validation.labels)))
        validation = splits.validation
    else:
        rest, held = hold_out(splits.train.labels, validation_fraction, seed)
        validation = splits.train
    test = splits.test
    if test is None:
        if splits.validation is None:
            raise DataError(f"{source} has neither a test nor a validation split: accuracy needs one of them")
        notes.append("there is no test split: test accuracy is measured on the validation images")
        test = validation
    complete = Splits(
        splits.train, validation, test, splits.class_names, splits.stored_shape, splits.mean, splits.std, tuple(notes)
    )
    return complete, rest, held


def _bundle(
    source: str,
    splits: Splits,
    rest: list[int],
    held: list[int],
    *,
    image_size: int | None,
    augment: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> DataBundle:
    try:
        from prunus.sources.transforms import check_normalisation, evaluation_transform, training_transform
    except ModuleNotFoundError as error:
        raise PrunusError("images need the package torchvision: pip install 'prunus[data]'") from error
    assert splits.validation is not None and splits.test is not None
    mean = splits.mean if mean is None else tuple(mean)
    std = splits.std if std is None else tuple(std)
    channels, *stored_size = splits.stored_shape
    check_normalisation(channels, mean, std)
    height, width = stored_size if image_size is None else (image_size, image_size)
    plain = evaluation_transform(image_size, mean, std)
    augmented = training_transform(augment, (stored_size[0], stored_size[1]), image_size, mean, std)
    return DataBundle(
        train=ImageDataset(splits.train, rest, augmented),
        validation=ImageDataset(splits.validation, held, plain),
        test=ImageDataset(splits.test, range(len(splits.test.labels)), plain),
        input_shape=(channels, height, width),
        class_names=splits.class_names,
        source=source,
        mean=mean,
        std=std,
        calibration=ImageDataset(splits.train, rest, plain),
        notes=splits.notes,
    )
