"""Figures of a run for TensorBoard or trackio, through Accelerate's trackers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker

from prunus.errors import TrainingError
from prunus.training.log import EpochLog

Tool: TypeAlias = Literal["tensorboard", "trackio"]
_INSTALL = {"tensorboard": "prunus[track]", "trackio": "prunus[trackio]"}


class EpochTracker:
    """Writes the epochs of one training run: `epoch` is for ``on_epoch`` of `train`."""

    _tracker: GeneralTracker

    def epoch(self, log: EpochLog) -> None:
        """Loss, rate and accuracy; of a sparsity method what is left of MACs and widths, and the strengths' histogram."""
        values: dict[str, Any] = {"loss": log.loss, "lr": log.lr}
        if log.accuracy is not None:
            values["accuracy"] = log.accuracy
        if log.sparsity is not None:
            values["sparsity/macs"] = log.sparsity["macs"]
            values |= {f"widths/{name}": width for name, width in log.sparsity["widths"].items()}
            values |= self._histogram("sparsity/strengths", log.sparsity["histogram"], log.epoch)
        self._tracker.log(values, step=log.epoch)

    def _histogram(self, name: str, histogram: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Write a histogram, or give it back as a value to be written with the others."""
        raise NotImplementedError

    def finish(self) -> None:
        """Close what is open."""
        self._tracker.finish()


class _TensorBoard(EpochTracker):
    def __init__(self, folder: Path, run: str) -> None:
        self._tracker = TensorBoardTracker(run, logging_dir=str(folder))
        self._tracker.start()

    def _histogram(self, name: str, histogram: Mapping[str, Any], step: int) -> dict[str, Any]:
        edges, counts = torch.tensor(histogram["edges"]), torch.tensor(histogram["counts"])
        middles = ((edges[1:] + edges[:-1]) / 2).repeat_interleave(counts)
        cast("Any", self._tracker).writer.add_histogram(name, middles, step)
        return {}


class _Trackio(EpochTracker):
    def __init__(self, project: str, run: str, resume: bool) -> None:
        try:
            from accelerate.tracking import TrackioTracker
        except ImportError as error:
            raise TrainingError(
                'log_with = "trackio" needs a newer Accelerate, which has a tracker for it: install prunus[trackio]'
            ) from error
        self._trackio: Any = import_module("trackio")
        options: dict[str, Any] = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
        self._tracker = TrackioTracker(project, name=run, resume="allow" if resume else "never", **options)
        with redirect_stdout(io.StringIO()):  # it says where it writes
            try:
                self._tracker.start()
            except ValueError as error:
                raise TrainingError(f'log_with = "trackio" can\'t open the project {project!r}: {error}') from error

    def _histogram(self, name: str, histogram: Mapping[str, Any], step: int) -> dict[str, Any]:
        return {name: self._trackio.Histogram(np_histogram=(histogram["counts"], histogram["edges"]))}

    def finish(self) -> None:
        """The tracker's own leaves the run open for whatever is logged next."""
        if PartialState().is_main_process:
            with redirect_stdout(io.StringIO()):
                self._trackio.finish()


def track(tool: Tool, folder: Path, project: str, stage: str, *, resume: bool = False) -> EpochTracker:
    """A tracker of one training run of a recipe, ``stage`` of the run in ``folder``.

    TensorBoard's files go into ``folder / "logs" / stage``. trackio keeps its own database ($TRACKIO_DIR, else in the cache of
    Hugging Face) and needs neither a network nor an account: the run is called "FOLDER stage" there, in ``project``; with
    ``resume`` it is continued.

    Raises:
        TrainingError: the tool isn't installed, or doesn't take the project's name.
    """
    if find_spec(tool) is None:
        raise TrainingError(
            f'log_with = "{tool}" needs the package {tool}, which isn\'t installed: install {_INSTALL[tool]}, or leave '
            "log_with out"
        )
    PartialState()  # trackers ask it for the main process
    if tool == "tensorboard":
        return _TensorBoard(folder / "logs", stage)
    return _Trackio(project, f"{folder.resolve().name} {stage}", resume)
