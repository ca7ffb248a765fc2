"""What TensorBoard gets of a training run."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunus.errors import TrainingError
from prunus.training import tracking
from prunus.training.log import EpochLog

SPARSITY = {"macs": 70, "widths": {"one": 4, "two": 9}, "histogram": {"edges": [0.0, 0.5, 1.0], "counts": [3, 1]}}


def test_epochs_are_in_the_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = tracking.EpochTracker(tmp_path, "round-1-sparsity")
    tracker.epoch(EpochLog(1, 2.5, 0.1, 1.0, 10.0))
    tracker.epoch(EpochLog(2, 1.5, 0.05, 1.0, 10.0, accuracy=0.75, sparsity=SPARSITY))
    tracker.finish()
    found = EventAccumulator(str(tmp_path / "round-1-sparsity")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 2.5), (2, 1.5)]
    assert [(e.step, e.value) for e in found.Scalars("accuracy")] == [(2, 0.75)]
    assert found.Scalars("sparsity/macs")[0].value == 70 and found.Scalars("widths/two")[0].value == 9
    (histogram,) = found.Histograms("sparsity/strengths")
    assert histogram.step == 2 and histogram.histogram_value.num == 4 and histogram.histogram_value.sum == pytest.approx(1.5)


def test_without_tensorboard_the_run_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"needs the package tensorboard, .*install prunus\[track\], or leave log_with out"):
        tracking.EpochTracker(tmp_path, "train")
    assert not list(tmp_path.iterdir())
