"""Supermasks of one network and seed: the masks are trained, the weights are not."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from prunus.laboratory.tickets.jobs import Job, Parts
from prunus.laboratory.tickets.training import Course, accuracy, build_network, load_images
from prunus.tickets import attach_supermasks, remove_supermasks, set_evaluation


class Supermasks:
    """One job: one variant."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job, self.parts = job, parts

    def execute(self) -> dict[str, Any]:
        """Test accuracies with the masks by threshold and drawn, before and after training."""
        return self.parts.run("supermask", self._train)

    def _train(self) -> dict[str, Any]:
        cell, images = self.job.cell, load_images(self.job.network)
        changed = {"optimizer": "sgd", "momentum": 0.9, "schedule": "constant", "weight_decay": 0.0}
        network = self.job.network.model_copy(update={**changed, "batch_size": cell["batch_size"]})
        model = build_network(network.model, images, self.job.seed)
        untrained = accuracy(model, images)
        attach_supermasks(model, network.exclude, rescale=cell["rescale"], signed_constant=cell["signed_constant"])
        curve, _ = Course(network, images, self.job.seed, cell["epochs"], cell["lr"]).execute(model)
        set_evaluation(model, "sample")
        with torch.random.fork_rng([]):
            torch.manual_seed(self.job.seed)
            drawn = [accuracy(model, images) for _ in range(cell["samples"])]
        masks = remove_supermasks(model)
        return {
            "untrained": untrained,
            "sampled": statistics.fmean(drawn),
            "sampled_std": statistics.stdev(drawn) if len(drawn) > 1 else None,
            "density": masks.density,
            **curve.to_json(),
        }
