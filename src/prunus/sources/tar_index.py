"""Where the images of a tar shard lie, and of which class they are. Nothing is unpacked, and nothing but labels is read.

A shard is a tar file as the WebDataset library writes it: the members of one example lie one behind another and have the same
name up to the first dot: ``000017.jpg`` with ``000017.cls`` (a class index or a class name) or ``000017.json`` (with a
``label``).
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray

from prunus.errors import DataError
from prunus.files import DamagedFile, parse_json, write_atomically
from prunus.sources.archive import MOST_BYTES
from prunus.sources.image_files import SUFFIXES
from prunus.tensor_files import read_tensors, tensor_bytes

FORMAT = "prunus-tar-index/1"
_KEY = "prunus"
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # WebDataset's rule for what belongs together
_PRIVATE = re.compile(r"__[^/]*__($|/)")
_PICKLES = ("pyd", "pickle", "pkl", "pth", "pt")
_MOST_LABEL_BYTES = 2**20
_BLOCK = 512  # of a tar file
WHOLE, DAMAGED = 1, 2  # and 0: not looked at


@dataclass(frozen=True, eq=False)
class TarIndex:
    """The examples of one shard, in its order: arrays of shape (n,). ``labels`` are positions in ``classes``, the label texts;
    names are a text of their own, ``name_ends`` where each ends; ``verdicts`` say which images have been found whole."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    name_ends: NDArray[np.int64]
    names: NDArray[np.uint8]
    verdicts: NDArray[np.uint8]
    classes: tuple[str, ...]

    def name(self, index: int) -> str:
        """The member's name."""
        start = int(self.name_ends[index - 1]) if index else 0
        return bytes(self.names[start : int(self.name_ends[index])]).decode("utf-8", "replace")


def read_index(shard: Path) -> TarIndex:
    """The index of a shard: the one that is kept beside it, or one made now by going through the shard.

    Raises:
        DataError: the shard is no whole tar file, or an example in it lacks an image or a label.
    """
    stored = _stored(shard)
    if stored is not None:
        return stored
    index = _scan(shard)
    write_index(shard, index)
    return index


def index_path(shard: Path) -> Path:
    """Where the index is kept."""
    return shard.with_name(f"{shard.name}.index")


def write_index(shard: Path, index: TarIndex) -> None:
    """Keep the index beside the shard; where that can't be written, the shard is gone through again the next time."""
    arrays = {name: torch.from_numpy(getattr(index, name)) for name in _ARRAYS}
    with suppress(OSError):
        write_atomically(index_path(shard), tensor_bytes(arrays, _KEY, {**_identity(shard), "classes": list(index.classes)}))


_BYTES = ("names", "verdicts")
_ARRAYS = ("offsets", "sizes", "labels", "name_ends", "names", "verdicts")


def _identity(shard: Path) -> dict[str, Any]:
    about = shard.stat()
    return {"format": FORMAT, "bytes": about.st_size, "changed": about.st_mtime_ns}


def _stored(shard: Path) -> TarIndex | None:
    """The index beside the shard, if it is whole and of this very file."""
    try:
        tensors, header = read_tensors(index_path(shard), _KEY)
        if header is None or any(header.get(key) != value for key, value in _identity(shard).items()):
            return None
        index = TarIndex(**{name: tensors[name].numpy() for name in _ARRAYS}, classes=tuple(map(str, header["classes"])))
    except (OSError, DamagedFile, KeyError, TypeError):
        return None
    return index if _fits(index, shard.stat().st_size) else None


def _fits(index: TarIndex, size: int) -> bool:
    """Whether the index can be used without looking at it again: it may come with files from anywhere."""
    arrays = [getattr(index, name) for name in _ARRAYS]
    if any(
        array.ndim != 1 or array.dtype != (np.uint8 if name in _BYTES else np.int64)
        for name, array in zip(_ARRAYS, arrays, strict=True)
    ):
        return False
    if len({len(array) for array in arrays if array is not index.names}) != 1 or len(index.offsets) == 0:
        return False
    inside = (
        index.offsets.min() >= 0 and index.offsets.max() <= size and index.sizes.min() >= 0 and index.sizes.max() <= MOST_BYTES
    )
    inside = inside and (index.offsets + index.sizes).max() <= size
    named = index.name_ends[0] >= 0 and (np.diff(index.name_ends) >= 0).all() and index.name_ends[-1] <= len(index.names)
    return bool(inside and named and index.labels.min() >= 0 and index.labels.max() < len(index.classes))


