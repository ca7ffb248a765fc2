"""CIFAR-10 from torchvision's files (tiny ones with the same layout) and from class folders."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from prunus.errors import DataError
from prunus.sources import load_data
from prunus.sources.cifar10 import CLASS_NAMES

PIXELS = np.random.RandomState(0).randint(0, 256, (40, 3072)).astype(np.uint8)
FOLDER = "cifar-10-batches-py"


def batch(start: int, stop: int) -> bytes:
    return pickle.dumps({"data": PIXELS[start:stop], "labels": [i % 10 for i in range(start, stop)]})


FILES = {
    "data_batch_1": batch(0, 20),
    "data_batch_2": batch(20, 30),
    "test_batch": batch(30, 40),
    "batches.meta": pickle.dumps({"label_names": list(CLASS_NAMES)}),
}


@pytest.fixture(autouse=True)
def _published(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files above are the published ones."""
    sums = {name: hashlib.md5(data).hexdigest() for name, data in FILES.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nobody answers there


def place(root: Path, **changes: bytes | None) -> Path:
    (root / FOLDER).mkdir(parents=True)
    for name, data in (FILES | changes).items():
        if data is not None:
            (root / FOLDER / name).write_bytes(data)
    return root


@pytest.mark.parametrize("inside", ["", FOLDER])
def test_torchvisions_files(tmp_path: Path, inside: str) -> None:
    data = load_data(f"cifar10:{place(tmp_path) / inside}", mean=(0.0,) * 3, std=(1.0,) * 3, validation_fraction=0.4)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)
    assert data.class_names == CLASS_NAMES == tuple(sorted(CLASS_NAMES)) and data.input_shape == (3, 32, 32)
    assert data.class_counts == {"train": (2,) * 10, "validation": (1,) * 10, "test": (1,) * 10}
    image, label = data.test[7]
    assert torch.equal((image * 255).round(), torch.from_numpy(PIXELS[37]).float().view(3, 32, 32)) and label == 7
    assert [data.train[i][1] for i in range(20)] == [i % 10 for i in data.train.indices]


def test_published_normalisation(tmp_path: Path) -> None:
    data = load_data(f"cifar10:{place(tmp_path)}")
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2470, 0.2435, 0.2616)


def test_missing_files_are_named_and_where_they_were_looked_for(tmp_path: Path) -> None:
    place(tmp_path / "some", data_batch_2=None, test_batch=None)
    with pytest.raises(
        DataError,
        match=r"some lacks data_batch_2, test_batch: looked in .*some/cifar-10-batches-py, and for class folders in .*some/train"
        r"; data.download = true fetches them \(170 MB\), or unpacks cifar-10-python.tar.gz if it lies in .*some",
    ):
        load_data(f"cifar10:{tmp_path / 'some'}")
    with pytest.raises(DataError, match=r"none lacks data_batch_1, data_batch_2, test_batch, batches.meta: looked in"):
        load_data(f"cifar10:{tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a foreign pickle was opened",))


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_foreign_files_are_never_unpickled(tmp_path: Path, name: str) -> None:
    place(tmp_path, **{name: pickle.dumps(_Trap())})
    with pytest.raises(
        DataError, match=rf"{name} in .*{FOLDER} have another MD5 sum than published, so they were not opened: remove them and"
    ):
        load_data(f"cifar10:{tmp_path}")


def test_even_a_file_with_the_published_sum_builds_nothing_but_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = pickle.dumps({"data": PIXELS[:20], "labels": _Trap()})
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", hashlib.md5(trap).hexdigest()]])
    place(tmp_path, test_batch=trap)
    with pytest.raises(DataError, match=r"a file of CIFAR-10 asks for _pytest\.outcomes\.\S+"):
        load_data(f"cifar10:{tmp_path}")


def packed(path: Path) -> str:
    """The archive as it is published; returns its MD5 sum."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in FILES.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return hashlib.md5(path.read_bytes()).hexdigest()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the files in ``tmp_path``."""
    with http.server.HTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_download_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setattr(CIFAR10, "tgz_md5", packed(tmp_path / "published.tar.gz"))
    monkeypatch.setattr(CIFAR10, "url", f"{server}/published.tar.gz")
    with pytest.raises(DataError, match="lacks data_batch_1"):
        load_data(f"cifar10:{tmp_path / 'new'}")
    assert len(load_data(f"cifar10:{tmp_path / 'new'}", download=True).test) == 10
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/x")
    assert len(load_data(f"cifar10:{tmp_path / 'new'}", download=True).test) == 10  # nothing is missing: nothing is fetched


def test_download_that_fails_says_what_to_do_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError,
        match=r"the files could not be fetched from http://127.0.0.1:9/cifar-10-python.tar.gz \(URLError: .*\): put "
        r"cifar-10-python.tar.gz into .* by hand and run again, which unpacks it",
    ):
        load_data(f"cifar10:{tmp_path}", download=True)
    monkeypatch.setattr(CIFAR10, "tgz_md5", packed(tmp_path / "cifar-10-python.tar.gz"))
    assert len(load_data(f"cifar10:{tmp_path}", download=True).test) == 10


def class_folders(path: Path, names: tuple[str, ...]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in (("train", 2), ("test", 1)):
            for label, name in enumerate(names):
                for number in range(count):
                    buffer = io.BytesIO()
                    Image.new("RGB", (32, 32), (label, number, 0)).save(buffer, "PNG")
                    archive.writestr(f"{split}/{name}/{number}.png", buffer.getvalue())
    return path


@pytest.mark.parametrize("unpacked", [False, True])
def test_class_folders(tmp_path: Path, unpacked: bool) -> None:
    path = class_folders(tmp_path / "cifar.zip", CLASS_NAMES)
    if unpacked:
        zipfile.ZipFile(path).extractall(tmp_path / "files")
        path = tmp_path / "files"
    data = load_data(f"cifar10:{path}")
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2470, 0.2435, 0.2616)
    assert data.class_names == CLASS_NAMES and (len(data.train), len(data.validation), len(data.test)) == (10, 10, 10)
    image, label = data.test[6]
    assert label == 6 and image[0, 0, 0].item() == pytest.approx((6 / 255 - 0.4914) / 0.2470)


def test_class_folders_of_other_names_are_refused(tmp_path: Path) -> None:
    path = class_folders(tmp_path / "cifar.zip", ("plane", *CLASS_NAMES[1:]))
    with pytest.raises(
        DataError, match=r"has the class folders automobile, .*, plane, .*and CIFAR-10's are airplane, .*: rename"
    ):
        load_data(f"cifar10:{path}")
    with pytest.raises(DataError, match=r"cifar10:.*empty.zip has no train/CLASS/IMAGE"):
        zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
        load_data(f"cifar10:{tmp_path / 'empty.zip'}")
