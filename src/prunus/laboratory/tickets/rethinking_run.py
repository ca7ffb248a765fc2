"""Rethinking of a pruned result: the network that a run pruned, fine-tuned, rewound, or trained from scratch, on its images."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.laboratory.pruned_runs import PrunedRun
from prunus.laboratory.tickets.jobs import FRESH
from prunus.laboratory.tickets.rethinking import Rethinking
from prunus.pipeline.controls import from_scratch
from prunus.pipeline.images import load_images
from prunus.pipeline.networks import Networks
from prunus.pipeline.run import EXAMPLES
from prunus.pipeline.trainer import Compute, Trainer
from prunus.surgery import load
from prunus.tickets import ARMS, Arm, reinitialise


class RethinkingRun(Rethinking):
    """One job on a run's folder. Its pruned network is the same for all seeds, which draw fresh weights and orders of images."""

    leaves = ()

    @property
    def epochs(self) -> int:
        """As the run trained its full network, or as the recipe says."""
        return self.cell["epochs"]

    @cached_property
    def run(self) -> PrunedRun:
        """What the job takes up."""
        return PrunedRun.read(Path(self.job.name))

    @cached_property
    def trainer(self) -> Trainer:
        """Trains and judges as the run did, on the same images, with one thread; training that was stopped goes on."""
        recipe = self.run.recipe.model_copy(update={"seed": self.job.seed, "log_with": None})
        folder = self.parts.file("checkpoints")
        folder.mkdir(exist_ok=True)
        trainer = Trainer(recipe, load_images(recipe, at_least=EXAMPLES), folder, resume=True)
        trainer.use(Compute(1, channels_last=False))
        return trainer

    def _load(self, file: Path) -> nn.Module:
        data = self.trainer.data
        examples = torch.stack([data.test[i][0] for i in range(EXAMPLES)])
        return load(file, Networks(self.run.recipe, data, examples).build(weights=False))

    def _full(self) -> dict[str, Any]:
        before, after = (self.run.result["networks"][name] for name in ("before", "after"))
        return {
            "accuracy": self._judge(self._load(self.run.base)),
            "pruned": self._judge(self._load(self.run.pruned)),
            "macs": before["macs"],
            "small_macs": after["macs"],
            "parameters": before["parameters"],
            "small_parameters": after["parameters"],
            "ratio": before["macs"] / after["macs"],
        }

    def _train(self, name: str, arm: Arm) -> dict[str, Any]:
        """All with the settings that the run trains random weights with; fine-tuning keeps its small rate, all else anneals."""
        model, recipe = self._load(self.run.pruned), self.run.recipe
        settings = from_scratch(recipe, self.trainer)
        if arm.fresh:
            reinitialise(model, self.job.seed + FRESH)
        changed: dict[str, Any] = {"epochs": arm.epochs, "steps": None, "lr": arm.lr, "patience": None, "keep": "last"}
        changed |= {"schedule": "constant", "warmup_epochs": 0.0} if name == "fine-tuned" else {"schedule": "cosine"}
        log = self.trainer.fit(model, settings.model_copy(update=changed), name, list(ARMS).index(name))
        return {"epochs": arm.epochs, "lr": arm.lr, "accuracy": self._judge(model), "log": log}

    def _judge(self, model: nn.Module) -> float:
        return self.trainer.evaluate(model, self.run.folder.name)["accuracy"]
