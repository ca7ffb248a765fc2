"""Images in tar shards: the same as from a folder, counted, divided, shuffled within bounds; damaged and hostile shards."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from prunus.errors import DataError, PrunusWarning
from prunus.sources import load_data, make_loader, tar_index
from prunus.sources.stream_loader import Draws, FileOrder
from prunus.sources.streamed import StreamedImages
from prunus.sources.tar_index import index_path, read_index
from shards import examples, members, png, write_folder, write_shards, write_tar

SIZES = {"train": (7, 12, 3), "validation": (4, 5), "test": (6,)}


def pictures(dataset) -> list[tuple[bytes, int]]:
    return sorted((image.numpy().tobytes(), label) for image, label in (dataset[i] for i in range(len(dataset))))


def test_the_values_are_those_of_the_same_images_in_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", write_shards(tmp_path / "shards", SIZES))
    here = load_data(f"wds:{tmp_path / 'shards'}")
    there = load_data(f"folder:{tmp_path / 'folder'}")
    for split in ("train", "validation", "test", "calibration"):
        assert pictures(getattr(here, split)) == pictures(getattr(there, split))
    assert (here.input_shape, here.class_names, here.class_counts) == (there.input_shape, there.class_names, there.class_counts)
    assert (here.mean, here.std) == (there.mean, there.std)


def test_another_reader_of_shards_sees_the_same(tmp_path: Path) -> None:
    theirs = pytest.importorskip("webdataset.tariterators")
    write_shards(tmp_path, SIZES)
    data = load_data(f"wds:{tmp_path}")
    rows: list[tuple[bytes, int]] = []
    for shard in sorted(tmp_path.glob("train-*.tar")):
        with shard.open("rb") as stream:
            found = theirs.group_by_keys(theirs.tar_file_expander([{"url": str(shard), "stream": stream}]))
            rows += [(sample["png"], int(sample["cls"])) for sample in found]
    assert rows == [(data.train.images.read(i), int(data.train.images.labels[i])) for i in range(len(data.train))]


@pytest.mark.parametrize(
    "pattern",
    [
        "train={0}/train-{{00..02}}.tar;validation={0}/validation-*.tar;test={0}/test-00.tar",
        "{0}/*.tar",
        "{0}/{{train,validation,test}}-*.tar",
    ],
)
def test_splits_are_named_by_patterns_or_by_the_files(tmp_path: Path, pattern: str) -> None:
    write_shards(tmp_path, SIZES)
    data = load_data("wds:" + pattern.format(tmp_path))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [22, 9, 6]


def test_folders_name_splits_too(tmp_path: Path) -> None:
    for split, count in (("train", 9), ("val", 6), ("test", 3)):
        write_tar(tmp_path / split / "shard-0.tar", members(examples(count)))
    data = load_data(f"wds:{tmp_path}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [9, 6, 3]


def test_validation_images_are_held_out_where_none_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": (15, 15), "test": (6,)})
    data = load_data(f"wds:{tmp_path}", validation_fraction=0.2)
    assert data.class_counts == {"train": (8, 8, 8), "validation": (2, 2, 2), "test": (2, 2, 2)}
    both = pictures(data.calibration) + pictures(data.validation)
    assert len({image for image, _ in both}) == 30
    few = load_data(f"wds:{tmp_path}", train_limit=6)
    assert few.class_counts["train"] == (2, 2, 2)


def test_labels_may_be_names_or_json_and_classes_have_names(tmp_path: Path) -> None:
    named = [("a.png", png(0, 0)), ("a.cls", b"dog\n"), ("b.png", png(1, 1)), ("b.json", b'{"label": "cat"}')]
    write_tar(tmp_path / "names" / "train.tar", named)
    write_tar(tmp_path / "names" / "test.tar", named)
    write_tar(tmp_path / "names" / "val.tar", named)
    data = load_data(f"wds:{tmp_path / 'names'}")
    assert data.class_names == ("cat", "dog") and [label for _, label in data.train] == [1, 0]
    write_shards(tmp_path / "numbers", SIZES)
    (tmp_path / "numbers" / "classes.txt").write_text("ant\nbee\ncow\ndoe\n")
    assert load_data(f"wds:{tmp_path / 'numbers'}").class_names == ("ant", "bee", "cow", "doe")
    (tmp_path / "numbers" / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match=r"classes.txt names 2 classes, and labels go up to 2: add the others"):
        load_data(f"wds:{tmp_path / 'numbers'}")


def test_shards_are_gone_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, SIZES)
    scanned: list[Path] = []
    scan = tar_index._scan
    monkeypatch.setattr(tar_index, "_scan", lambda shard: (scanned.append(shard), scan(shard))[1])
    decoded: list[int] = []
    whole = StreamedImages.check
    monkeypatch.setattr(StreamedImages, "check", lambda self, index: (decoded.append(index), whole(self, index))[1])
    load_data(f"wds:{tmp_path}", image_size=8)
    assert len(scanned) == 6 and len(decoded) == 37
    load_data(f"wds:{tmp_path}", image_size=8)
    assert len(scanned) == 6 and len(decoded) == 37, "what was found is kept beside the shards"
    rows = examples(9, 100)
    write_tar(tmp_path / "train-01.tar", members(rows))
    data = load_data(f"wds:{tmp_path}", image_size=8)
    assert len(scanned) == 7 and len(decoded) == 46 and len(data.train) == 7 + 9 + 3


def test_a_foreign_index_is_not_believed(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "train-00.tar", members(examples(6)))
    index = read_index(shard)
    content = index_path(shard).read_bytes()
    for position in range(0, len(content), max(len(content) // 60, 1)):
        damaged = bytearray(content)
        damaged[position] ^= 0x41
        index_path(shard).write_bytes(damaged)
        again = read_index(shard)
        assert again.offsets.tolist() == index.offsets.tolist() and again.labels.tolist() == index.labels.tolist()
    far = tar_index.TarIndex(**{**vars(index), "offsets": index.offsets + 10**9})
    tar_index.write_index(shard, far)
    assert read_index(shard).offsets.tolist() == index.offsets.tolist()


def test_shards_that_cannot_be_written_beside_are_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, SIZES)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tar_index, "write_atomically", full)
    assert len(load_data(f"wds:{tmp_path}").train) == 22
    assert not list(tmp_path.glob("*.index"))


def test_damaged_images_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = examples(60)
    rows[7] = (*rows[7][:2], rows[7][2][:-30])
    write_tar(tmp_path / "train-0.tar", members(rows[:30]))
    write_tar(tmp_path / "train-1.tar", members(rows[30:]))
    write_tar(tmp_path / "val.tar", members(examples(6, 100)))
    for _ in range(2):  # the second time from the index
        with pytest.warns(PrunusWarning, match=r"1 of 60 in train: train-0.tar/000007.png\. Fetch them again"):
            data = load_data(f"wds:{tmp_path}")
        assert data.class_counts["train"] == (20, 19, 20) and data.damaged == {"train": ("train-0.tar/000007.png",)}
    with pytest.raises(DataError, match=r"000007.png in .* is damaged or no image"):
        _ = load_data(f"wds:{tmp_path}", check_images=False).train[7]


# --- the order of training -------------------------------------------------------------------------------------------------


def order(bounds: list[int], buffer: int, seed: int) -> list[int]:
    return list(FileOrder(np.array(bounds), buffer, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("buffer", [1, 4, 9, 1000])
def test_a_pass_has_every_image_once_and_its_buffer_is_bounded(buffer: int) -> None:
    bounds = [0, 7, 7, 30, 31, 60]
    drawn = order(bounds, buffer, 3)
    assert sorted(drawn) == list(range(60)) and order(bounds, buffer, 3) == drawn and order(bounds, buffer, 5) != drawn
    files = np.random.default_rng(int(torch.empty((), dtype=torch.int64).random_(generator=torch.Generator().manual_seed(3))))
    went = [i for part in files.permutation(5) for i in range(bounds[part], bounds[part + 1])]
    assert all(went.index(image) <= place + buffer - 1 for place, image in enumerate(drawn))
    if buffer == 1:
        assert drawn == went


def test_the_order_and_the_augmentation_do_not_depend_on_workers(tmp_path: Path) -> None:
    write_shards(tmp_path, SIZES)
    data = load_data(f"wds:{tmp_path}", augment="crop-flip", shuffle_buffer=5)
    passes = []
    for workers in (0, 2):
        torch.manual_seed(5)
        loader = make_loader(data.train, batch_size=4, shuffle=True, workers=workers)
        passes.append([[part.clone() for part in batch] for batch in loader])
        second = [batch[0].clone() for batch in loader]
        assert not torch.equal(torch.cat([b[0] for b in passes[-1]]), torch.cat(second)), "passes differ"
    for one, other in zip(*passes, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    plain = load_data(f"wds:{tmp_path}").train
    torch.manual_seed(5)
    unaugmented = torch.cat([batch[0] for batch in make_loader(plain, batch_size=4, shuffle=True)])
    assert not torch.equal(unaugmented, torch.cat([batch[0] for batch in passes[0]]))


def test_classes_can_be_balanced(tmp_path: Path) -> None:
    rows = examples(30)
    write_tar(tmp_path / "train.tar", members([row for row in rows if row[1] or row[0] < "000006"]))
    write_tar(tmp_path / "test.tar", members(examples(30, 50)))
    data = load_data(f"wds:{tmp_path}")
    torch.manual_seed(0)
    loader = make_loader(data.train, batch_size=4, shuffle=True, balance=True)
    assert isinstance(loader.sampler, Draws)
    counts = np.bincount(torch.cat([batch[1] for _ in range(30) for batch in loader]).numpy())
    assert counts.min() > 0.8 * counts.mean()


def test_the_buffer_is_for_large_files() -> None:
    with pytest.raises(DataError, match=r"'digits' is shuffled as a whole: shuffle_buffer is for wds: and datasets:"):
        load_data("digits", shuffle_buffer=5)


# --- what a shard may hold -------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    for extension in ("pyd", "pickle", "pkl", "pth", "pt"):
        rows = [part for key, _, data in examples(4) for part in ((f"{key}.png", data), (f"{key}.{extension}", bomb))]
        shard = write_tar(tmp_path / extension / "train.tar", rows)
        with pytest.raises(
            DataError, match=rf"example 000000 of .* no label \({extension} is never read: it may run code\): write"
        ):
            load_data(f"wds:{shard}")
        beside = [(f"{key}.{extension}", bomb) for key, _, _ in examples(4)]
        write_tar(tmp_path / extension / "train.tar", sorted([*members(examples(4)), *beside]))
        write_tar(tmp_path / extension / "val.tar", members(examples(4, 10)))
        data = load_data(f"wds:{tmp_path / extension}")
        assert len(list(make_loader(data.train, batch_size=2, shuffle=True))) == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "..\\out.png"])
def test_names_that_lead_out_are_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    shard = write_tar(tmp_path / "inner" / "train.tar", [(name, png(0, 0)), *members(examples(3))])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"train.tar is no whole tar file: the name .* leads out of the shard\. Fetch"):
        load_data(f"wds:{shard}")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_shard_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "train.tar", members(examples(4)))
    content = shard.read_bytes()
    end = 4 * 2 * 1024  # every member takes a block for its header and one for its content
    for cut in [*range(0, end, 512), *range(100, end, 700)]:
        shard.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"the shard .*train.tar is no whole tar file: .*Fetch or write it again"):
            read_index(shard)
    shard.write_bytes(content[:1024] + b"\xff" * 512 + content[1536:])
    with pytest.raises(DataError, match="without the mark of its end, or holds something else there"):
        read_index(shard)


def test_links_and_devices_are_nobody(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "train.tar", members(examples(4)))
    with tarfile.open(shard, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("000009.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert len(read_index(shard).offsets) == 4


def test_compressed_shards_are_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w:gz") as tar:
        info = tarfile.TarInfo("a.png")
        tar.addfile(info, io.BytesIO())
    with pytest.raises(DataError, match=r"it seems to be compressed: unpack .tar.gz to .tar"):
        load_data(f"wds:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"holds no examples: leave it out"),
        ([("a.cls", b"1")], r"the example a of the shard .* has no image, only cls: every example is one image"),
        ([("a.png", b""), ("a.jpg", b""), ("a.cls", b"1")], r"has 2 images"),
        ([("a.png", b""), ("a.txt", b"1")], r"has no label: write a .cls file"),
        ([("a.png", b""), ("a.png", b"")], r"has a.png twice: write it again"),
        ([("a.png", b""), ("a.cls", b"\xff\xfe")], r"has a label that can't be read: 'utf-8' codec"),
        ([("a.png", b""), ("a.cls", b" \n")], r"has the label ' \\n': it must be a class index or a class name"),
        ([("a.png", b""), ("a.json", b"{")], r"has a label that can't be read: it isn't JSON"),
        ([("a.png", b""), ("a.json", b"[" * 100_000)], r"has a label that can't be read: it is nested too deeply"),
        ([("a.png", b""), ("a.json", b'{"caption": "x"}')], r"the JSON has no label"),
        ([("a.png", b""), ("a.json", b'{"label": [1]}')], r"has the label \[1\]"),
        ([("a.png", b""), ("a.cls", b"x" * 2**21)], r"has a label file of 2097152 bytes"),
    ],
)
def test_examples_that_cannot_be_used_are_named(tmp_path: Path, content: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_index(write_tar(tmp_path / "train.tar", content))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{0}/train-{{00..03}}.tar", r"1 of 4 files are missing, e.g. .*train-03.tar: look at the pattern"),
        ("{0}/none-*.tar", r"no file has such a name: look at the pattern"),
        ("{0}/train-{{00..03.tar", r"the braces of .* aren't closed"),
        ("{0}/{{0..999999}}.tar", r"stands for more than 100000 files"),
        ("{0}/empty", r"there are no .tar files in the folder"),
        ("http://host/train.tar", r"isn't a path: files are read from this machine, so fetch them first"),
        ("pipe:touch ran", r"pipe:touch ran isn't a path"),
        ("train={0}/train-00.tar;test={0}/train-00.tar", r"train-00.tar is in train and in test: an image may be in one split"),
        ("test={0}/train-00.tar", r"has no files for training, only test: name them as train=PATTERN"),
        ("train={0}/train-00.tar;test=", r"a pattern is empty"),
        ("{0}/train-00.tar", r"has neither a test nor a validation split"),
        ("{0}/both", r"train-val-0.tar names two splits: say which files are which"),
    ],
)
def test_patterns_that_name_nothing_usable(tmp_path: Path, pattern: str, message: str) -> None:
    write_shards(tmp_path, {"train": (6, 6, 6)})
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "both" / "train-val-0.tar", members(examples(3)))
    with pytest.raises(DataError, match=message):
        load_data("wds:" + pattern.format(tmp_path))


def test_classes_of_the_splits_must_agree(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", members(examples(6, classes=2)))
    write_tar(tmp_path / "test.tar", members(examples(6, classes=3)))
    with pytest.raises(DataError, match=r"test.tar of test has the label '2', which is none of the training images' classes"):
        load_data(f"wds:{tmp_path}")
    write_tar(tmp_path / "one" / "train.tar", members(examples(6, classes=1)))
    with pytest.raises(DataError, match=r"has the one class '0': a classifier needs at least two"):
        load_data(f"wds:{tmp_path / 'one'}")