def _scan(shard: Path) -> TarIndex:
    rows: list[tuple[int, int, int]] = []
    names: list[bytes] = []
    classes: dict[str, int] = {}
    with shard.open("rb") as file:
        for key, members in _examples(shard, file):
            image = _image(shard, key, members)
            text = _label(shard, file, key, members)
            rows.append((image.offset_data, image.size, classes.setdefault(text, len(classes))))
            names.append(image.name.encode("utf-8", "replace"))
    if not rows:
        raise DataError(f"the shard {shard} holds no examples: leave it out, or write it again")
    offsets, sizes, labels = np.array(rows, dtype=np.int64).T.copy()
    return TarIndex(
        offsets,
        sizes,
        labels,
        np.cumsum([len(name) for name in names], dtype=np.int64),
        np.frombuffer(b"".join(names), dtype=np.uint8).copy(),
        np.zeros(len(rows), dtype=np.uint8),
        tuple(classes),
    )


def _examples(shard: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The members of every example by their extension, lower case."""
    key, members = "", dict[str, tarfile.TarInfo]()
    for member in _members(shard, file):
        matched = _NAME.match(member.name)
        if matched is None or _PRIVATE.match(member.name):
            continue
        if matched[1] != key and members:
            yield key, members
            members = {}
        key, extension = matched[1], matched[2].lower()
        if extension in members:
            raise DataError(f"the shard {shard} has {member.name} twice: write it again, with every example once")
        members[extension] = member
    if members:
        yield key, members


def _members(shard: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The files in a tar file; whatever is wrong with it is a `DataError`."""
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it has nothing to close but ``file``
        last = -1
        while (member := tar.next()) is not None:
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - or they would all be kept
            if member.offset_data <= last or member.size < 0:
                raise DamagedFile(f"{member.name!r} goes back to what was read before")
            last = member.offset_data
            if _climbs(member.name):
                raise DamagedFile(f"the name {member.name!r} leads out of the shard")
            if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None:
                if member.size > MOST_BYTES:
                    raise DamagedFile(f"{member.name!r} has more than {MOST_BYTES} bytes")
                yield member
        file.seek(tar.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise DamagedFile("it breaks off without the mark of its end, or holds something else there")
    except DataError:
        raise
    except Exception as error:  # tarfile fails in many ways on damaged files
        compressed = " (it seems to be compressed: unpack .tar.gz to .tar)" if _compressed(file) else ""
        raise DataError(f"the shard {shard} is no whole tar file: {error}{compressed}. Fetch or write it again") from error


def _climbs(name: str) -> bool:
    return name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name)


def _compressed(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")


def _image(shard: Path, key: str, members: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    found = [member for extension, member in members.items() if f".{extension}" in SUFFIXES]
    if len(found) != 1:
        what = f"has {len(found)} images" if found else f"has no image, only {', '.join(members)}"
        raise DataError(f"the example {key} of the shard {shard} {what}: every example is one image with its .cls or .json")
    return found[0]


def _label(shard: Path, file: BinaryIO, key: str, members: dict[str, tarfile.TarInfo]) -> str:
    """The label of an example as a text."""
    where = f"the example {key} of the shard {shard}"
    member = members.get("cls") or members.get("json")
    if member is None:
        pickled = [extension for extension in members if extension in _PICKLES]
        advice = f" ({pickled[0]} is never read: it may run code)" if pickled else ""
        raise DataError(f"{where} has no label{advice}: write a .cls file with the class index or name, or .json with a label")
    if member.size > _MOST_LABEL_BYTES:
        raise DataError(f"{where} has a label file of {member.size} bytes: it holds a class index or a class name")
    position = file.tell()
    file.seek(member.offset_data)
    content = file.read(member.size)
    file.seek(position)
    try:
        value: Any = content.decode("utf-8") if "cls" in members else _from_json(content)
    except (UnicodeDecodeError, DamagedFile) as error:
        raise DataError(f"{where} has a label that can't be read: {error}") from None
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise DataError(f"{where} has the label {value!r}: it must be a class index or a class name")
    return str(value).strip()


def _from_json(content: bytes) -> Any:
    tree = parse_json(content)
    if not isinstance(tree, dict) or "label" not in tree:
        raise DamagedFile("the JSON has no label")
    return cast("dict[str, Any]", tree)["label"]
