"""What every source of images gives: splits as data sets of normalised tensors, and what a network needs to know of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, WeightedRandomSampler

from prunus.errors import DataError

_NOTEWORTHY_IMBALANCE = 1.5


@dataclass(frozen=True, eq=False)
class DataBundle:
    """Images for training, choosing and judging a network.

    Every data set gives ``(image, label)``: a normalised float tensor (channels, height, width) and the class index.
    ``calibration`` holds the training images without augmentation, for importance and batch-norm statistics. ``mean`` and ``std``
    are what pixels in 0..1 were normalised with, per channel (0 and 1 where the user's own code did it). ``notes`` are remarks
    for the user: what was missing, ignored or replaced. ``class_counts`` holds the number of images of every class (in the order
    of ``class_names``) by split, ``train``, ``validation`` and ``test``, where labels are known without loading images.
    ``damaged`` holds the names of the images that were left out because they can't be decoded, by split. ``normalised_by`` says
    whose mean and std those are.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    calibration: Dataset[Any]
    notes: tuple[str, ...] = ()
    class_counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    damaged: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    normalised_by: str = "the user's function"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def imbalance(self) -> float:
        """Training images of the largest class for each of the smallest; 1.0 if unknown. A class without any counts as one."""
        counts = self.class_counts.get("train", ())
        return max(counts) / max(min(counts), 1) if counts else 1.0


Labels: TypeAlias = Sequence[int] | NDArray[np.int64]


class LabelledImages(Protocol):
    """Stored images and the class index of each; ``load`` gives a PIL image or a float tensor (channels, height, width), 0..1."""

    @property
    def labels(self) -> Labels: ...

    def load(self, index: int) -> Any: ...


@dataclass(frozen=True, eq=False)
class Splits:
    """What one source stores, before transforms. None: the source has no such split."""

    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages | None
    class_names: tuple[str, ...]
    stored_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Chosen:
    """The images of a source that make up one split, by their positions in it."""

    images: LabelledImages
    indices: list[int]

    @classmethod
    def all_of(cls, images: LabelledImages) -> Chosen:
        """Every image."""
        return cls(images, list(range(len(images.labels))))


class ImageDataset(Dataset[Any]):
    """Chosen images of a source, each through a transform that ends in a normalised tensor."""

    shuffle_buffer: int | None = None
    """Images that training draws the next one from; None: all of them."""

    def __init__(self, images: LabelledImages, indices: Sequence[int], transform: Callable[[Any], Tensor]) -> None:
        self.images, self.transform = images, transform
        self.indices: Sequence[int] = list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = self.indices[position]
        return self.transform(self.images.load(index)), self.images.labels[index]

    @property
    def labels(self) -> list[int]:
        """The class index of every image, without loading any."""
        return [self.images.labels[i] for i in self.indices]


def known_labels(dataset: Dataset[Any]) -> list[int] | None:
    """The class index of every item where the data set tells them without loading any; None where it doesn't.

    They are looked for under ``labels`` and ``targets``, in the last tensor of a `TensorDataset`, and through a `Subset`.
    """
    if isinstance(dataset, Subset):
        whole = known_labels(dataset.dataset)
        return None if whole is None else [whole[i] for i in dataset.indices]
    if isinstance(dataset, TensorDataset):
        places: list[Any] = [dataset.tensors[-1]]
    else:
        places = [getattr(dataset, name, None) for name in ("targets", "labels")]
    for place in places:
        try:
            labels = torch.as_tensor(place)
        except (TypeError, ValueError, RuntimeError):  # none, or names instead of indices
            continue
        whole_numbers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if whole_numbers and labels.dim() == 1 and len(labels) == _size(dataset):
            return labels.tolist()
    return None


def count_classes(bundle: DataBundle) -> DataBundle:
    """The bundle with its ``class_counts``, and with a note where classes have very different numbers of training images.

    Raises:
        DataError: a label is below zero, or there is no class for it.
    """
    counts = dict(bundle.class_counts)
    for split, dataset in (("train", bundle.train), ("validation", bundle.validation), ("test", bundle.test)):
        labels = known_labels(dataset)
        if not labels:
            continue
        foreign = [label for label in (min(labels), max(labels)) if not 0 <= label < bundle.num_classes]
        if foreign:
            raise DataError(
                f"{bundle.source!r}: {split} has the label {foreign[0]}, and there are {bundle.num_classes} classes: labels are "
                f"indices from 0 to {bundle.num_classes - 1}"
            )
        counts[split] = tuple(np.bincount(labels, minlength=bundle.num_classes).tolist())
    counted = replace(bundle, class_counts=counts)
    note = _imbalance_note(counted)
    return counted if note is None or note in bundle.notes else replace(counted, notes=(*bundle.notes, note))


def _imbalance_note(bundle: DataBundle) -> str | None:
    if bundle.imbalance <= _NOTEWORTHY_IMBALANCE:
        return None
    counts = bundle.class_counts["train"]
    few, many = (bundle.class_names[counts.index(pick(counts))] for pick in (min, max))
    if min(counts) == 0:
        return f"{few} has no training images: no network can learn it"
    return (
        f"{few} has {bundle.imbalance:.1f}x fewer training images than {many}: look at balanced accuracy; "
        f"data.balance = true draws classes equally often"
    )


def make_loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    shuffle: bool,
    workers: int = 0,
    worker_timeout: float = 0.0,
    drop_last: bool = False,
    balance: bool = False,
) -> DataLoader[Any]:
    """Batches ``(images, labels)``. Order and augmentation follow torch's global random state at the start of each pass.

    With ``balance`` every image is drawn with a chance of one over the size of its class, with repetition, as many as there are
    in the data set; this order comes from a generator of the sampler's own, ``loader.sampler.generator``, which training seeds
    for every epoch, the same on every process.

    ``worker_timeout``: seconds that the workers may take for a batch before an error is raised; 0: for ever.

    Images in large files (``wds:``, ``datasets:``) are shuffled by a `FileOrder`, in a loader whose state a checkpoint can hold.

    Workers are started anew for each pass: kept ones would carry their random state from pass to pass, and a resumed run could
    not repeat it.

    Raises:
        DataError: the loader would yield nothing; or with ``balance``: labels aren't known without loading images, or ``shuffle``
            is off.
    """
    size = _size(dataset)
    if size == 0 or (drop_last and size < batch_size):
        raise DataError(f"{size} images give no batch of {batch_size}{': the last one is dropped' if size else ''}")
    balanced = _balanced_sampler(dataset, shuffle) if balance else None
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": workers,
        "timeout": worker_timeout if workers else 0,
        "drop_last": drop_last,
        "pin_memory": torch.cuda.is_available(),
    }
    if shuffle and isinstance(dataset, ImageDataset) and dataset.shuffle_buffer is not None:
        from prunus.sources.stream_loader import stream_loader

        return stream_loader(dataset, dataset.shuffle_buffer, balanced, common)
    return DataLoader(dataset, shuffle=shuffle and not balance, sampler=balanced, **common)


def _balanced_sampler(dataset: Dataset[Any], shuffle: bool) -> WeightedRandomSampler:
    if not shuffle:
        raise DataError("balance draws images at random, so it can't keep their order: set shuffle, or leave balance off")
    labels = known_labels(dataset)
    if labels is None:
        raise DataError(
            f"balance needs the class of every image beforehand, and {type(dataset).__name__} tells none without loading it: "
            f"give the data set an attribute targets, a list of class indices, or leave balance off"
        )
    weights = 1 / np.bincount(labels)[labels]
    return WeightedRandomSampler(weights.tolist(), num_samples=len(labels), replacement=True, generator=torch.Generator())


def _size(dataset: Dataset[Any]) -> int:
    return len(dataset)  # pyright: ignore[reportArgumentType]
