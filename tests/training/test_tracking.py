"""What TensorBoard and trackio get of a training run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from prunus.errors import TrainingError
from prunus.training import tracking
from prunus.training.log import EpochLog

SPARSITY = {"macs": 70, "widths": {"one": 4, "two": 9}, "histogram": {"edges": [0.0, 0.5, 1.0], "counts": [3, 1]}}


def test_epochs_are_in_the_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = tracking.track("tensorboard", tmp_path, "digits", "round-1-sparsity")
    tracker.epoch(EpochLog(1, 2.5, 0.1, 1.0, 10.0))
    tracker.epoch(EpochLog(2, 1.5, 0.05, 1.0, 10.0, accuracy=0.75, sparsity=SPARSITY))
    tracker.finish()
    found = EventAccumulator(str(tmp_path / "logs" / "round-1-sparsity")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 2.5), (2, 1.5)]
    assert [(e.step, e.value) for e in found.Scalars("accuracy")] == [(2, 0.75)]
    assert found.Scalars("sparsity/macs")[0].value == 70 and found.Scalars("widths/two")[0].value == 9
    (histogram,) = found.Histograms("sparsity/strengths")
    assert histogram.step == 2 and histogram.histogram_value.num == 4 and histogram.histogram_value.sum == pytest.approx(1.5)


@pytest.mark.parametrize(("tool", "extra"), [("tensorboard", "track"), ("trackio", "trackio")])
def test_without_the_tool_the_run_says_what_to_install(
    tool: tracking.Tool, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    told = rf'log_with = "{tool}" needs the package {tool}, .*install prunus\[{extra}\], or leave log_with out'
    with pytest.raises(TrainingError, match=told):
        tracking.track(tool, tmp_path, "digits", "train")
    assert not list(tmp_path.iterdir())


TRACKIO = """
import json, socket, sys
from pathlib import Path

def refuse(*args):
    raise OSError("nothing outside may be reached")

socket.socket.connect = refuse
from prunus.training import tracking
from prunus.training.log import EpochLog

folder, sparsity = Path(sys.argv[1]) / "out", json.loads(sys.argv[2])
for number, resume in ((1, False), (2, True)):
    tracker = tracking.track("trackio", folder, "digits", "round-1-sparsity", resume=resume)
    tracker.epoch(EpochLog(number, 3.5 - number, 0.1, 1.0, 10.0, sparsity=sparsity if number == 2 else None))
    tracker.finish()
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps([SQLiteStorage.get_runs("digits"), SQLiteStorage.get_logs("digits", "out round-1-sparsity")]))
"""


def test_trackio_has_the_epochs_without_a_network(tmp_path: Path) -> None:
    """In a process of its own, for trackio reads its folder's name when it is imported; a resumed run is the same run."""
    if find_spec("trackio") is None:
        pytest.skip("trackio isn't installed")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error::UserWarning:trackio", "-c", TRACKIO, str(tmp_path), json.dumps(SPARSITY)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert ran.returncode == 0, ran.stderr
    runs, logs = json.loads(ran.stdout)  # and nothing else is printed
    assert runs == ["out round-1-sparsity"]
    assert [(log["step"], log["loss"], log["lr"]) for log in logs] == [(1, 2.5, 0.1), (2, 1.5, 0.1)]
    assert logs[1]["sparsity/macs"] == 70 and logs[1]["widths/two"] == 9 and "sparsity/macs" not in logs[0]
    assert logs[1]["sparsity/strengths"] == {"_type": "trackio.histogram", "bins": [0.0, 0.5, 1.0], "values": [3, 1]}


def test_trackio_refuses_a_name_that_it_reserves(tmp_path: Path) -> None:
    if find_spec("trackio") is None:
        pytest.skip("trackio isn't installed")
    with pytest.raises(TrainingError, match="can't open the project 'registry-digits'"):
        tracking.track("trackio", tmp_path, "registry-digits", "train")
