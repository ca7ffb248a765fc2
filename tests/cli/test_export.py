"""``prunus export``: what a run left, or a network and its pruned file, in other formats."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import prunus
from prunus.cli import app
from prunus.config import parse_recipe
from prunus.export import ROUTES
from prunus.export.sessions import Session
from prunus.pipeline.hub import without_folders
from prunus.pipeline.run import run
from prunus.sources import load_model

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

NETWORK = """
from torch import nn

def small(num_classes=4):
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def chunked(num_classes=4):
    return nn.Sequential(nn.Conv2d(3, 4, 3), Rank())

class Rank(nn.Module):
    def forward(self, x):
        import torch
        return torch.linalg.svdvals(x).sum((1, 2))[:, None].repeat(1, 4)
"""
SETTINGS = ("--runs", "3", "--images", "40", "--batch-size", "16")


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with every format that is always there."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "nets.py").write_text(NETWORK)
    tree = {
        "name": "mine",
        "model": {"source": f"{folder}/nets.py:small"},
        "data": {"source": "fake:3x10x10x4"},
        "train": {"epochs": 2, "lr": 0.05},
        "prune": {"budget": {"macs": 0.5}, "criterion": "random", "tolerance": 0.3},
        "recover": {"rungs": []},
        "export": {"latency_runs": 3, "formats": ["pt2", "openvino"]},
    }
    run(parse_recipe(tree), folder / "out")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return made


def full_network(made: Path) -> nn.Module:
    return load_model(f"{made}/nets.py:small", num_classes=4)


def test_a_recipe_asks_for_formats(made: Path) -> None:
    result = json.loads((made / "out" / "result.json").read_text())
    assert [row["format"] for row in result["exports"]] == ["onnx", "pt2", "openvino"]
    named = ["small.onnx", "small.pt2", "small.xml", "small.bin"]
    assert result["files"][3:] == named and all((made / "out" / name).exists() for name in named)
    for row in result["exports"]:
        assert row["max_error"] < 1e-4 and row["file_bytes"] < row["file_bytes_before"]
        assert row["latency_before"]["runs"] == row["latency_after"]["runs"] == 3


def test_a_missing_package_stops_a_run_before_it_trains(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe({**json.loads((made / "out" / "result.json").read_text())["recipe"]})
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(prunus.ExportError, match=r"openvino can't be imported"):
        run(recipe, tmp_path / "new")
    assert not list((tmp_path / "new").glob("stages/*")) if (tmp_path / "new").exists() else True


def test_the_folder_of_a_run_in_every_format(folder: Path) -> None:
    formats = [name for name in (*ROUTES, "hf") if name != "executorch"]
    done = call(
        "export",
        str(folder / "out"),
        *(a for name in formats for a in ("--format", name)),
        "--int8",
        *SETTINGS,
    )
    assert done.exit_code == 0, done.output
    result = json.loads(Path("exported/export.json").read_text())
    rows = {row["format"]: row for row in result["exports"]}
    assert list(rows) == ["onnx", "pt2", "openvino", "int8", "hf"] and result["images"] == 40
    for name in ("onnx", "pt2", "openvino"):
        row = rows[name]
        assert row["agreement"] == 1.0 and row["rows"] == 40 and row["max_error"] <= 1e-4 and row["notes"] == []
        assert row["file_bytes"] == sum((Path("exported") / file).stat().st_size for file in row["files"])
        assert row["file_bytes"] < row["file_bytes_before"] and row["latency_before"]["median_ms"] > 0
    int8 = rows["int8"]
    assert int8["images"] == 40 and int8["calibration_images"] == 128
    assert int8["accuracy_float"] == result["accuracy"] and 0.9 <= int8["agreement"] <= 1 and 0 < int8["error"] < 0.2
    assert f"int8: accuracy {int8['accuracy']:.2%}, float {int8['accuracy_float']:.2%} (" in done.stdout
    assert "calibrated on 128 training images; size and latency are beside the float file's" in done.stdout


def test_the_hugging_face_folder_loads_into_the_class_and_tells_the_run(folder: Path) -> None:
    done = call("export", str(folder / "out"), "--format", "hf", *SETTINGS)
    assert done.exit_code == 0, done.output
    small = prunus.load("exported/hf", full_network(folder)).eval()
    same = prunus.load(folder / "out" / "small.prunus", full_network(folder)).eval()
    x = torch.randn(2, 3, 10, 10)
    assert torch.equal(small(x), same(x))
    config = json.loads(Path("exported/hf/config.json").read_text())
    result = json.loads((folder / "out" / "result.json").read_text())
    assert config["model"] == "nets.py:small" and config["architectures"] == ["Sequential"]
    assert config["after"]["macs"] == result["networks"]["after"]["macs"] and config["budget"] == result["budget"]
    card = Path("exported/hf/README.md").read_text()
    asked = result["budget"][0]
    assert f"| macs | {asked['full']:,.0f} | {asked['requested']:,.0f} | {asked['achieved']:,.0f} | yes |" in card
    accuracy = result["stages"][-1]["accuracy"]
    assert f"| after pruning | {accuracy:.2%} |" in card and f"value: {accuracy}" in card and "library_name: prunus" in card
    assert str(folder) not in card and str(folder) not in Path("exported/hf/config.json").read_text()


def test_a_network_and_its_pruned_file_without_data(folder: Path) -> None:
    small = str(folder / "out" / "small.prunus")
    args = (f"{folder}/nets.py:small", "--argument", "num_classes=4", "--pruned", small, "--input", "3x10x10", "--runs", "3")
    done = call("export", *args, "--format", "pt2", "--format", "hf")
    assert done.exit_code == 0, done.output
    assert "compared on random inputs only: --data compares on test images" in done.stdout and "agrees" in done.stdout
    assert {p.name for p in Path("exported").iterdir()} == {"export.json", "small.pt2", "hf"}
    done = call("export", *args, "--int8")
    assert done.exit_code == 1 and "INT8 needs training images to measure the range of every activation on" in done.stderr


def test_what_is_refused_is_told_and_leaves_no_file(folder: Path) -> None:
    args = (f"{folder}/nets.py:chunked", "--input", "3x10x10", "--runs", "3")
    done = call("export", *args, "--format", "onnx", "--format", "pt2", "--json")
    assert done.exit_code == 1
    first, second = json.loads(done.stdout)["exports"]
    assert "Sequential can't be exported as onnx" in first["refused"] and "svd" in first["refused"]
    assert "refused" not in second and {p.name for p in Path("exported").iterdir()} == {"export.json", "small.pt2"}


def test_a_file_that_differs_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Session.__call__

    def shifted(self: Session, inputs: Any) -> list[torch.Tensor]:
        return [output + 1e-3 * output.abs().max() for output in original(self, inputs)]

    monkeypatch.setattr(Session, "__call__", shifted)
    done = call("export", str(folder / "out"), *SETTINGS)
    assert done.exit_code == 1 and "onnx was refused: the onnx file of Sequential was not kept" in done.stdout
    assert [p.name for p in Path("exported").iterdir()] == ["export.json"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--format", "onx"], "unknown export format 'onx': did you mean onnx?"),
        (["--input", "3x9x9"], "is the folder of a run, whose recipe tells what --input would: leave it out"),
    ],
)
def test_usage(folder: Path, args: list[str], message: str) -> None:
    done = call("export", str(folder / "out"), *args)
    assert done.exit_code == 2 and message in " ".join(done.stderr.split())


def test_a_folder_that_is_no_run(folder: Path, tmp_path: Path) -> None:
    done = call("export", str(tmp_path))
    assert done.exit_code == 1 and "isn't the folder of a finished run: it needs recipe.json and small.prunus" in done.stderr


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("folder:/home/me/photos.zip", "folder:photos.zip"),
        ("/home/me/net.py:build", "net.py:build"),
        ("torchvision:resnet18", "torchvision:resnet18"),
        ("digits", "digits"),
        (None, None),
    ],
)
def test_sources_are_shown_without_folders(source: str | None, shown: str | None) -> None:
    assert without_folders(source) == shown
