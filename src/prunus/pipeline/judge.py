"""What a run judges plans by that are tried out: accuracy on training images held out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from prunus.pipeline.images import evaluation_images
from prunus.pipeline.networks import digest
from prunus.pipeline.stages import read_json, write_checked
from prunus.pipeline.trainer import Trainer
from prunus.reconstruction import recalibrate
from prunus.sources import make_loader
from prunus.training import evaluate
from prunus.training.workers import worker_failures

HELD_BYTES = 2**30
"""Images up to this size are decoded once and held in memory; more are decoded for every plan."""


class Judge:
    """Accuracy of pruned networks on training images held out, after BN recalibration as `recover` says.

    Every accuracy is kept in a file of ``folder``, by what the network holds: a run that was stopped doesn't measure it again.
    """

    def __init__(self, trainer: Trainer, images: int | None, folder: Path) -> None:
        self.trainer, self.folder, self.tried = trainer, folder, 0
        self.calibration = trainer.calibration(trainer.recipe.recover.recalibrate_batches)
        chosen, self.split, self.notes = evaluation_images(trainer.data, "validation")
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))  # pyright: ignore[reportArgumentType]
        self.count = len(order[:images])
        data = trainer.recipe.data
        loader = make_loader(
            Subset(chosen, order[:images].tolist()), batch_size=data.eval_batch_size, shuffle=False, **trainer.decoding
        )
        alone = trainer.processes.count == 1  # several share the images of a loader, not those of a list
        small = alone and self.count * math.prod(trainer.data.input_shape) * 4 <= HELD_BYTES
        with worker_failures("plans to try"):
            self.batches: Any = list(loader) if small else loader
        self.main = trainer.processes.main
        if self.main:
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, model: nn.Module) -> float:
        """The accuracy of ``model``, whose BN statistics are recalibrated in place."""
        self.tried += 1
        path = self.folder / f"{digest(model)}.json"
        if path.exists():
            return float(read_json(path)["accuracy"])
        functions = self.trainer
        if self.calibration:
            recalibrate(model, self.calibration, forward_fn=functions.forward_fn)
        found = evaluate(
            model,
            self.batches,
            loss_fn=functions.loss_fn,
            metric=functions.metric,
            forward_fn=functions.forward_fn,
            description=f"plan {self.tried}",
        )
        if self.main:
            write_checked(path, {"accuracy": found.accuracy, "images": found.count})
        return found.accuracy

    def about(self) -> dict[str, Any]:
        """What it judged on, for the result."""
        return {"plans": self.tried, "images": self.count, "split": self.split}
