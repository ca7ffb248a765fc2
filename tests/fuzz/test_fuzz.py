"""Damaged and hostile files, read by every reader: typed errors only, within 5 s and 1 GB, and nothing written elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")
pytest.importorskip("torchvision")
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of memory are Linux's")
CHILD = Path(__file__).with_name("child.py")
SEED = 2024


def read_damaged(folder: Path, first: int, last: int) -> tuple[list[str], dict[str, int]]:
    """What was wrong with the files of these numbers, and how many came to what."""
    folder.mkdir()
    paths = os.pathsep.join([str(CHILD.parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CHILD), str(folder), str(SEED), str(first), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [f"{line['number']} {line['file']}: {line['wrong']}" for line in lines if "wrong" in line]
    counts = next((line["counts"] for line in lines if "counts" in line), {})
    if done.returncode or not counts:
        at = [line for line in lines if "at" in line][-1:]
        wrong.append(f"the process ended with {done.returncode} at {at}: {done.stderr[-3000:]}")
    wrong += [f"{path} was written" for path in folder.iterdir() if path.name != "inside"]
    return wrong, counts


def test_some_damaged_files(tmp_path: Path) -> None:
    wrong, counts = read_damaged(tmp_path / "sandbox", 0, 300)
    assert not wrong, "\n".join(wrong)
    assert sum(counts.values()) == 300
    assert sum(count for name, count in counts.items() if not name.endswith(" read")) > 120


@pytest.mark.slow
@pytest.mark.parametrize("thousand", range(10))
def test_ten_thousand_damaged_files(tmp_path: Path, thousand: int) -> None:
    wrong, counts = read_damaged(tmp_path / "sandbox", 1_000 * thousand, 1_000 * (thousand + 1))
    assert not wrong, "\n".join(wrong)
    assert sum(counts.values()) == 1_000
