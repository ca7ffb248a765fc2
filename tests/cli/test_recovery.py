"""``prunus recover`` and ``prunus lr-range``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import prunus
from prunus.cli import app
from prunus.config import parse_recipe
from prunus.pipeline.run import run
from prunus.sources import load_model

NETWORK = """
from torch import nn

def small(num_classes=4):
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""
COMMON = ("nets.py:small", "pruned.prunus", "--data", "fake:3x10x10x4")


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained network, as weights and as Prunus saves it, and what pruning left of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "nets.py").write_text(NETWORK)
    tree = {
        "model": {"source": "nets.py:small"},
        "data": {"source": "fake:3x10x10x4"},
        "train": {"epochs": 3, "lr": 0.05},
        "prune": {"budget": {"macs": 0.5}, "criterion": "random", "tolerance": 0.3},
        "recover": {"rungs": []},
        "export": {"latency_runs": 3, "onnx": False},
    }
    run(parse_recipe(tree), tmp_path / "out")
    (tmp_path / "out" / "small.prunus").rename(tmp_path / "pruned.prunus")
    full = prunus.load(tmp_path / "out" / "stages" / "base.prunus", load_model("nets.py:small", num_classes=4))
    save_file({name: value.contiguous() for name, value in full.state_dict().items()}, tmp_path / "full.safetensors")
    return tmp_path


def test_recover_leaves_a_network_a_page_and_json(folder: Path) -> None:
    args = ("--weights", "full.safetensors", "--set", "recover.epochs=1", "--set", "recover.sample_batches=4")
    done = call("recover", *COMMON, *args, "--rungs", "compensate,reconstruct,recalibrate,fine-tune,distill", "--out", "r")
    assert done.exit_code == 0, done.stderr
    result = json.loads((folder / "r" / "recovery.json").read_text())
    titles = ["nothing: as given", "compensation", "reconstruction", "recalibration", "fine-tuning", "distillation"]
    assert [row["rung"] for row in result["ladder"]] == titles and all(title in done.stdout for title in titles)
    assert result["ladder"][2]["loss"] < result["ladder"][0]["loss"], "least squares brings it nearer to the unpruned network"
    fresh = load_model("nets.py:small", num_classes=4)
    recovered, before = prunus.load("r/recovered.prunus", fresh), prunus.load("pruned.prunus", fresh)
    assert [p.shape for p in recovered.parameters()] == [p.shape for p in before.parameters()]
    assert not torch.equal(recovered[3].weight, before[3].weight)
    page = (folder / "r" / "recovery.html").read_text()
    assert "Recovery of a pruned network" in page and "least squares" not in page and "reconstruction" in page
    again = call("recover", *COMMON, *args, "--rungs", "recalibrate", "--out", "r")
    assert again.exit_code == 2 and "already holds a run: continue it with --resume" in again.stderr


def test_recover_resumes_to_the_same_network(folder: Path) -> None:
    args = ("recover", *COMMON, "--full", "out/stages/base.prunus", "--preset", "quick", "--set", "recover.epochs=2", "--json")
    first = json.loads(call(*args, "--out", "r").stdout)
    kept = (folder / "r" / "recovered.prunus").read_bytes()
    for name in ("fine-tune.json", "fine-tune.prunus"):
        (folder / "r" / "stages" / name).unlink()
    (folder / "r" / "recovered.prunus").unlink()
    second = json.loads(call(*args, "--out", "r", "--resume").stdout)
    assert (folder / "r" / "recovered.prunus").read_bytes() == kept
    assert [row["accuracy"] for row in first["ladder"]] == [row["accuracy"] for row in second["ladder"]]
    assert first["recipe"]["recover"]["ema"] == 0.98 and len(first["training"]["fine-tuning"]) == 2


def test_what_recover_refuses(folder: Path) -> None:
    result = call("recover", *COMMON)
    assert result.exit_code == 2 and "give its weights with --weights, or its file with --full" in result.stderr
    result = call("recover", *COMMON, "--full", "out/stages/base.prunus", "--rungs", "pray")
    assert result.exit_code == 2 and "recover.rungs.0: Input should be 'compensate'" in result.stderr
    result = call("recover", "cifar:resnet20", *COMMON[1:], "--weights", "full.safetensors", "--out", "other")
    assert result.exit_code == 1 and not (folder / "other").exists()
    assert "is of another architecture" in result.stderr


def test_lr_range_suggests_a_rate(folder: Path) -> None:
    args = ("lr-range", "nets.py:small", "--data", "fake:3x10x10x4", "--weights", "full.safetensors", "--steps", "20")
    found = json.loads(call(*args, "--json").stdout)
    assert len(found["rates"]) == len(found["smoothed"]) <= 20 and found["suggested"] == found["lowest_at"] / 10
    shown = call(*args, "--highest", "100")
    assert shown.exit_code == 0, shown.stderr
    assert "suggested learning rate" in shown.stdout
    pruned = json.loads(call(*args, "--pruned", "pruned.prunus", "--json").stdout)
    assert pruned["losses"] != found["losses"]
    assert call(*args, "--optimizer", "adam").exit_code == 2
