"""ELPV: electroluminescence pictures of solar cells, whole and broken (Buerhop-Claus et al. 2018, Deitsch et al. 2019)."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from prunus.errors import DataError
from prunus.sources.archive import Folder, Zip, open_archive
from prunus.sources.bundle import Splits
from prunus.sources.folder import IMAGENET_MEAN, IMAGENET_STD
from prunus.sources.image_files import StoredFiles, first_size, look_at_sizes
from prunus.sources.splits import SPLIT_SEED, draw_share

_PACKAGE, _FOLDER = "elpv-dataset", "elpv_dataset/data"
_LABELS = "labels.csv"
_MOST_BYTES = 2**21
_TEST_SHARE = 0.25
CLASS_NAMES = ("functional", "defective")
_NOTE = (
    "ELPV is licensed CC BY-NC-SA 4.0: neither it nor what is derived from it may be used commercially; cells with a defect "
    "probability of 0.5 or more are defective; the data come without a split: a quarter of every defect probability and cell "
    "type, drawn with seed 0, is the test split"
)


@dataclass(frozen=True)
class _Cell:
    name: str
    probability: float
    kind: str


def elpv(path: str, *, any_size: bool, check_images: bool) -> Splits:
    """Functional and defective solar cells as RGB, a fixed quarter of them for the test.

    Args:
        path: a folder or .zip with ``labels.csv`` and the images that it names; empty: the installed package elpv-dataset.
        any_size: images are resized later, so their sizes may differ.
        check_images: damaged images will be left out, so they don't stop the reading here.

    Raises:
        DataError: the package or the labels are missing, a row can't be read, images are missing, or there is one class only.
    """
    archive = open_archive(path or _installed())
    cells = _cells(archive)
    labels = [int(cell.probability >= 0.5) for cell in cells]
    strata = {stratum: number for number, stratum in enumerate(sorted({(cell.probability, cell.kind) for cell in cells}))}
    rest, test = draw_share([strata[cell.probability, cell.kind] for cell in cells], _TEST_SHARE, SPLIT_SEED)
    for what, positions in (("training", rest), ("test", test)):
        if len({labels[i] for i in positions}) < 2:
            raise DataError(f"{_LABELS} in {archive.path} has too few cells for {what} images of both classes")
    size = first_size(archive, [cells[i].name for i in rest], skip_damaged=check_images)
    stored = [
        StoredFiles(archive, [cells[i].name for i in positions], [labels[i] for i in positions], None if any_size else size)
        for positions in (rest, test)
    ]
    for images in [] if check_images else stored:
        look_at_sizes(images)
    return Splits(stored[0], None, stored[1], CLASS_NAMES, (3, *size), IMAGENET_MEAN, IMAGENET_STD, (_NOTE,))


def _installed() -> Path:
    """The folder inside the installed package; its code is not imported."""
    try:
        return Path(str(importlib.metadata.distribution(_PACKAGE).locate_file(_FOLDER)))
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"elpv needs the pictures of the package {_PACKAGE}, which is not installed: pip install --no-deps {_PACKAGE} "
            f"(91 MB; licence CC BY-NC-SA 4.0: non-commercial use only), or name a folder with {_LABELS} as elpv:PATH"
        ) from None


def _cells(archive: Folder | Zip) -> list[_Cell]:
    """The rows ``IMAGE PROBABILITY TYPE`` of labels.csv (columns parted by spaces, whatever the suffix says)."""
    present = set(archive.names())
    if _LABELS not in present:
        raise DataError(f"there is no {_LABELS} in {archive.path}: elpv needs the folder that holds it, with its images/")
    where = f"{_LABELS} in {archive.path}"
    content = archive.read(_LABELS)
    if len(content) > _MOST_BYTES:
        raise DataError(f"{where} has more than {_MOST_BYTES} bytes, ten times the published one: fetch the data set again")
    lines = content.decode("utf-8", errors="replace").splitlines()
    cells = [_cell(line, f"line {number} of {where}") for number, line in enumerate(lines, 1) if line.strip()]
    if not cells:
        raise DataError(f"{where} has no rows: fetch the data set again")
    lost = [cell.name for cell in cells if cell.name not in present]
    if lost:
        raise DataError(f"{where} names {len(lost)} images that are not there, the first {lost[0]}: fetch the data set again")
    return cells


def _cell(line: str, where: str) -> _Cell:
    try:
        name, probability, kind = line.split()
        cell = _Cell(name, float(probability), kind)
    except ValueError:
        raise DataError(f"{where} is {line.strip()[:80]!r}, not IMAGE PROBABILITY TYPE: fetch the data set again") from None
    if not 0 <= cell.probability <= 1:
        raise DataError(f"{where} has the defect probability {probability}, which is not in 0..1: fetch the data set again")
    return cell
