"""Images in data sets of the `datasets` library, from local files: the same as from a folder, and nothing from elsewhere."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from prunus.errors import DataError, PrunusWarning
from prunus.sources import load_data, make_loader
from shards import examples, png, write_folder

pytest.importorskip("datasets")
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, disable_progress_bars

disable_progress_bars()
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves files open
NAMES = ["ant", "bee", "cow"]
CLASSES = ClassLabel(names=NAMES)
SIZES = {"train": 12, "validation": 6, "test": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, and no network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    connect = socket.socket.connect

    def refused(self: socket.socket, address: object) -> None:
        assert self.family == socket.AF_UNIX, "nothing may be looked for on the network"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refused)


def rows(first: int, count: int, label: ClassLabel | Value = CLASSES) -> Dataset:
    content = examples(count, first)
    table = {"image": [{"bytes": data, "path": None} for _, _, data in content], "label": [number for _, number, _ in content]}
    return Dataset.from_dict(table, features=Features(image=Image(), label=label))


def written(folder: Path, kind: str) -> str:
    """The same images in files of one kind; what `load_data` is given."""
    folder.mkdir()
    first = 0
    splits: dict[str, Dataset] = {}
    for split, count in SIZES.items():
        splits[split] = rows(first, count)
        for part, half in enumerate((range(count // 2), range(count // 2, count))):
            if kind == "parquet":
                splits[split].select(half).to_parquet(folder / f"{split}-{part:05}-of-00002.parquet")
            if kind in ("json", "jsonl"):
                content = examples(count, first)
                lines = []
                for i in half:
                    (folder / f"{first + i}.png").write_bytes(content[i][2])
                    lines.append({"file_name": f"{first + i}.png", "label": NAMES[content[i][1]]})
                text = json.dumps(lines) if kind == "json" else "\n".join(map(json.dumps, lines))
                (folder / f"{split}-{part}.{kind}").write_text(text)
        first += count
    if kind == "saved":
        DatasetDict(splits).save_to_disk(str(folder / "saved"))
        return f"datasets:{folder / 'saved'}"
    if kind == "arrow":
        DatasetDict(splits).save_to_disk(str(folder / "saved"))
        patterns = ";".join(f"{split}={folder}/saved/{split}/*.arrow" for split in SIZES)
        return f"datasets:{patterns}"
    return f"datasets:{folder}"


def pictures(dataset) -> list[tuple[bytes, int]]:
    return sorted((image.numpy().tobytes(), label) for image, label in (dataset[i] for i in range(len(dataset))))


@pytest.mark.parametrize("kind", ["parquet", "saved", "arrow", "json", "jsonl"])
def test_the_values_are_those_of_the_same_images_in_a_folder(tmp_path: Path, kind: str) -> None:
    data = load_data(written(tmp_path / "rows", kind))
    first, folders = 0, {}
    for split, count in SIZES.items():
        folders[split] = examples(count, first)
        first += count
    write_folder(tmp_path / "folder", folders)
    there = load_data(f"folder:{tmp_path / 'folder'}")
    for split in ("train", "validation", "test", "calibration"):
        assert pictures(getattr(data, split)) == pictures(getattr(there, split))
    assert data.class_names == tuple(NAMES) and data.class_counts == there.class_counts
    torch.manual_seed(1)
    loader = make_loader(data.train, batch_size=5, shuffle=True, workers=2 if kind == "parquet" else 0)
    assert sorted(torch.cat([batch[1] for batch in loader]).tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_plain_numbers_are_class_indices(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows(0, 30, Value("int64")).to_parquet(tmp_path / f"{split}.parquet")
    data = load_data(f"datasets:{tmp_path}")
    assert data.class_names == ("0", "1", "2") and data.class_counts["train"] == (9, 9, 9)


def test_damaged_images_are_left_out(tmp_path: Path) -> None:
    content = [{"bytes": png(n % 2, n)[: 20 if n == 5 else None], "path": None} for n in range(40)]
    features = Features(image=Image(), label=ClassLabel(names=["a", "b"]))
    Dataset.from_dict({"image": content, "label": [n % 2 for n in range(40)]}, features=features).to_parquet(
        tmp_path / "train.parquet"
    )
    Dataset.from_dict({"image": content[:4], "label": [0, 1, 0, 1]}, features=features).to_parquet(tmp_path / "val.parquet")
    with pytest.warns(PrunusWarning, match=r"1 of 40 in train: row 5\. Fetch them again, or remove them"):
        data = load_data(f"datasets:{tmp_path}")
    assert data.class_counts["train"] == (20, 19)


@pytest.mark.parametrize("path", ["/etc/hostname", "../outside.png", "link.png"])
def test_rows_cannot_name_files_elsewhere(tmp_path: Path, path: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "outside.png").write_bytes(png(0, 0))
    (inside / "link.png").symlink_to(tmp_path / "outside.png")
    lines = [{"file_name": path, "label": label} for label in ("a", "b")]
    (inside / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=rf"row 0 of .* names the file '{path}', which lies outside of .*: images lie in"):
        load_data(f"datasets:{inside}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 no parquet", r"can't be read: .*Look at its files, or fetch them again"),
        (b"", r"can't be read: .*Look at its files, or fetch them again"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "arrow", "json"])
def test_damaged_files_are_told(tmp_path: Path, kind: str, content: bytes, message: str) -> None:
    (tmp_path / f"train.{kind}").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data(f"datasets:{tmp_path}")


def test_columns_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    def data(name: str, **columns: list) -> str:
        (tmp_path / name).mkdir()
        lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        (tmp_path / name / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return f"datasets:{tmp_path / name}"

    with pytest.raises(
        DataError, match=r"has the columns picture, label, and none of them tells that it holds the images: call it"
    ):
        load_data(data("one", picture=["a"], label=["b"]))
    with pytest.raises(DataError, match=r"holds the labels: call it label"):
        load_data(data("two", image=["a"], kind=["b"]))
    with pytest.raises(DataError, match=r"the column label holds float(32|64) values: labels are class indices or names"):
        load_data(data("three", image=["a"], label=[0.5]))
    with pytest.raises(DataError, match=r"has the one class a: a classifier needs at least two"):
        load_data(data("four", image=["a"], label=["a"]))
    with pytest.raises(DataError, match=r"train has the label -1, which is none of the 2 classes of training"):
        load_data(data("five", image=["a", "b", "c"], label=[0, 1, -1]))
    (tmp_path / "five" / "train-2.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"has files of the kinds .jsonl, .parquet: give one of .parquet, .json, .jsonl, .arrow"):
        load_data(f"datasets:{tmp_path / 'five'}")
