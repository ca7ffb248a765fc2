"""Figures of a run for TensorBoard, trackio or MLflow, through Accelerate's trackers."""

from __future__ import annotations

import io
import logging
import os
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

Tool: TypeAlias = Literal["tensorboard", "trackio", "mlflow"]
_INSTALL = {"tensorboard": "prunus[track]", "trackio": "prunus[trackio]", "mlflow": "prunus[mlflow]"}
_STORE = "MLFLOW_TRACKING_URI"


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


class _MLflow(EpochTracker):
    """Has no place for histograms, which are left out."""

    def __init__(self, folder: Path, project: str, run: str, resume: bool) -> None:
        from accelerate.tracking import MLflowTracker

        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import, which would start it
        mlflow: Any = import_module("mlflow")
        for name in ("mlflow", "alembic"):  # they tell of every table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        self._own_store = _STORE not in os.environ
        if self._own_store:
            folder.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        earlier: list[Any] = []
        if resume and (experiment := mlflow.get_experiment_by_name(project)) is not None:
            found = mlflow.MlflowClient().search_runs([experiment.experiment_id])
            earlier = [run_.info.run_id for run_ in found if run_.info.run_name == run]
        self._tracker = MLflowTracker(project, run_name=run, run_id=earlier[0] if earlier else None)
        self._tracker.start()

    def _histogram(self, name: str, histogram: Mapping[str, Any], step: int) -> dict[str, Any]:
        return {}

    def finish(self) -> None:
        """Setting the store put it into the environment, where the next run would take it for the user's."""
        super().finish()
        if self._own_store:
            os.environ.pop(_STORE, None)


def track(tool: Tool, folder: Path, project: str, stage: str, *, resume: bool = False) -> EpochTracker:
    """A tracker of one training run of a recipe, ``stage`` of the run in ``folder``.

    TensorBoard's files go into ``folder / "logs" / stage``. trackio keeps its own database ($TRACKIO_DIR, else in the cache of
    Hugging Face) and needs neither a network nor an account: the run is called "FOLDER stage" there, in ``project``; with
    ``resume`` it is continued. MLflow's store is the one that $MLFLOW_TRACKING_URI names, else the file ``folder / "logs" /
    "mlflow.db"``; names are trackio's, ``resume`` continues the run, and telemetry is switched off.

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
    if tool == "mlflow":
        return _MLflow(folder / "logs", project, f"{folder.resolve().name} {stage}", resume)
    return _Trackio(project, f"{folder.resolve().name} {stage}", resume)
