"""The real data sets, where they are: counts, classes, and pixels that make sense."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

from prunus.sources import DataBundle, load_data, make_loader

pytestmark = pytest.mark.data


def sizes(data: DataBundle) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


def test_cats_and_dogs(data_folder: Path) -> None:
    source = f"folder:{data_folder / 'data' / 'cats_dogs.zip'}"
    data = load_data(source, image_size=64, augment="resized-crop-flip", colour=0.2)
    assert data.class_counts == {"train": (1000, 998), "validation": (200, 200), "test": (400, 400)}
    assert data.class_names == ("cat", "dog") and data.input_shape == (3, 64, 64)
    assert (data.damaged, data.notes) == ({}, ())
    few = load_data(source, image_size=64, train_limit=100, check_images=False)
    images, labels = next(iter(make_loader(few.train, batch_size=100, shuffle=True)))
    assert images.shape == (100, 3, 64, 64) and labels.sum() == 50
    assert abs(images.mean().item()) < 1


def test_cifar10_as_jpeg(data_folder: Path) -> None:
    data = load_data(f"cifar10:{data_folder / 'data' / 'cifar10_jpeg.zip'}", train_limit=2000, check_images=False)
    assert sizes(data) == (2000, 5000, 10_000)
    assert data.class_counts["test"] == (1000,) * 10 and data.class_counts["train"] == (200,) * 10
    assert data.class_names[0] == "airplane" and data.class_names[9] == "truck" and data.input_shape == (3, 32, 32)
    images, _ = next(iter(make_loader(data.train, batch_size=2000, shuffle=False)))
    assert images.mean().item() == pytest.approx(0, abs=0.05) and images.std().item() == pytest.approx(1, abs=0.05)


def test_solar_cells() -> None:
    try:
        importlib.metadata.distribution("elpv-dataset")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package elpv-dataset is not installed")
    data = load_data("elpv", check_images=False)
    assert sum(sizes(data)) == 2624 and data.input_shape == (3, 300, 300)
    assert load_data("elpv", train_limit=20).damaged == {}
    assert [sum(counts[i] for counts in data.class_counts.values()) for i in range(2)] == [1803, 821]
    assert sizes(data)[2] == pytest.approx(2624 / 4, abs=4)
    assert data.imbalance == pytest.approx(1803 / 821, rel=0.02)


def test_fashion_mnist() -> None:
    folder = Path(os.environ.get("PRUNUS_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))  # Debian's dataset-fashion-mnist
    if not folder.is_dir():
        pytest.skip(f"no Fashion-MNIST at {folder}; name a folder with PRUNUS_FASHION_MNIST")
    data = load_data(f"fashion-mnist:{folder}")
    assert sizes(data) == (54_000, 6000, 10_000)
    assert set(data.class_counts["train"]) == {5400} and set(data.class_counts["test"]) == {1000}
    images, labels = next(iter(make_loader(data.test, batch_size=2000, shuffle=False)))
    assert images.mean().item() == pytest.approx(0, abs=0.05) and images.std().item() == pytest.approx(1, abs=0.05)
    assert [data.class_names[label] for label in labels[:3]] == ["Ankle boot", "Pullover", "Trouser"]
