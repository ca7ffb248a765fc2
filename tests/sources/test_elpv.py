"""Solar cells from a folder with labels.csv, and from the installed package."""

from __future__ import annotations

import importlib.metadata
import io
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from prunus.errors import DataError, PrunusWarning
from prunus.sources import load_data

STRATA = [
    ("0.0", "mono", 16),
    ("0.0", "poly", 8),
    ("0.3333333333333333", "poly", 4),
    ("0.6666666666666666", "mono", 4),
    ("1.0", "poly", 8),
]
ROWS = [(f"images/cell{p[:3]}{kind}{i}.png", p, kind) for p, kind, count in STRATA for i in range(count)]


def png(grey: int, size: int = 5) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), grey).save(buffer, "PNG")
    return buffer.getvalue()


def place(folder: Path, rows: list[tuple[str, str, str]] = ROWS, **changes: bytes) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "labels.csv").write_text("\n".join(f"{name}  {p:20s} {kind}" for name, p, kind in rows) + "\n")
    for number, (name, _, _) in enumerate(rows):
        (folder / name).write_bytes(png(number))
    return folder


def test_pixels_labels_and_split(tmp_path: Path) -> None:
    data = load_data(f"elpv:{place(tmp_path)}", mean=(0.0,) * 3, std=(1.0,) * 3, validation_fraction=0.2)
    assert data.class_names == ("functional", "defective") and data.input_shape == (3, 5, 5)
    assert data.class_counts == {"train": (17, 7), "validation": (4, 2), "test": (7, 3)}
    names = {
        part: [getattr(data, part).images.names[i] for i in getattr(data, part).indices]
        for part in ("train", "validation", "test")
    }
    assert Counter(name for part in names.values() for name in part) == Counter(name for name, _, _ in ROWS)
    strata = {name: (p, kind) for name, p, kind in ROWS}
    assert Counter(strata[name] for name in names["test"]) == {(p, kind): count // 4 for p, kind, count in STRATA}
    order = [name for name, _, _ in ROWS]
    for part in names:
        for position, name in enumerate(names[part]):
            image, label = getattr(data, part)[position]
            assert torch.allclose(image, torch.full((3, 5, 5), order.index(name) / 255))
            assert label == (float(strata[name][0]) >= 0.5)


def test_split_is_fixed_and_told_with_the_licence(tmp_path: Path) -> None:
    source = f"elpv:{place(tmp_path)}"
    data, other = load_data(source, seed=0), load_data(source, seed=1)
    assert data.test.images.names == other.test.images.names and data.train.indices == other.train.indices
    # Drawn once and for all: results on another split could not be compared.
    drawn = ["mono1", "mono6", "mono8", "mono9", "poly2", "poly5", "poly2", "mono2", "poly1", "poly4"]
    assert [name.removesuffix(".png")[len("images/cell0.0") :] for name in data.test.images.names] == drawn
    assert data.mean == (0.485, 0.456, 0.406)
    assert "CC BY-NC-SA 4.0: neither it nor what is derived from it may be used commercially" in data.notes[0]
    assert "a quarter of every defect probability and cell type, drawn with seed 0, is the test split" in data.notes[0]
    assert data.notes[1].startswith(
        f"defective has {data.imbalance:.1f}x fewer training images than functional: look at balanced accuracy"
    )
    functional, defective = data.class_counts["train"]
    assert data.imbalance == functional / defective > 2


def test_zip_is_read_and_damaged_cells_are_left_out(tmp_path: Path) -> None:
    rows = [(f"{p}{i}.png", p, "mono") for p in ("0.0", "1.0") for i in range(60)]
    folder = place(tmp_path / "cells", rows)
    (folder / "1.07.png").write_bytes(png(1)[:-30])
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
    with pytest.warns(
        PrunusWarning, match=r"cells.zip: damaged images are left out, 1 of \d+ in \w+: 1.07.png\. Fetch them again"
    ):
        data = load_data(f"elpv:{tmp_path / 'cells.zip'}")
    assert sum(sum(counts) for counts in data.class_counts.values()) == 119
    with pytest.raises(DataError, match=r"1.07.png in .* is damaged or no image"):
        whole = load_data(f"elpv:{tmp_path / 'cells.zip'}", check_images=False)
        for part in (whole.train, whole.validation, whole.test):
            [part[i] for i in range(len(part))]


def test_images_of_different_sizes_need_an_image_size(tmp_path: Path) -> None:
    place(tmp_path)
    (tmp_path / ROWS[3][0]).write_bytes(png(3, size=6))
    for check in (True, False):
        with pytest.raises(DataError, match=r"images have different sizes: images/cell0.0mono\d.png is .*: give an image_size"):
            load_data(f"elpv:{tmp_path}", check_images=check)
    assert load_data(f"elpv:{tmp_path}", image_size=4).input_shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/x.png 1.0", r"line 41 of labels.csv in .* is 'images/x.png 1.0', not IMAGE PROBABILITY TYPE: fetch"),
        ("images/x.png broken mono", r"line 41 of labels.csv in .* is 'images/x.png broken mono', not IMAGE PROBABILITY TYPE"),
        ("images/x.png 1.5 mono", r"line 41 of labels.csv in .* has the defect probability 1.5, which is not in 0..1"),
        ("images/x.png nan mono", r"line 41 of labels.csv in .* has the defect probability nan, which is not in 0..1"),
        ("images/x.png 1.0 mono", r"labels.csv in .* names 1 images that are not there, the first images/x.png"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, line: str, message: str) -> None:
    path = place(tmp_path) / "labels.csv"
    path.write_text(path.read_text() + line)
    with pytest.raises(DataError, match=message):
        load_data(f"elpv:{tmp_path}")


def test_folders_without_labels_or_with_one_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no labels.csv in .*: elpv needs the folder that holds it, with its images/"):
        load_data(f"elpv:{tmp_path}")
    place(tmp_path, ROWS[:28])
    with pytest.raises(DataError, match=r"labels.csv in .* has too few cells for training images of both classes"):
        load_data(f"elpv:{tmp_path}")


def test_labels_without_a_row(tmp_path: Path) -> None:
    """Found by damaged files: an empty labels.csv was an error of the split."""
    path = place(tmp_path) / "labels.csv"
    path.write_text("\n  \n")
    with pytest.raises(DataError, match=r"labels.csv in .* has no rows: fetch the data set again"):
        load_data(f"elpv:{path.parent}")


def test_the_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path / "elpv_dataset" / "data")
    (tmp_path / "elpv_dataset" / "__init__.py").write_text("raise ImportError('must not be imported')")
    (tmp_path / "elpv_dataset-1.0.dist-info").mkdir()
    (tmp_path / "elpv_dataset-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: elpv-dataset\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = load_data("elpv")
    assert sum(sum(counts) for counts in data.class_counts.values()) == 40


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str) -> object:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", lacking)
    with pytest.raises(
        DataError,
        match=r"package elpv-dataset, which is not installed: pip install --no-deps elpv-dataset \(91 MB; licence CC BY-NC-SA 4.0"
        r": non-commercial use only\), or name a folder with labels.csv as elpv:PATH",
    ):
        load_data("elpv")
