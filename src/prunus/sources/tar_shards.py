"""Images in tar shards, as the WebDataset library writes them: ``wds:PATH``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunus.errors import DataError
from prunus.sources.archive import UnreadableFile
from prunus.sources.bundle import Splits
from prunus.sources.file_patterns import split_files
from prunus.sources.image_check import progress_bar
from prunus.sources.streamed import StreamedImages, streamed_splits
from prunus.sources.tar_index import DAMAGED, WHOLE, TarIndex, read_index, write_index

_CLASS_FILES = ("classes.txt", "classnames.txt")
_NUMBER = re.compile(r"^\d{1,6}$")


class TarImages(StreamedImages):
    """The images of tar shards, read where they lie. Every read opens the shard: processes and threads share nothing."""

    def __init__(self, shards: Sequence[Path], indexes: Sequence[TarIndex], labels: NDArray[np.int64], place: str) -> None:
        self.shards, self.indexes, self.labels, self.place = list(shards), list(indexes), labels, place
        self._checked = set[int]()  # shards of which something new is known
        self.starts = np.cumsum([0, *(len(index.offsets) for index in indexes)], dtype=np.int64)

    def name(self, index: int) -> str:
        """``shard.tar/member.jpg``."""
        shard, inside = self._find(index)
        return f"{self.shards[shard].name}/{self.indexes[shard].name(inside)}"

    def read(self, index: int) -> bytes:
        """The encoded image."""
        shard, inside = self._find(index)
        of_shard = self.indexes[shard]
        size = int(of_shard.sizes[inside])
        try:
            with self.shards[shard].open("rb", buffering=0) as file:
                file.seek(int(of_shard.offsets[inside]))
                data = file.read(size)
        except OSError as error:
            raise UnreadableFile(f"{self.name(index)} in {self.place} can't be read: {error}") from error
        if len(data) != size:
            raise UnreadableFile(f"{self.name(index)} in {self.place} breaks off: its shard has been cut since it was looked at")
        return data

    def check(self, index: int) -> None:
        """Decode the image, unless an earlier run has; raises like `StreamedImages.check`."""
        shard, inside = self._find(index)
        verdicts = self.indexes[shard].verdicts
        if verdicts[inside] == WHOLE and self.size is None:
            return
        self._checked.add(shard)
        try:
            super().check(index)
        except UnreadableFile:
            verdicts[inside] = DAMAGED
            raise
        verdicts[inside] = WHOLE

    def remember(self) -> None:
        """Keep in the index beside every shard which images are whole."""
        for shard in self._checked:
            write_index(self.shards[shard], self.indexes[shard])
        self._checked.clear()

    def _find(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])


def tar_shards(text: str, source: str, *, any_size: bool, check_images: bool) -> Splits:
    """Read the shards that ``text`` names, as `split_files` takes it.

    A label is the text of ``.cls``, or ``label`` of ``.json``. If all of the training images' are numbers, they are class
    indices, and the classes' names are the lines of ``classes.txt`` or ``classnames.txt`` beside the first shard, else the
    numbers; otherwise they are class names, in sorted order.

    The index of every shard is kept beside it (``NAME.tar.index``) where that can be written.

    Raises:
        DataError: no shards, one that isn't a whole tar file, examples without image or label, labels that don't fit.
    """
    files = split_files(text, source, (".tar",))
    indexes: dict[str, list[TarIndex]] = {}
    with progress_bar("reading shards", sum(map(len, files.values()))) as advance:
        for split, shards in files.items():
            indexes[split] = []
            for shard in shards:
                indexes[split].append(read_index(shard))
                advance(1)
    texts = sorted({text for index in indexes["train"] for text in index.classes})
    names, number_of = _classes(texts, files["train"][0].parent, source)
    images = {split: _images(split, files[split], found, number_of, source) for split, found in indexes.items()}
    return streamed_splits(images, names, any_size=any_size, check_images=check_images)


def _classes(texts: list[str], folder: Path, source: str) -> tuple[tuple[str, ...], Callable[[str], int | None]]:
    """Names of the classes; and what gives the class index of a label text, None for one that is none of them."""
    numbered = all(_NUMBER.match(text) for text in texts)
    names = class_names(max(map(int, texts)) + 1, folder, source) if numbered else tuple(texts)
    if len(names) < 2:
        raise DataError(f"{source} has the one class {texts[0]!r}: a classifier needs at least two")
    if not numbered:
        return names, {text: number for number, text in enumerate(texts)}.get
    return names, lambda text: int(text) if _NUMBER.match(text) and int(text) < len(names) else None


def class_names(count: int, folder: Path, source: str) -> tuple[str, ...]:
    """The lines of the file of class names in ``folder``, or the indices as texts.

    Raises:
        DataError: the file has fewer names than the labels need, or can't be read.
    """
    for file in (folder / name for name in _CLASS_FILES):
        if file.is_file():
            try:
                lines = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{source}: the class names in {file} can't be read: {error}") from None
            if len(lines) < count:
                raise DataError(f"{source}: {file} names {len(lines)} classes, and labels go up to {count - 1}: add the others")
            return lines
    return tuple(str(number) for number in range(count))


def _images(
    split: str,
    shards: Sequence[Path],
    indexes: Sequence[TarIndex],
    number_of: Callable[[str], int | None],
    source: str,
) -> TarImages:
    labels: list[NDArray[np.int64]] = []
    for shard, index in zip(shards, indexes, strict=True):
        numbers = [number_of(text) for text in index.classes]
        if None in numbers:
            raise DataError(
                f"{source}: the shard {shard} of {split} has the label {index.classes[numbers.index(None)]!r}, which is none of "
                "the training images' classes: every split needs images of the same classes"
            )
        labels.append(np.array(numbers, dtype=np.int64)[index.labels])
    return TarImages(shards, indexes, np.concatenate(labels), source)
