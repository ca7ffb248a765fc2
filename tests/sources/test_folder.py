"""Folders of images, on disk and in a .zip: pixels, labels, splits, and errors that name the file."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunus.errors import DataError
from prunus.sources import load_data, make_loader

Files = dict[str, bytes]


def png(
    color: tuple[int, ...] | int = (10, 20, 30), size: tuple[int, int] = (6, 4), mode: str = "RGB", **options: object
) -> bytes:
    """A picture of one colour; ``size`` is (width, height)."""
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG", **options)
    return buffer.getvalue()


def files(splits: Mapping[str, int], **picture: object) -> Files:
    """So many pictures of two classes in every split; the red channel tells the class, the green one the number."""
    return {
        f"{split}/{name}/{number:02}.png": png((200 * label, number, 0), **picture)  # type: ignore[arg-type]
        for split, count in splits.items()
        for label, name in enumerate(("cat", "dog"))
        for number in range(count)
    }


FULL = {"train": 6, "validation": 2, "test": 3}


def place(root: Path, content: Files, kind: str = "folder") -> str:
    if kind == "zip":
        with zipfile.ZipFile(root / "photos.zip", "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return f"folder:{root / 'photos.zip'}"
    for name, data in content.items():
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return f"folder:{root / 'photos'}"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_pixels_labels_and_sizes(tmp_path: Path, kind: str) -> None:
    data = load_data(place(tmp_path, files(FULL), kind), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 6)
    assert data.class_names == ("cat", "dog") and data.input_shape == (3, 4, 6) and data.notes == ()
    image, label = data.train[7]  # dog 01
    assert label == 1
    assert torch.allclose(image, (torch.tensor([200, 1, 0]) / 255).view(3, 1, 1).expand(3, 4, 6))


def test_imagenet_normalisation_is_the_default(tmp_path: Path) -> None:
    data = load_data(place(tmp_path, files(FULL)))
    assert data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)
    assert data.train[0][0][2, 0, 0].item() == pytest.approx(-0.406 / 0.225)


def test_archive_inside_one_folder_with_nested_and_foreign_files(tmp_path: Path) -> None:
    content = {f"photos-1.0/{name.replace('validation', 'val')}": data for name, data in files(FULL).items()}
    content |= {"photos-1.0/train/cat/more/deep.png": png(), "photos-1.0/README.txt": b"hello", "__MACOSX/._x.png": b"x"}
    content |= {"photos-1.0/.DS_Store": b"x", "photos-1.0/extra/cat/1.png": png()}
    data = load_data(place(tmp_path, content, "zip"))
    assert (len(data.train), len(data.validation)) == (13, 4)
    assert data.notes == (
        "files that are no images of train/, validation/ or test/ were ignored: 2, the first photos-1.0/README.txt",
    )


def test_validation_is_held_out_of_training_images_class_by_class(tmp_path: Path) -> None:
    data = load_data(place(tmp_path, files({"train": 20, "test": 2})), validation_fraction=0.25, augment="shift")
    assert sorted(data.validation.labels) == [0] * 5 + [1] * 5
    assert sorted(data.train.indices + data.validation.indices) == list(range(40))
    assert torch.equal(data.validation[0][0], data.validation[0][0])  # without the augmentation of training


def test_missing_test_split_is_told(tmp_path: Path) -> None:
    data = load_data(place(tmp_path, files({"train": 6, "validation": 2})))
    assert data.notes == ("there is no test split: test accuracy is measured on the validation images",)
    assert [data.test[i][1] for i in range(4)] == [0, 0, 1, 1]


def test_images_of_different_sizes_need_an_image_size(tmp_path: Path) -> None:
    content = files(FULL) | {"test/dog/99.png": png(size=(9, 5))}
    source = place(tmp_path, content)
    with pytest.raises(
        DataError, match=r"test/dog/99.png is 5x9 pixels \(height x width\) and the first training image 4x6: give an"
    ):
        load_data(source)
    data = load_data(source, image_size=3)
    assert data.input_shape == (3, 3, 3)
    assert {data.test[i][0].shape for i in range(len(data.test))} == {(3, 3, 3)}


def test_a_size_that_was_not_looked_at_is_told_when_it_is_loaded(tmp_path: Path) -> None:
    content = files({"train": 2, "test": 150}, size=(2, 2)) | {"test/cat/01.png": png(size=(3, 2))}
    source = place(tmp_path, content, "zip")
    data = load_data(source, validation_fraction=0.5, check_images=False)
    with pytest.raises(DataError, match=r"test/cat/01.png is 2x3 pixels"):
        data.test[1]
    with pytest.raises(DataError, match=r"test/cat/01.png is 2x3 pixels"):
        load_data(source, validation_fraction=0.5)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_damaged_images_are_named(tmp_path: Path, kind: str) -> None:
    noise = np.random.RandomState(0).randint(0, 255, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    content = files(FULL) | {"test/cat/x.jpg": b"no image", "test/dog/y.jpg": buffer.getvalue()[:900]}
    data = load_data(place(tmp_path, content, kind), image_size=4, check_images=False)
    with pytest.raises(DataError, match=r"test/cat/x.jpg in .*photos.* is damaged or no image \(UnidentifiedImageError"):
        data.test[3]
    with pytest.raises(DataError, match=r"test/dog/y.jpg in .* is damaged or no image \(OSError.*: mend or remove it"):
        data.test[7]


def test_damaged_image_is_named_by_workers_too(tmp_path: Path) -> None:
    data = load_data(place(tmp_path, files(FULL) | {"test/cat/x.jpg": b"no image"}, "zip"), image_size=4, check_images=False)
    with pytest.raises(DataError, match=r"test/cat/x.jpg in .* is damaged or no image"):
        list(make_loader(data.test, batch_size=7, shuffle=False, workers=1))


def test_damaged_zip_members_are_named(tmp_path: Path) -> None:
    source = place(tmp_path, files(FULL), "zip")
    path = tmp_path / "photos.zip"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("test/cat/00.png").header_offset
    content[start + 60] ^= 0xFF
    path.write_bytes(content)
    data = load_data(source, image_size=4, check_images=False)
    with pytest.raises(DataError, match=r"test/cat/00.png in .*photos.zip can't be read: Bad CRC-32"):
        data.test[0]


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [("L", 51, (51, 51, 51)), ("RGBA", (9, 8, 7, 0), (9, 8, 7)), ("1", 1, (255, 255, 255)), ("P", 0, (0, 0, 0))],
)
def test_other_pixel_formats_become_rgb(tmp_path: Path, mode: str, color: int, expected: tuple[int, ...]) -> None:
    options = {"transparency": bytes([0])} if mode == "P" else {}
    content = files(FULL) | {"train/cat/00.png": png(color, mode=mode, **options)}
    image, _ = load_data(place(tmp_path, content), mean=(0.0,) * 3, std=(1.0,) * 3).train[0]
    assert tuple((image[:, 0, 0] * 255).round().int().tolist()) == expected


def test_sixteen_bit_pixels_are_refused(tmp_path: Path) -> None:
    content = files(FULL) | {"test/cat/00.png": png(40_000, mode="I;16")}
    with pytest.raises(DataError, match=r"test/cat/00.png in .* has pixels of more than 8 bits \(I;16\): convert it to 8 bits"):
        load_data(place(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (files({"validation": 2, "test": 2}), r"has no train/CLASS/IMAGE: found test/, validation/. The layout is train/"),
        ({"readme.txt": b""}, r"has no train/CLASS/IMAGE: found no images in folders of these names"),
        (files({"train": 4}), r"has neither a test nor a validation split: accuracy needs one of them"),
        (files(FULL) | {"train/x.png": png()}, r"train/x.png is in no class folder: move it to train/CLASS/"),
        (
            files(FULL) | {"train/cow/1.png": png()},
            r"test/ lacks the class folders cow: every split needs images of the same",
        ),
        (files(FULL) | {"test/cow/1.png": png()}, r"test/ has, and train/ lacks, the class folders cow"),
        ({f"{s}/cat/{i}.png": png() for s in ("train", "test") for i in (1, 2)}, r"has the one class 'cat': a classifier needs"),
    ],
)
def test_layouts_that_do_not_fit(tmp_path: Path, content: Files, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(place(tmp_path, content))


def test_paths_that_hold_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder or .zip at .*none"):
        load_data(f"folder:{tmp_path / 'none'}")
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"a.tar is neither a folder nor a .zip file"):
        load_data(f"folder:{tmp_path / 'a.tar'}")
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"a.zip is not a whole .zip file \(File is not a zip file\): fetch or write it again"):
        load_data(f"folder:{tmp_path / 'a.zip'}")


def test_zip_is_read_by_several_processes_and_survives_pickling(tmp_path: Path) -> None:
    data = load_data(place(tmp_path, files({"train": 40, "test": 40}), "zip"))
    alone = torch.cat([images for images, _ in make_loader(data.test, batch_size=8, shuffle=False)])
    together = torch.cat([images for images, _ in make_loader(data.test, batch_size=8, shuffle=False, workers=2)])
    assert torch.equal(alone, together) and len(alone) == 80
    assert torch.equal(pickle.loads(pickle.dumps(data.test))[5][0], data.test[5][0])
