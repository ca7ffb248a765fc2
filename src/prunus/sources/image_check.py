"""Decode every image once before training does, and leave out the damaged ones."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prunus.errors import DataError, PrunusWarning
from prunus.sources.archive import UnreadableFile
from prunus.sources.bundle import Chosen, Labels
from prunus.sources.image_files import StoredFiles
from prunus.sources.streamed import StreamedImages

_TOLERATED_SHARE = 0.1  # of a class in a split
_NAMES_SHOWN = 5
_BATCH = 64  # images that a thread takes at a time
_THREADS = 8
_SMALL = 64 * 64  # pixels


class Checked(Protocol):
    """Images that lie in files, and so may be damaged; ``check`` raises `UnreadableFile` for one that is."""

    @property
    def labels(self) -> Labels: ...

    def name(self, index: int) -> str: ...

    def check(self, index: int) -> None: ...


def leave_out_damaged(
    source: str, splits: Mapping[str, Chosen], class_names: Sequence[str], pixels: int
) -> tuple[dict[str, Chosen], dict[str, tuple[str, ...]]]:
    """The splits without the images that can't be decoded, and the names of these by split; warns if there are any.

    Images that don't lie in files are whole by nature and not looked at. ``pixels`` is the size of a typical image.

    Raises:
        DataError: more than a tenth of a class is damaged in a split, or all of it; an image is whole and doesn't fit the others.
    """
    files: dict[str, Checked] = {
        split: chosen.images for split, chosen in splits.items() if isinstance(chosen.images, (StoredFiles, StreamedImages))
    }
    # A split that stands in for a missing one is checked once.
    work: dict[int, tuple[Checked, NDArray[np.int64]]] = {}
    for split, images in files.items():
        before = work[id(images)][1] if id(images) in work else []
        work[id(images)] = images, np.union1d(before, splits[split].indices).astype(np.int64)
    bad = _damaged(list(work.values()), pixels)
    for images, _ in work.values():
        if isinstance(images, StreamedImages):
            images.remember()
    whole, damaged = dict(splits), dict[str, tuple[str, ...]]()
    for split, images in files.items():
        lost = [i for i in splits[split].indices if (id(images), i) in bad] if bad else []
        if lost:
            names = tuple(images.name(i) for i in lost)
            _check_share(source, split, images, splits[split].indices, lost, class_names, bad[id(images), lost[0]])
            whole[split] = Chosen(splits[split].images, [i for i in splits[split].indices if (id(images), i) not in bad])
            damaged[split] = names
    if damaged:
        warnings.warn(_warning(source, splits, damaged), PrunusWarning, stacklevel=4)
    return whole, damaged


def _damaged(work: Sequence[tuple[Checked, NDArray[np.int64]]], pixels: int) -> dict[tuple[int, int], str]:
    """What is wrong with the images that are damaged, by the id of the images and the position in them."""
    batches = [(images, indices[i : i + _BATCH]) for images, indices in work for i in range(0, len(indices), _BATCH)]
    # Decoding runs outside the interpreter lock, the rest doesn't: threads would slow each other down on small images.
    threads = 1 if pixels <= _SMALL else min(os.cpu_count() or 1, _THREADS)

    def check(batch: tuple[Checked, NDArray[np.int64]]) -> dict[tuple[int, int], str]:
        images, indices = batch
        found = {(id(images), index): _problem(images, index) for index in indices.tolist()}
        return {key: problem for key, problem in found.items() if problem is not None}

    bad: dict[tuple[int, int], str] = {}
    count = sum(len(indices) for _, indices in work)
    with ThreadPoolExecutor(threads) as pool, progress_bar("checking images", count) as advance:
        for (_, indices), found in zip(batches, pool.map(check, batches), strict=True):
            bad |= found
            advance(len(indices))
    return bad


def _problem(images: Checked, index: int) -> str | None:
    try:
        images.check(index)
    except UnreadableFile as error:
        return str(error)
    return None


def _check_share(
    source: str,
    split: str,
    images: Checked,
    indices: Sequence[int],
    lost: Sequence[int],
    class_names: Sequence[str],
    first_problem: str,
) -> None:
    present, damaged = (Counter(images.labels[i] for i in positions) for positions in (indices, lost))
    for label, count in damaged.items():
        if count > _TOLERATED_SHARE * present[label]:
            names = [images.name(i) for i in lost if images.labels[i] == label]
            raise DataError(
                f"{source}: {count} of the {present[label]} images of {class_names[label]} in {split} are damaged, which is more "
                f"than a tenth: {_some(names)} ({first_problem}). Fetch the images again, or remove the damaged ones "
                f"and run on what is left"
            )


def _warning(source: str, splits: Mapping[str, Chosen], damaged: Mapping[str, Sequence[str]]) -> str:
    counts = ", ".join(f"{len(names)} of {len(splits[split].indices)} in {split}" for split, names in damaged.items())
    # The same file twice where one split stands in for another.
    names = list(dict.fromkeys(name for names in damaged.values() for name in names))
    return f"{source}: damaged images are left out, {counts}: {_some(names)}. Fetch them again, or remove them"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


@contextmanager
def progress_bar(what: str, total: int) -> Generator[Callable[[int], None], None, None]:
    """Yield a function that advances a bar by so many parts of ``total``; on a terminal only, and where rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        yield _silent
        return
    if total == 0 or not sys.stderr.isatty():
        yield _silent
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _silent(count: int) -> None:
    """Draw nothing."""
