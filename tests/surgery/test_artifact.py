"""`save` and `load`: bit-exact round trips, and every way in which a file can be wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import prunus
from nets import EXACT, NETS, image, random_plan, residual
from prunus.graph import trace
from prunus.surgery import SurgeryRecord, load, remove, save


def _saved(path: Path, model: nn.Module | None = None) -> tuple[nn.Module, SurgeryRecord]:
    model = residual() if model is None else model
    graph = trace(model, image())
    small, record = remove(model, graph, random_plan(graph))
    save(small, record, path)
    return small, record


@pytest.mark.parametrize("name", EXACT)
def test_a_round_trip_is_exact_to_the_bit(name: str, tmp_path: Path) -> None:
    net = NETS[name]
    model = net.model()
    graph = trace(model, net.inputs())
    small, record = remove(model, graph, random_plan(graph))
    save(small, record, tmp_path / "small.prunus")
    torch.manual_seed(99)
    fresh = net.build().eval()  # other weights
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    loaded = load(tmp_path / "small.prunus", fresh)
    assert str(loaded) == str(small)
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_a_shared_weight_is_stored_once_and_stays_shared(tmp_path: Path) -> None:
    path = tmp_path / "small.prunus"
    _saved(path, NETS["shared parameter"].model())
    with safetensors.safe_open(path, framework="pt") as file:
        assert "first.weight" in file.keys() and "second.weight" not in file.keys()  # noqa: SIM118
    loaded = load(path, NETS["shared parameter"].model())
    assert loaded.first.weight is loaded.second.weight  # type: ignore[union-attr]


def test_a_composed_record_loads(tmp_path: Path) -> None:
    model = residual()
    once, first = _saved(tmp_path / "once.prunus", model)
    graph = trace(once, image())
    twice, second = remove(once, graph, random_plan(graph, 5))
    save(twice, first.compose(second), tmp_path / "twice.prunus")
    loaded = load(tmp_path / "twice.prunus", residual())
    assert torch.equal(loaded(image()), twice(image()))


def test_a_whole_network_can_be_saved(tmp_path: Path) -> None:
    model = residual()
    save(model, SurgeryRecord.nothing_removed(model), tmp_path / "whole.prunus")
    torch.manual_seed(5)
    assert torch.equal(load(tmp_path / "whole.prunus", NETS["residual identity"].build().eval())(image()), model(image()))


def test_precision_is_never_changed_silently(tmp_path: Path) -> None:
    path = tmp_path / "half.prunus"
    small, _ = _saved(path, residual())
    save(small.half(), SurgeryRecord.from_json(_record_text(path)), path)
    with pytest.raises(
        prunus.ArtifactError,
        match=r"holds `stem\.0\.weight` as torch\.float16, this network as torch\.float32: bring the full-size",
    ):
        load(path, residual())
    assert {p.dtype for p in load(path, residual().half()).parameters()} == {torch.float16}


def _record_text(path: Path) -> str:
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()["prunus.record"]


# -- files that can't be loaded


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _header_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("not a network")


def _pickle(path: Path) -> None:
    torch.save(residual().state_dict(), path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_truncated, _header_only, _empty, _text, _pickle, _folder])
def test_a_damaged_file_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "small.prunus"
    _saved(path)
    damage(path)
    with pytest.raises(
        prunus.ArtifactError, match=r"small\.prunus can't be read: it is truncated or not a file that prunus\.save wrote"
    ):
        load(path, residual())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(prunus.ArtifactError, match=r"^there is no file .*gone\.prunus$"):
        load(tmp_path / "gone.prunus", residual())


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file(residual().state_dict(), path, {"format": "pt"})
    with pytest.raises(
        prunus.ArtifactError, match=r"is a safetensors file but not one that prunus\.save wrote: it holds no surgery record"
    ):
        load(path, residual())


def test_a_wrong_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.prunus"
    small, _ = _saved(path)
    with pytest.raises(prunus.ArtifactError, match=r"the record is of another architecture: this network has no `\S+`"):
        load(path, NETS["chain"].model())
    wider = residual()
    wider.head = nn.Linear(6, 4)
    with pytest.raises(
        prunus.ArtifactError, match="another architecture: names or shapes of parameters differ; build the full-size network"
    ):
        load(path, wider)
    with pytest.raises(prunus.ArtifactError, match=r"another architecture: `\S+` should have \d+ entries on axis 0, here it is"):
        load(path, small)  # the small network instead of the full-size one


def test_tensors_that_contradict_the_record_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.prunus"
    small, record = _saved(path)
    tensors = {k: v.clone() for k, v in small.state_dict().items()}
    metadata = {"prunus.record": record.to_json()}
    safetensors.torch.save_file(tensors | {"head.bias": torch.zeros(7)}, path, metadata)
    with pytest.raises(prunus.ArtifactError, match=r"is damaged: `head\.bias` is \(7,\), its record says \(3,\)"):
        load(path, residual())
    del tensors["head.bias"]
    safetensors.torch.save_file(tensors | {"extra": torch.zeros(1)}, path, metadata)
    with pytest.raises(prunus.ArtifactError, match=r"missing \['head\.bias'\], unexpected \['extra'\]"):
        load(path, residual())
    safetensors.torch.save_file(tensors, path, {"prunus.record": "{"})
    with pytest.raises(prunus.ArtifactError, match=r"small.prunus can't be read: .*it isn't JSON"):
        load(path, residual())


# -- saving fails


INTACT = "a file that was there before is intact$"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.prunus"
    small, record = _saved(path)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(prunus.ArtifactError, match=rf"^can't write .*small\.prunus: No space left on device; {INTACT}"):
        save(small.half(), record, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["small.prunus"]


def test_a_write_that_stops_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    """The system itself refuses after 1000 bytes, wherever the code writes."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "small.prunus"
    small, record = _saved(path)
    before = path.read_bytes()
    assert len(before) > 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(prunus.ArtifactError, match=rf"^can't write .*small\.prunus: File too large; {INTACT}"):
            save(small.half(), record, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["small.prunus"]


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    model = residual()
    with pytest.raises(prunus.ArtifactError, match=r"^can't write .*nowhere/small\.prunus: No such file or directory"):
        save(model, SurgeryRecord.nothing_removed(model), tmp_path / "nowhere" / "small.prunus")
