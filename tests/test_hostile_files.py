"""Files made to do harm, one by one; tests/fuzz makes thousands. And what in the source could run what a file says."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prunus
from nets import residual
from prunus import ArtifactError, DataError, RecipeError
from prunus.config import load_recipe, parse_recipe
from prunus.files import DamagedFile, parse_json, read_bounded, sealed, unsealed
from prunus.sources import load_data
from prunus.sources.archive import Folder, UnreadableFile, Zip
from prunus.sources.idx import read_idx
from prunus.sources.image_files import StoredFiles
from prunus.sources.weights import load_weights
from prunus.surgery import SurgeryRecord
from prunus.surgery.remove import apply_record
from prunus.tensor_files import read_tensors, tensor_bytes

SOURCE = Path(prunus.__file__).parent


# -- nothing that a file says is run


def test_no_pickle_is_loaded() -> None:
    """Two places: CIFAR-10's files, which may build arrays only, and a folder that one process writes for its own child."""
    found = {
        (path.relative_to(SOURCE).as_posix(), call)
        for path in SOURCE.rglob("*.py")
        for call in re.findall(
            r"pickle\.loads?\(|Unpickler\)|weights_only=False|yaml\.\w*load|extractall|\beval\(|\bexec\(", _code(path)
        )
    }
    assert found == {("sources/cifar10.py", "Unpickler)"), ("export/timing_process.py", "weights_only=False")}
    loads = [call for path in SOURCE.rglob("*.py") for call in re.findall(r"torch\.load\([^\n]*", path.read_text())]
    assert len(loads) == 3 and all("weights_only=" in call for call in loads)


def _code(path: Path) -> str:
    """Without calls of methods of that name, such as ``model.eval()``."""
    return re.sub(r"\.(eval|exec)\(", "(", path.read_text(encoding="utf-8"))


# -- JSON and TOML


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", b"\xff", "9" * 5_000, '{"a": 1} x'])
def test_text_that_is_no_json(text: str | bytes) -> None:
    with pytest.raises(DamagedFile, match=r"nested too deeply|isn't JSON"):
        parse_json(text)


def test_checksums_cover_everything() -> None:
    tree = {"a": [1, 2.5, None, float("inf")], "b": {"c": "ä"}}
    stored = json.loads(json.dumps(sealed(tree)))
    assert unsealed(stored) == tree and unsealed(tree) == tree  # one without is older than checksums
    for changed in ({**stored, "b": {"c": "a"}}, {**stored, "d": 1}, {**stored, "sha256": 1}):
        with pytest.raises(DamagedFile, match="its checksum doesn't match its contents"):
            unsealed(changed)
    with pytest.raises(DamagedFile, match="it holds a list, not an object"):
        unsealed([])


def test_a_file_without_an_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedFile, match="it is a pipe or a device"):
        read_bounded(tmp_path / "pipe", 10)
    (tmp_path / "long").write_bytes(bytes(11))
    with pytest.raises(DamagedFile, match="more than 10 bytes"):
        read_bounded(tmp_path / "long", 10)
    assert read_bounded(tmp_path / "long", 11) == bytes(11)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 5_000, "nested too deeply"),
        ("seed = " + "9" * 5_000, "can't be read as TOML"),
        ("#" * 2**20 + "#", "more than 1048576 bytes"),
        ('name = "../../elsewhere"', "name: String should match pattern"),
        ("prune.budget = 0.5", r"prune\.budget: Input should be a valid dictionary"),
        ("recover.rungs = 3\nprune.budget.macs = 0.5", r"recover\.rungs: Input should be a valid tuple"),
        ("recover = 3\nprune = 4\nmodel = 5", r"recover: Input should be"),
    ],
)
def test_recipes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "recipe.toml")
    with pytest.raises(RecipeError, match="name: String should match"):
        parse_recipe({"name": "a/b"})


# -- tensors and records


def test_tensors_have_a_checksum(tmp_path: Path) -> None:
    path = tmp_path / "t"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True), "c": torch.zeros(0, 4, dtype=torch.bfloat16)}
    path.write_bytes(tensor_bytes(tensors, "key", {"x": [1]}))
    found, tree = read_tensors(path, "key")
    assert tree == {"x": [1]} and all(torch.equal(found[name], value) for name, value in tensors.items())
    assert {found[name].dtype for name in found} == {torch.float32, torch.bool, torch.bfloat16}
    content = path.read_bytes()
    for at in range(len(content) - 25, len(content)):  # all tensors
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(DamagedFile, match=r"checksum doesn't match"):
            read_tensors(path, "key")
    path.write_bytes(content.replace(b'"key"', b'"kez"'))
    with pytest.raises(DamagedFile, match="its checksum is under another name"):
        read_tensors(path, "key")
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(DamagedFile, match=f"its header announces {2**40} bytes"):
        read_tensors(path, "key")


