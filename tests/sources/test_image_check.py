"""Damaged images: found before training, left out, counted and named."""

from __future__ import annotations

import io
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress

from prunus.errors import DataError, PrunusWarning
from prunus.sources import image_check, load_data
from prunus.sources.archive import Folder, UnreadableFile, Zip
from prunus.sources.image_files import StoredFiles


def picture(kind: str = "JPEG", size: tuple[int, int] = (96, 80), number: int = 0) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.RandomState(number).randint(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def layout(**splits: int) -> dict[str, bytes]:
    """So many whole pictures of cat and dog in each split."""
    whole = picture()
    return {f"{s}/{c}/{i:02}.jpg": whole for s, count in splits.items() for c in ("cat", "dog") for i in range(count)}


def place(root: Path, content: dict[str, bytes], kind: str = "zip") -> str:
    if kind == "zip":
        with zipfile.ZipFile(root / "pets.zip", "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return f"folder:{root / 'pets.zip'}"
    for name, data in content.items():
        (root / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pets" / name).write_bytes(data)
    return f"folder:{root / 'pets'}"


def test_whole_images_pass_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = load_data(place(tmp_path, layout(train=3, validation=1, test=1)))
    assert data.damaged == {} and data.class_counts == {"train": (3, 3), "validation": (1, 1), "test": (1, 1)}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["zip", "folder"])
@pytest.mark.parametrize("size", [(96, 80), (20, 20)])  # several threads, one thread
def test_damaged_images_are_left_out_counted_and_named(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    content = {name: picture(size=size) for name in layout(train=20, validation=10, test=10)}
    content["train/cat/03.jpg"] = content["train/cat/03.jpg"][:-40]
    content["train/dog/19.jpg"] = b""
    content["test/dog/07.jpg"] = b"no image"
    source = place(tmp_path, content, kind)
    with pytest.warns(PrunusWarning) as caught:
        data = load_data(source)
    assert [str(w.message) for w in caught] == [
        f"{source}: damaged images are left out, 2 of 40 in train, 1 of 20 in test: train/cat/03.jpg, train/dog/19.jpg, "
        f"test/dog/07.jpg. Fetch them again, or remove them"
    ]
    assert caught[0].filename == __file__
    assert data.damaged == {"train": ("train/cat/03.jpg", "train/dog/19.jpg"), "test": ("test/dog/07.jpg",)}
    assert data.class_counts == {"train": (19, 19), "validation": (10, 10), "test": (10, 9)}
    assert data.calibration.indices == data.train.indices == [i for i in range(40) if i not in (3, 39)]
    for part in (data.train, data.validation, data.test, data.calibration):
        assert {part[i][0].shape for i in range(len(part))} == {(3, size[1], size[0])}


def test_only_the_first_five_are_named(tmp_path: Path) -> None:
    content = layout(train=70, test=1) | {f"train/cat/{i:02}.jpg": b"x" for i in range(6)}
    with pytest.warns(PrunusWarning, match=r"04\.jpg, \.\.\.\. Fetch") as caught:
        data = load_data(place(tmp_path, content), validation_fraction=0.02)
    assert "05.jpg" not in str(caught[0].message)
    assert sum(len(names) for names in data.damaged.values()) == 6


def test_images_that_will_not_be_used_are_not_looked_at(tmp_path: Path) -> None:
    content = layout(train=8, validation=1, test=1)
    source = place(tmp_path, content)
    used = {load_data(source, train_limit=4).train.images.names[i] for i in load_data(source, train_limit=4).train.indices}
    unused = {name: b"x" for name in content if name.startswith("train") and name not in used}
    source = place(tmp_path, content | unused)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_data(source, train_limit=4).damaged == {}


def test_validation_that_stands_in_for_the_test_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    whole = StoredFiles.check
    monkeypatch.setattr(StoredFiles, "check", lambda self, index: (checked.append(index), whole(self, index))[1])
    source = place(tmp_path, layout(train=5, validation=11) | {"validation/cat/02.jpg": b"x"})
    with pytest.warns(PrunusWarning, match=r"1 of 22 in validation, 1 of 22 in test: validation/cat/02.jpg\. Fetch"):
        data = load_data(source)
    assert len(checked) == 10 + 22
    assert data.damaged == {"validation": ("validation/cat/02.jpg",), "test": ("validation/cat/02.jpg",)}


def test_more_than_a_tenth_of_a_class_is_an_error(tmp_path: Path) -> None:
    content = layout(train=20, validation=5, test=5)
    bad = {f"train/dog/{i:02}.jpg": b"x" for i in (4, 9, 11)}
    with pytest.warns(PrunusWarning, match="2 of 40 in train"):  # a tenth
        load_data(place(tmp_path, content | dict(list(bad.items())[:2])))
    with pytest.raises(
        DataError,
        match=r"pets.zip: 3 of the 20 images of dog in train are damaged, which is more than a tenth: train/dog/04.jpg, "
        r"train/dog/09.jpg, train/dog/11.jpg \(train/dog/04.jpg in .* is damaged or no image \(UnidentifiedImageError.*"
        r"Fetch the images again, or remove the damaged ones",
    ):
        load_data(place(tmp_path, content | bad))


def test_a_class_that_is_all_damaged_is_an_error(tmp_path: Path) -> None:
    content = layout(train=20, validation=1, test=1)
    with pytest.raises(DataError, match=r"1 of the 1 images of cat in test are damaged"):
        load_data(place(tmp_path, content | {"test/cat/00.jpg": b"x"}))
    everything = {name: b"x" for name in content}
    with pytest.raises(DataError, match=r"all of the 40 training images in .*pets.zip are damaged, e.g. train/cat/00.jpg: fetch"):
        load_data(place(tmp_path, everything))


def test_the_first_image_may_be_damaged(tmp_path: Path) -> None:
    content = layout(train=20, validation=1, test=1) | {"train/cat/00.jpg": b"x"}
    source = place(tmp_path, content)
    with pytest.warns(PrunusWarning, match=r"1 of 40 in train: train/cat/00.jpg"):
        assert load_data(source).input_shape == (3, 80, 96)
    with pytest.raises(DataError, match=r"train/cat/00.jpg in .* is damaged or no image .*: mend or remove it"):
        load_data(source, check_images=False)


def test_damaged_members_of_a_zip_are_left_out(tmp_path: Path) -> None:
    source = place(tmp_path, layout(train=20, validation=1, test=1))
    path = tmp_path / "pets.zip"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        content[archive.getinfo("train/dog/02.jpg").header_offset + 900] ^= 0xFF
    path.write_bytes(content)
    with pytest.warns(PrunusWarning, match=r"1 of 40 in train: train/dog/02.jpg"):
        load_data(source)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "progressive"])
def test_the_check_agrees_with_loading(tmp_path: Path, kind: str) -> None:
    """Cut off anywhere, an image passes the quick check exactly if it can be loaded."""
    buffer = io.BytesIO()
    picture_of = Image.open(io.BytesIO(picture("PNG", (40, 40))))
    picture_of.save(buffer, "JPEG" if kind == "progressive" else kind, **({"progressive": True} if kind == "progressive" else {}))
    data = buffer.getvalue()
    cuts = sorted({*range(0, len(data), max(len(data) // 40, 1)), *range(len(data) - 4, len(data) + 1)})
    for cut in cuts:
        (tmp_path / f"{cut}.{kind}").write_bytes(data[:cut])
    images = StoredFiles(Folder(tmp_path), [f"{cut}.{kind}" for cut in cuts], [0] * len(cuts), None)

    def passes(method: str, index: int) -> bool:
        try:
            getattr(images, method)(index)
        except UnreadableFile:
            return False
        return True

    verdicts = [passes("check", i) for i in range(len(cuts))]
    assert verdicts == [passes("load", i) for i in range(len(cuts))]
    assert verdicts[-1] and not any(verdicts[: len(cuts) // 2])


def test_a_bar_is_drawn_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advanced: list[float] = []
    monkeypatch.setattr(Progress, "advance", lambda self, task, count: advanced.append(count))
    source = place(tmp_path, layout(train=50, validation=1, test=1))
    load_data(source)
    assert advanced == []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load_data(source)
    assert advanced == [64, 36, 2, 2]


@pytest.mark.parametrize(("size", "threads"), [((64, 64), 1), ((65, 64), 3)])
def test_small_images_are_checked_by_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], threads: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(image_check, "ThreadPoolExecutor", lambda count: (asked.append(count), ThreadPoolExecutor(count))[1])
    monkeypatch.setattr(image_check.os, "cpu_count", lambda: 3)
    load_data(place(tmp_path, {name: picture(size=size) for name in layout(train=2, validation=1, test=1)}))
    assert asked == [threads]


def test_threads_share_one_zip(tmp_path: Path) -> None:
    """Every read gives its own member, however the reads of threads interleave."""
    content = {f"{i}.bin": bytes([i]) * 5000 for i in range(100)}
    place(tmp_path, content)
    archive = Zip(tmp_path / "pets.zip")
    with ThreadPoolExecutor(8) as pool:
        assert dict(zip(content, pool.map(archive.read, content), strict=True)) == content
