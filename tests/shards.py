"""Tiny pictures in tar shards, and the same ones in folders: red tells the class, the rest is noise."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def png(label: int, number: int, size: int = 8) -> bytes:
    pixels = np.random.RandomState(1000 * label + number).randint(0, 100, (size, size, 3), dtype=np.uint8)
    pixels[..., 0] += 50 * label
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def examples(count: int, first: int = 0, classes: int = 3) -> list[tuple[str, int, bytes]]:
    """Key, label and picture of so many images, the classes in turn; other numbers are other pictures."""
    return [(f"{n:06}", n % classes, png(n % classes, n)) for n in range(first, first + count)]


def members(rows: Sequence[tuple[str, int, bytes]]) -> list[tuple[str, bytes]]:
    return [part for key, label, data in rows for part in ((f"{key}.png", data), (f"{key}.cls", str(label).encode()))]


def write_shards(folder: Path, sizes: Mapping[str, Sequence[int]]) -> dict[str, list[tuple[str, int, bytes]]]:
    """``train-00.tar`` and so on with so many images each; returns the images by split, in the order of the shards."""
    written: dict[str, list[tuple[str, int, bytes]]] = {}
    first = 0
    for split, counts in sizes.items():
        written[split] = []
        for shard, count in enumerate(counts):
            rows = examples(count, first)
            first += count
            write_tar(folder / f"{split}-{shard:02}.tar", members(rows))
            written[split] += rows
    return written


def write_folder(folder: Path, written: Mapping[str, Sequence[tuple[str, int, bytes]]]) -> None:
    for split, rows in written.items():
        for key, label, data in rows:
            path = folder / split / str(label) / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
