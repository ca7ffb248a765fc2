"""A run in two processes is the run in one, with the same images in a step; one process writes, and errors reach all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from prunus.cli import app
from prunus.config import load_recipe
from prunus.errors import ProcessError, RecipeError
from prunus.pipeline.run import run
from prunus.training.processes import Processes, share
from shards import write_shards

ROOT = Path(__file__).parents[2]
RECIPE = """
name = "two"
[model]
source = "cifar:resnet8-projection"
[data]
train_limit = 128
batch_size = 32
[train]
epochs = 1
lr = 0.02
warmup_epochs = 0.2
freeze_batch_norm = true        # its statistics would be those of each process's own images
[prune]
budget = { macs = 0.6 }
criterion = "taylor"
batches = 3
tolerance = 0.05
[recover]
rungs = ["recalibrate", "fine-tune"]
epochs = 1
warmup_epochs = 0.2
freeze_batch_norm = true
recalibrate_batches = 0
[compute]
threads = 1
[export]
onnx = false
latency_runs = 3
"""


def two(folder: Path, *arguments: str) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of both processes of one command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "prunus", *arguments]
    runs = [
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        outputs = [one.communicate(timeout=300) for one in runs]
    finally:
        for one in runs:
            one.kill()
    return [(one.returncode, out, error) for one, (out, error) in zip(runs, outputs, strict=True)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder, and the results of one process and of two."""
    pytest.importorskip("plotly")
    folder = tmp_path_factory.mktemp("processes")
    (folder / "two.toml").write_text(RECIPE)
    alone = run(load_recipe(folder / "two.toml"), folder / "one")
    (code, out, error), (other_code, other_out, other_error) = two(folder, "run", "two.toml", "--out", "two")
    assert (code, other_code) == (0, 0), error + other_error
    assert "written to two" in out and other_out == "", "one of them speaks"
    return folder, alone, json.loads((folder / "two" / "result.json").read_text())


def test_two_processes_give_what_one_gives(both: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    folder, alone, shared = both
    assert shared["groups"] == alone["groups"] and any(group["after"] < group["before"] for group in shared["groups"])
    for one, other in zip(alone["stages"], shared["stages"], strict=True):
        assert (one["stage"], one["accuracy"], one["confusion"]) == (other["stage"], other["accuracy"], other["confusion"])
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
    for name in ("base", "round-1-prune", "round-1-fine-tune"):
        here, there = (load_file(folder / which / "stages" / f"{name}.prunus") for which in ("one", "two"))
        assert here.keys() == there.keys()
        for key, value in here.items():
            torch.testing.assert_close(there[key], value, rtol=1e-5, atol=1e-6)
    epochs = [one["training"]["fine-tuning"][0]["loss"] for one in (alone, shared)]
    assert epochs[0] == pytest.approx(epochs[1], rel=1e-6)


def test_the_main_process_refuses_for_both(both: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    folder, _, _ = both
    before = {path: path.stat().st_mtime_ns for path in (folder / "two").rglob("*")}
    (code, _, error), (other_code, _, other_error) = two(folder, "run", "two.toml", "--out", "two")
    assert code != 0 and other_code != 0
    assert "already holds a run" in error and "the main process of this run failed" in other_error
    assert {path: path.stat().st_mtime_ns for path in (folder / "two").rglob("*")} == before


def test_two_processes_scan_as_one(tmp_path: Path) -> None:
    """They share 101 images, of which one gets more."""
    pytest.importorskip("plotly")
    command = ["sensitivity", "--model", "cifar:resnet8-projection", "--data", "digits", "--shares", "50", "--images", "101"]
    (code, out, error), (other_code, other_out, other_error) = two(tmp_path, *command, "--out", "two")
    assert (code, other_code) == (0, 0), error + other_error
    assert "written to two" in out and other_out == "", "one of them speaks"
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "one")])
    assert done.exit_code == 0, done.stderr
    one, shared = (json.loads((tmp_path / name / "sensitivity.json").read_text()) for name in ("one", "two"))
    assert len(one["points"]) == 7 and shared["points"] == one["points"] and shared["network"] == one["network"]


@pytest.mark.slow
def test_streamed_images_are_divided_evenly_or_not(tmp_path: Path) -> None:
    """Shards of very different sizes, augmented; a step in three parts in each of two processes is the step of one."""
    write_shards(tmp_path / "shards", {"train": (31, 7, 50, 8), "validation": (9, 14), "test": (13, 8)})
    data = """source = "wds:shards"\naugment = "crop-flip"\nshuffle_buffer = 20\neval_batch_size = 8"""
    text = RECIPE.replace("train_limit = 128", data)
    (tmp_path / "one.toml").write_text(text)
    (tmp_path / "two.toml").write_text(text.replace("threads = 1", "threads = 1\naccumulation_steps = 3"))
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    alone = [sys.executable, "-m", "prunus", "run", "one.toml", "--out", "one"]
    subprocess.run(alone, cwd=tmp_path, env=env, check=True, capture_output=True)
    (code, _, error), (other_code, _, other_error) = two(tmp_path, "run", "two.toml", "--out", "two")
    assert (code, other_code) == (0, 0), error + other_error
    one, other = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["groups"] == other["groups"]
    for here, there in zip(one["stages"], other["stages"], strict=True):
        assert here["count"] == there["count"] == 21 and here["confusion"] == there["confusion"]
    for key, value in load_file(tmp_path / "one" / "stages" / "round-1-fine-tune.prunus").items():
        there = load_file(tmp_path / "two" / "stages" / "round-1-fine-tune.prunus")[key]
        torch.testing.assert_close(there, value, rtol=1e-5, atol=1e-6)


def test_a_step_is_divided_evenly() -> None:
    assert share(64, 1) == 64 and share(64, 4) == 16
    with pytest.raises(RecipeError, match=r"data\.batch_size = 30 can't be divided among 4 processes"):
        share(30, 4)


def test_one_process_does_everything_itself() -> None:
    alone = Processes()
    assert (alone.count, alone.main) == (1, True)
    assert alone.by_main(lambda: 5) == 5
    calls: list[int] = []
    assert alone.main_first(lambda: calls.append(1) or len(calls)) == 1, "once"
    alone.agree("nothing", lambda: "1")
    with pytest.raises(ZeroDivisionError):
        alone.by_main(lambda: 1 // 0)


def test_disagreement_names_what_and_who(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes()
    processes.count = 2
    monkeypatch.setattr("prunus.training.processes.gather_object", lambda values: [*values, "other"])
    with pytest.raises(ProcessError, match=r"don't agree on the network \(process 0: mine, process 1: other\)"):
        processes.agree("the network", lambda: "mine")
