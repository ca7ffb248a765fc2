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


@pytest.mark.parametrize(("tool", "extra"), [("tensorboard", "track"), ("trackio", "trackio"), ("mlflow", "mlflow")])
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


MLFLOW = """
import json, os, socket, sys
from pathlib import Path

def refuse(*args):
    raise OSError("nothing outside may be reached")

socket.socket.connect = refuse
from prunus.training import tracking
from prunus.training.log import EpochLog

folder, sparsity = Path(sys.argv[1]) / "out", json.loads(sys.argv[2])
for number, resume in ((1, False), (2, True)):
    tracker = tracking.track("mlflow", folder, "digits", "round-1-sparsity", resume=resume)
    tracker.epoch(EpochLog(number, 3.5 - number, 0.1, 1.0, 10.0, sparsity=sparsity if number == 2 else None))
    tracker.finish()
    assert "MLFLOW_TRACKING_URI" not in os.environ
import mlflow
mlflow.set_tracking_uri(f"sqlite:///{folder.resolve()}/logs/mlflow.db")
client = mlflow.MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
losses = [[m.step, m.value] for m in client.get_metric_history(runs[0].info.run_id, "loss")]
print(json.dumps([[run.info.run_name, run.info.status] for run in runs] + [losses, runs[0].data.metrics]))
"""


def test_mlflow_has_the_epochs_in_a_local_file_without_a_network(tmp_path: Path) -> None:
    """A resumed run is the same run; the store of one run isn't the next one's."""
    if find_spec("mlflow") is None:
        pytest.skip("mlflow isn't installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-c", MLFLOW, str(tmp_path), json.dumps(SPARSITY)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert ran.returncode == 0, ran.stderr
    run, losses, metrics = json.loads(ran.stdout)  # and nothing else is printed
    assert run == ["out round-1-sparsity", "FINISHED"] and losses == [[1, 2.5], [2, 1.5]]
    assert metrics["sparsity/macs"] == 70 and metrics["widths/two"] == 9 and metrics["lr"] == 0.1
    assert {path.name for path in tmp_path.rglob("*.db")} == {"mlflow.db"}


def test_trackio_refuses_a_name_that_it_reserves(tmp_path: Path) -> None:
    if find_spec("trackio") is None:
        pytest.skip("trackio isn't installed")
    with pytest.raises(TrainingError, match="can't open the project 'registry-digits'"):
        tracking.track("trackio", tmp_path, "registry-digits", "train")
