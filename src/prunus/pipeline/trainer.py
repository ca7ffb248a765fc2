"""Training and judging with a recipe's images, functions and settings: what every stage of a run shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from prunus.config import OptimizerConfig, Recipe
from prunus.errors import RecipeError
from prunus.sources import DataBundle, load_function, make_loader
from prunus.training import evaluate, fastest, measure_training_speed, memory_format, train
from prunus.training.distill import DistillationLoss
from prunus.training.features import FeatureLoss, feature_pairs
from prunus.training.objective import Objective
from prunus.training.placement import start_accelerator
from prunus.training.processes import Processes, share
from prunus.training.tracking import track
from prunus.training_hooks import SparsityMethod

SEEDS_PER_PHASE = 1000  # phases draw different images, and the seeds of recipes are small numbers
_MEASURED_BATCH = 32


@dataclass(frozen=True)
class Compute:
    """How the CPU is used, for a whole run."""

    threads: int
    channels_last: bool


@dataclass(frozen=True, eq=False)
class Teacher:
    """The unpruned network, and which of its channels the pruned one still has (`SurgeryRecord.kept`)."""

    model: nn.Module
    kept: Mapping[str, Mapping[int, Tensor]]


class Trainer:
    """One recipe's way to train and to evaluate; ``checkpoints`` is the folder for training under way."""

    def __init__(self, recipe: Recipe, data: DataBundle, checkpoints: Path, resume: bool) -> None:
        self.recipe, self.data, self.checkpoints, self.resume = recipe, data, checkpoints, resume
        named = recipe.functions
        self.loss_fn, self.metric, self.forward_fn = (
            load_function(source) if source else None for source in (named.loss, named.metric, named.forward)
        )
        self.compute = Compute(torch.get_num_threads(), False)
        self.processes = Processes()
        self.step_images = share(recipe.data.batch_size, self.processes.count)
        parts = recipe.compute.accumulation_steps
        if parts > self.step_images:
            raise RecipeError(
                f"compute.accumulation_steps = {parts} parts of a step can't be had of the {self.step_images} images that a "
                "process takes of it: lower it, or raise data.batch_size"
            )
        if (
            recipe.compute.mixed_precision != "auto"
        ):  # now: a process has one for all its work, evaluation before training included
            start_accelerator(recipe.compute.mixed_precision)

    @property
    def decoding(self) -> dict[str, Any]:
        """How many processes decode images, as `make_loader` takes it."""
        data = self.recipe.data
        return {"workers": data.workers, "worker_timeout": data.worker_timeout}

    def choose_compute(self, build: Callable[[], nn.Module]) -> dict[str, Any]:
        """Threads and memory format as the recipe wants them; what it leaves open is measured on a real batch."""
        wanted, cores = self.recipe.compute, torch.get_num_threads()
        threads = sorted({1, max(cores // 2, 1), cores}) if wanted.threads == "auto" else [wanted.threads or cores]
        formats = [False, True] if wanted.channels_last == "auto" else [wanted.channels_last]
        if len(threads) * len(formats) == 1:
            return {"threads": threads[0], "channels_last": formats[0]}
        size = min(self.recipe.data.batch_size, _MEASURED_BATCH)
        batch = next(iter(make_loader(self.data.calibration, batch_size=size, shuffle=False)))
        objective = Objective(self.loss_fn, self.metric, self.forward_fn)
        speeds = measure_training_speed(build(), batch, threads=threads, channels_last=formats, objective=objective)
        best = fastest(speeds)
        return {"threads": best.threads, "channels_last": best.channels_last, "measured": [asdict(speed) for speed in speeds]}

    def use(self, compute: Compute) -> None:
        """From now on, work with these settings; the number of threads is the process's."""
        self.compute = compute
        torch.set_num_threads(compute.threads)

    def fit(
        self,
        model: nn.Module,
        settings: OptimizerConfig,
        name: str,
        phase: int = 0,
        images: tuple[Dataset[Any], Dataset[Any]] | None = None,
        teacher: Teacher | None = None,
        method: SparsityMethod | None = None,
    ) -> list[dict[str, Any]]:
        """Train on ``images`` (training, validation), as a rule the recipe's, and return the epochs.

        Every ``phase`` draws its images, and their augmentation, in an order of its own. With a ``teacher`` the network learns
        from its answers and feature maps, too, as `recover` says. Where the weights of another than the last epoch were kept,
        that epoch is marked. A sparsity ``method`` has prepared the network already.
        """
        data = self.recipe.data
        chosen, judged = images or (self.data.train, self.data.validation)
        if teacher is not None:  # its loss smooths labels itself
            settings = settings.model_copy(update={"label_smoothing": 0.0})
        distilling = None if teacher is None else self._distilling(teacher, model)
        tool, folder = self.recipe.log_with if self.processes.main else None, self.checkpoints.parent
        tracker = None if tool is None else track(tool, folder, self.recipe.name, name, resume=self.resume)
        with distilling.watching() if distilling is not None else nullcontext():
            log = train(
                model,
                make_loader(chosen, batch_size=self.step_images, shuffle=True, **self.decoding, balance=data.balance),
                settings,
                seed=self.recipe.seed + SEEDS_PER_PHASE * phase,
                checkpoint=self.checkpoints / f"{name}.safetensors",
                resume=self.resume,
                evaluation_loader=make_loader(judged, batch_size=data.eval_batch_size, shuffle=False, **self.decoding),
                loss_fn=self.loss_fn if distilling is None else distilling,
                metric=self.metric,
                forward_fn=self.forward_fn,
                description=name,
                channels_last=self.compute.channels_last,
                mixed_precision=self.recipe.compute.mixed_precision,
                accumulation_steps=self.recipe.compute.accumulation_steps,
                method=method,
                checkpoint_steps=self.recipe.compute.checkpoint_steps,
                on_epoch=None if tracker is None else tracker.epoch,
            )
        if tracker is not None:
            tracker.finish()
        epochs = [asdict(epoch) for epoch in log.epochs]
        if log.best_kept and log.best is not None and log.best.epoch != len(epochs):
            epochs[log.best.epoch - 1]["kept"] = True
        return epochs

    def epochs(self, settings: OptimizerConfig, phases: int = 1) -> int:
        """Passes over the training images in as many phases, the last pass perhaps in part: short phases add up."""
        if settings.steps is None:
            return phases * settings.epochs
        batches = -(-len(self.data.train) // self.recipe.data.batch_size)  # pyright: ignore[reportArgumentType]
        return -(-phases * settings.steps // batches)

    def _distilling(self, teacher: Teacher, student: nn.Module) -> DistillationLoss:
        recover = self.recipe.recover
        if self.compute.channels_last:
            teacher.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        features = None
        if recover.distill_features:
            ((inputs, *_), *_) = self.calibration(1)
            pairs = feature_pairs(teacher.model, student, teacher.kept, inputs[:2], forward_fn=self.forward_fn)
            features = FeatureLoss(teacher.model, student, pairs)
        return DistillationLoss(
            teacher.model,
            recover.distill,
            recover.temperature,
            label_smoothing=recover.label_smoothing,
            forward_fn=self.forward_fn,
            features=features,
            feature_weight=recover.distill_features,
        )

    def evaluate(self, model: nn.Module, stage: str) -> dict[str, Any]:
        """The test images' verdict, as the entry of ``stage`` in the result."""
        data = self.recipe.data
        loader = make_loader(self.data.test, batch_size=data.eval_batch_size, shuffle=False, **self.decoding)
        with memory_format(model, self.compute.channels_last):
            found = evaluate(
                model,
                loader,
                loss_fn=self.loss_fn,
                metric=self.metric,
                forward_fn=self.forward_fn,
                description=f"evaluate {stage}",
            )
        return {"stage": stage, "split": "test", **asdict(found)}

    def calibration(self, batches: int, augment: bool = False) -> list[Any]:
        """The same seeded batches of training images, with or without augmentation, whichever stage asks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            images = self.data.train if augment else self.data.calibration
            loader = make_loader(images, batch_size=self.recipe.data.batch_size, shuffle=True)
            return [batch for batch, _ in zip(loader, range(batches), strict=False)]