def test_a_small_network_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    model = residual()
    prunus.save(model, SurgeryRecord.nothing_removed(model), tmp_path / "small.prunus")
    content = bytearray((tmp_path / "small.prunus").read_bytes())
    content[-3] ^= 1
    (tmp_path / "small.prunus").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"small.prunus can't be read: .*its checksum doesn't match its contents"):
        prunus.load(tmp_path / "small.prunus", residual())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"module": "stem.0", "attribute": "groups", "value": 10**9}, r"attribute 'groups' has the value '1000000000'"),
        ({"module": "stem.0", "attribute": "groups", "value": 2**21}, r"it sets `stem.0.groups` to 2097152, here it is 1"),
        ({"module": "stem.0", "attribute": "padding", "value": [1, 2**21]}, r"it sets `stem.0.padding` to \(1, 2097152\)"),
        ({"module": "stem.0", "attribute": "__class__", "value": 1}, r"it sets `stem.0.__class__` to 1"),
        ({"slice": "stem.0.weight", "axis": 0, "kept": [0], "size": 10**9}, r"slice of 'stem.0.weight' is malformed"),
        ({"replace": "stem.0", "layers": [3, 2000, 6]}, r"it replaces `stem.0` by layers of more than 16 times its weights"),
    ],
)
def test_records_that_ask_for_too_much(edit: dict[str, object], message: str) -> None:
    if "layers" in edit:
        sizes = edit["layers"]
        shape = {"kind": "conv2d", "kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "bias": False}
        edit = {**edit, "layers": [{**shape, "inputs": a, "outputs": b} for a, b in itertools.pairwise(sizes)]}  # type: ignore[arg-type, index]
    whole = json.loads(SurgeryRecord.nothing_removed(residual()).to_json())
    with pytest.raises(ArtifactError, match=message):
        apply_record(residual(), SurgeryRecord.from_json(json.dumps({**whole, "edits": [edit]})))


def test_the_same_axis_is_not_sliced_twice() -> None:
    whole = json.loads(SurgeryRecord.nothing_removed(residual()).to_json())
    edit = {"slice": "stem.0.weight", "axis": 0, "kept": [0, 1, 4], "size": 6}
    with pytest.raises(ArtifactError, match=r"it slices axis 0 of `stem\.0\.weight` twice"):
        apply_record(residual(), SurgeryRecord.from_json(json.dumps({**whole, "edits": [edit, edit]})))


def test_an_archive_of_weights_that_unfolds(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(ArtifactError, match=r"weights.pt is damaged .*its \d+ bytes unfold to 10000000"):
        load_weights(residual(), path)


# -- images


def _picture(size: tuple[int, int] = (4, 4), form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, form)
    return buffer.getvalue()


def test_pictures_of_any_size_are_announced_in_a_few_bytes(tmp_path: Path) -> None:
    content = bytearray(_picture(form="BMP"))
    content[18:26] = struct.pack("<ii", 8192, 4097)
    (tmp_path / "bomb.bmp").write_bytes(content)
    images = StoredFiles(Folder(tmp_path), ["bomb.bmp"], [0], None)
    with pytest.raises(UnreadableFile, match=r"bomb.bmp .*8192 x 4097 pixels, more than 33554432 in all"):
        images.check(0)


def test_a_format_that_starts_a_program_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "script.png").write_bytes(_picture(form="EPS"))
    with pytest.raises(UnreadableFile, match=r"script.png .* is damaged or no image \(UnidentifiedImageError"):
        StoredFiles(Folder(tmp_path), ["script.png"], [0], None).load(0)


def test_members_that_unfold_without_end_and_links_in_circles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.sources.archive.MOST_BYTES", 1_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(1_001))
    with pytest.raises(UnreadableFile, match=r"bomb.png in .*a.zip can't be read: it has more than 1000 bytes"):
        Zip(tmp_path / "a.zip").read("bomb.png")
    (tmp_path / "inner").mkdir()
    for name in ("one", "two"):
        (tmp_path / "inner" / name).symlink_to(tmp_path, target_is_directory=True)
    assert Folder(tmp_path).names() == ["a.zip"]


def test_names_that_lead_outside_are_only_names(tmp_path: Path) -> None:
    """Nothing is unpacked: a member is its bytes, whatever it is called; one with a dot in front, as in .., is ignored."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for label in ("cat", "dog"):
            for number in range(4):
                archive.writestr(f"train/{label}/{number}.png", _picture())
                archive.writestr(f"test/{label}//tmp/escaped-{number}.png", _picture())
                archive.writestr(f"test/{label}/../../../../escaped-{number}.png", _picture())
    data = load_data(f"folder:{tmp_path / 'images.zip'}", validation_fraction=0.5)
    assert len(data.test) == 8 and data.test[0][0].shape == (3, 4, 4)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.rglob("*")] == ["images.zip"] and not list(Path("/tmp").glob("escaped-*"))


def test_idx_files_that_unfold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes([0, 0, 8, 1]) + struct.pack(">I", 100) + bytes(100)
    (tmp_path / "labels.gz").write_bytes(gzip.compress(content))
    assert np.array_equal(read_idx(tmp_path / "labels.gz", 1), np.zeros(100))
    monkeypatch.setattr("prunus.sources.idx._MOST_BYTES", 107)
    with pytest.raises(DataError, match=r"labels.gz can't be read \(DamagedFile: it unfolds to more than 107 bytes\)"):
        read_idx(tmp_path / "labels.gz", 1)


def test_errors_stay_readable() -> None:
    assert len(str(ArtifactError("a" * 10**6))) < 4_100 and str(ArtifactError("short")) == "short"
