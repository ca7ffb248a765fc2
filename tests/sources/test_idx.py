"""MNIST and Fashion-MNIST from idx files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prunus.errors import DataError
from prunus.sources import load_data

TRAIN = np.random.RandomState(0).randint(0, 256, (20, 6, 5)).astype(np.uint8)
TEST = np.random.RandomState(1).randint(0, 256, (10, 6, 5)).astype(np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def place(folder: Path, packed: bool = False, **changes: bytes | None) -> Path:
    files = {
        "train-images-idx3-ubyte": idx(TRAIN),
        "train-labels-idx1-ubyte": idx(LABELS),
        "t10k-images-idx3-ubyte": idx(TEST),
        "t10k-labels-idx1-ubyte": idx(LABELS[:10][::-1]),
    }
    short = {"images": 0, "labels": 1, "test_images": 2, "test_labels": 3}
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, content) in enumerate(files.items()):
        changed = [value for key, value in changes.items() if short[key] == number]
        data = changed[0] if changed else content
        if data is not None:
            (folder / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("source", "inside"), [("mnist", ""), ("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_pixels_and_labels(tmp_path: Path, source: str, inside: str, packed: bool) -> None:
    place(tmp_path / inside, packed)
    data = load_data(f"{source}:{tmp_path}", mean=(0.0,), std=(1.0,), validation_fraction=0.5)
    assert data.input_shape == (1, 6, 5) and (len(data.train), len(data.validation), len(data.test)) == (10, 10, 10)
    assert data.class_counts == {"train": (1,) * 10, "validation": (1,) * 10, "test": (1,) * 10}
    for part in (data.train, data.validation):
        for position, index in enumerate(part.indices):
            image, label = part[position]
            assert torch.equal((image * 255).round(), torch.from_numpy(TRAIN[index]).float()[None]) and label == LABELS[index]
    assert [label for _, label in (data.test[i] for i in range(10))] == list(range(9, -1, -1))


def test_names_and_published_normalisation(tmp_path: Path) -> None:
    place(tmp_path)
    mnist, fashion = load_data(f"mnist:{tmp_path}"), load_data(f"fashion-mnist:{tmp_path}", augment="crop-flip", colour=0.2)
    assert (mnist.mean, mnist.std, mnist.class_names) == ((0.1307,), (0.3081,), tuple("0123456789"))
    assert (fashion.mean, fashion.std) == ((0.2860,), (0.3530,))
    assert fashion.class_names[0] == "T-shirt/top" and fashion.class_names[9] == "Ankle boot" and fashion.num_classes == 10
    assert fashion.train[0][0].shape == (1, 6, 5) and not torch.equal(fashion.train[0][0], fashion.train[0][0])
    assert load_data(f"mnist:{tmp_path}", image_size=8).test[0][0].shape == (1, 8, 8)


def test_missing_files_are_named(tmp_path: Path) -> None:
    place(tmp_path, labels=None, test_images=None)
    with pytest.raises(
        DataError,
        match=r"mnist:.* lacks the files train-labels-idx1-ubyte, t10k-images-idx3-ubyte \(looked for each, and with .gz, in .* "
        r"and .*MNIST/raw\): put them there",
    ):
        load_data(f"mnist:{tmp_path}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": idx(LABELS)},
            r"train-images-idx3-ubyte is no idx file of bytes in 3 dimensions: it begins with 00 00 08 01, not",
        ),
        (
            {"labels": b""},
            r"train-labels-idx1-ubyte is no idx file of bytes in 1 dimension: it begins with nothing, not 00 00 08 01",
        ),
        ({"images": bytes([0, 0, 8, 3, 0])}, r"train-images-idx3-ubyte is no idx file"),
        ({"images": b"\0\0\x0d\3" + idx(TRAIN)[4:]}, r"it begins with 00 00 0d 03, not 00 00 08 03: fetch it again"),
        ({"images": idx(TRAIN)[:-1]}, r"train-images-idx3-ubyte announces 20 x 6 x 5 = 600 bytes and holds 599: it is cut off"),
        ({"test_labels": idx(LABELS[:10]) + b"x"}, r"t10k-labels-idx1-ubyte announces 10 = 10 bytes and holds 11"),
        (
            {"labels": idx(LABELS[:19])},
            r"train-images.* has 20 images and .*train-labels.* 19 labels: they don't belong together",
        ),
        ({"labels": idx(LABELS + 1)}, r"train-labels-idx1-ubyte has the label 10, and fashion-mnist has 10 classes"),
        (
            {"test_images": idx(TEST[:, :5])},
            r"the training images are 6x5 pixels \(height x width\) and the test images 5x5: the",
        ),
        ({"test_images": idx(TEST[:0]), "test_labels": idx(LABELS[:0])}, r"t10k-images-idx3-ubyte holds no image"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, changes: dict[str, bytes], message: str) -> None:
    place(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        load_data(f"fashion-mnist:{tmp_path}")


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    path = place(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz can't be read \(EOFError: .*\): fetch it again"):
        load_data(f"mnist:{tmp_path}")
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz can't be read \(BadGzipFile: "):
        load_data(f"mnist:{tmp_path}")
