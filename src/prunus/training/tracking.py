"""Figures of a run for TensorBoard, through Accelerate's tracker."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.tracking import TensorBoardTracker

from prunus.errors import TrainingError
from prunus.training.log import EpochLog


class EpochTracker:
    """Writes the epochs of one training run into ``folder / run``, for TensorBoard: `epoch` is for ``on_epoch`` of `train`.

    Raises:
        TrainingError: tensorboard isn't installed.
    """

    def __init__(self, folder: Path, run: str) -> None:
        if find_spec("tensorboard") is None:
            raise TrainingError(
                'log_with = "tensorboard" needs the package tensorboard, which isn\'t installed: install prunus[track], or leave '
                "log_with out"
            )
        PartialState()  # the tracker asks it for the main process
        self._tracker = TensorBoardTracker(run, logging_dir=str(folder))
        self._tracker.start()

    def epoch(self, log: EpochLog) -> None:
        """Loss, rate and accuracy; of a sparsity method what is left of MACs and widths, and the strengths' histogram."""
        values: dict[str, Any] = {"loss": log.loss, "lr": log.lr}
        if log.accuracy is not None:
            values["accuracy"] = log.accuracy
        if log.sparsity is not None:
            values["sparsity/macs"] = log.sparsity["macs"]
            values |= {f"widths/{name}": width for name, width in log.sparsity["widths"].items()}
            edges = torch.tensor(log.sparsity["histogram"]["edges"])
            counts = torch.tensor(log.sparsity["histogram"]["counts"])
            strengths = ((edges[1:] + edges[:-1]) / 2).repeat_interleave(counts)
            cast("Any", self._tracker.writer).add_histogram("sparsity/strengths", strengths, log.epoch)
        self._tracker.log(values, step=log.epoch)

    def finish(self) -> None:
        """Close what is open."""
        self._tracker.finish()
