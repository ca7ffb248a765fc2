"""A run on two machines, as far as one can be two: network namespaces with addresses and links of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MACHINES = ("prunus-a", "prunus-b")
RECIPE = """
name = "machines"
[model]
source = "cifar:resnet8-projection"
[data]
train_limit = 128
batch_size = 32
[train]
epochs = 2
freeze_batch_norm = true
[prune]
budget = { macs = 0.6 }
tolerance = 0.05
[recover]
epochs = 1
freeze_batch_norm = true
[compute]
threads = 1
[export]
onnx = false
latency_runs = 3
"""
pytestmark = pytest.mark.slow


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    """10.77.0.1 and 10.77.0.2, which see each other and nothing else, not even one another's loopback."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` here (iproute2)")
    try:
        for name in MACHINES:
            ip("netns", "add", name)
    except subprocess.CalledProcessError:
        pytest.skip("network namespaces can't be made here: that takes root")
    try:
        ip("link", "add", "prunus-va", "type", "veth", "peer", "name", "prunus-vb")
        for number, name in enumerate(MACHINES, 1):
            link = f"prunus-v{name[-1]}"
            ip("link", "set", link, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in MACHINES:
            ip("netns", "del", name, check=False)


def start(folder: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """The command on both machines, each in a working directory of its own."""
    started = []
    for rank, name in enumerate(MACHINES):
        own = folder / name
        own.mkdir(exist_ok=True)
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(rank)]
        meeting = ["--master_addr", "10.77.0.1", "--master_port", "29500"]
        link = {"GLOO_SOCKET_IFNAME": f"prunus-v{name[-1]}", "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        command = ["ip", "netns", "exec", name, sys.executable, *launcher, *meeting, "-m", "prunus", *arguments]
        started.append(
            subprocess.Popen(
                command, cwd=own, env={**os.environ, **link}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return started


def ended(started: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    try:
        errors = [one.communicate(timeout=240)[1] for one in started]
    finally:
        for one in started:
            one.kill()
    return [(one.returncode, " ".join(error.split())) for one, error in zip(started, errors, strict=True)]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "machines.toml").write_text(RECIPE)
    return str(tmp_path / "machines.toml")


def test_one_run_on_two_machines(machines: None, recipe: str, tmp_path: Path) -> None:
    done = ended(start(tmp_path, "run", recipe, "--out", str(tmp_path / "run")))
    assert [code for code, _ in done] == [0, 0], done
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [(line["target"], line["met"]) for line in result["budget"]] == [("macs", True)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["machines.toml", *MACHINES, "run"]
    assert not any((tmp_path / name / "run").exists() for name in MACHINES), "one of them writes, in one place"


def test_folders_of_their_own_are_refused(machines: None, recipe: str, tmp_path: Path) -> None:
    done = ended(start(tmp_path, "run", recipe, "--out", "run"))
    for code, error in done:
        assert code == 1
        assert "error: run isn't one folder for all machines: process 1 of 2 doesn't find there" in error


def test_the_other_machine_goes_away(machines: None, recipe: str, tmp_path: Path) -> None:
    command = ["run", recipe, "--out", str(tmp_path / "run"), "--set", "train.epochs=30"]
    started = start(tmp_path, *command)
    end = time.monotonic() + 120
    while not any((tmp_path / "run" / "checkpoints").glob("*.safetensors")) and time.monotonic() < end:
        time.sleep(0.2)
    pids = subprocess.run(["ip", "netns", "pids", MACHINES[1]], check=True, capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", "-KILL", *pids], check=False)
    (code, error), _ = ended(started)
    assert code == 1
    assert "another process of this run ended or can't be reached; its own message says why. Go on with --resume." in error
    done = ended(start(tmp_path, *command, "--resume"))
    assert [code for code, _ in done] == [0, 0], done
