"""One process prunes, proves, saves and loads over and over: nothing piles up and nothing drifts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read as Linux tells it")
def test_five_hundred_cycles(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), str(tmp_path), "500"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    warm, *later = [memory for memory, _ in found["states"][9:]]  # behind 100 cycles
    assert len(later) == 40 and max(later) <= 1.05 * warm, (warm, max(later))
    assert len({files for _, files in found["states"]}) == 1
    assert found["outputs"] == 1
