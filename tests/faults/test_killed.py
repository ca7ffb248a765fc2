"""Runs that are killed, or asked to stop, at any instant and resumed have the result of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "OMP_NUM_THREADS": "1"}


def killed(folder: Path, seed: int, count: int) -> list[dict[str, list[bool]]]:
    """A row for each run that was killed: whether it had ``ended`` by then, and whether its results came out the ``same``."""
    command = [sys.executable, str(HERE / "killed_runs.py"), str(folder), str(seed), str(count)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_killed_run_has_the_same_result(tmp_path: Path) -> None:
    (row,) = killed(tmp_path, seed=1, count=1)
    assert row["same"] == [True, True], row


@pytest.mark.slow
def test_twenty_instants(tmp_path: Path) -> None:
    rows = killed(tmp_path, seed=0, count=20)
    assert len(rows) == 20 and all(row["same"] == [True, True] for row in rows), rows
    assert sum(not all(row["ended"]) for row in rows) >= 10, "most were really killed before they ended"


RECIPE = """
name = "small"
[model]
source = "cifar:resnet8-projection"
[data]
source = "digits"
[train]
epochs = 50
[prune]
budget = { macs = 0.5 }
criterion = "l1"
"""


def test_a_request_to_stop_says_how_to_go_on(tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(RECIPE)
    code = "import sys; from prunus.cli import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", code, "run", str(recipe), "--out", str(out)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "train.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert " ".join(told.split()) == f"stopped; the same command with --resume continues the run in {out}"
