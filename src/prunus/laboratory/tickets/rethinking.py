"""Rethinking of one network, seed and learning rate: the pruned network fine-tuned, rewound, or trained from scratch."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

from torch import nn

from prunus.allocation import allocate
from prunus.errors import VerificationFailed
from prunus.graph import trace
from prunus.importance import score
from prunus.laboratory.tickets.jobs import FRESH, Job, Parts
from prunus.laboratory.tickets.training import Course, Images, accuracy, build_network, load_images
from prunus.laboratory.tickets.weights import read_weights, write_weights
from prunus.surgery import remove, silence, verify
from prunus.tickets import Arm, arms, reinitialise
from prunus.types import Budget, ChannelGraph, PruningPlan


class Rethinking:
    """All parts of one job: the full network, then every way to train the small one."""

    leaves: tuple[str, ...] = ("full.safetensors",)
    """Files that the full network's part leaves."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job, self.parts, self.cell = job, parts, job.cell

    def execute(self) -> dict[str, Any]:
        """Test accuracies of the full network, right after pruning, and of every arm; multiply-adds before and after."""
        full = self.parts.run("full", self._full, self.leaves)
        plans = arms(self.epochs, self.cell["lr"], full["ratio"], self.cell["fine_tune_epochs"], self.cell["fine_tune_lr"])
        trained = {name: self.parts.run(name, lambda name=name, arm=arm: self._train(name, arm)) for name, arm in plans.items()}
        return {"full": full, "arms": trained}

    @property
    def epochs(self) -> int:
        """Epochs that the full network was trained for."""
        return self.job.network.epochs

    @cached_property
    def images(self) -> Images:
        return load_images(self.job.network)

    def _full(self) -> dict[str, Any]:
        model = build_network(self.job.network.model, self.images, self.job.seed)
        course = Course(self.job.network, self.images, self.job.seed, self.job.network.epochs, self.cell["lr"])
        curve, _ = course.execute(model)
        write_weights(model.state_dict(), self.parts.file("full.safetensors"))
        graph, plan = self._plan(model)
        before, after = graph.cost(), graph.cost(plan)
        return {
            **curve.to_json(),
            "pruned": accuracy(copy.deepcopy(self.small), self.images),
            "macs": before.macs,
            "small_macs": after.macs,
            "parameters": before.parameters,
            "small_parameters": after.parameters,
            "ratio": before.macs / after.macs,
        }

    def _plan(self, model: nn.Module) -> tuple[ChannelGraph, PruningPlan]:
        graph = trace(model.eval(), self.images.train[:2])
        budget = Budget(channels=self.cell["channels"], max_pruning_ratio=1.0, tolerance=0.1)
        return graph, allocate(graph, score(model, graph, self.cell["criterion"]), budget, "uniform")

    @cached_property
    def small(self) -> nn.Module:
        """The full network as it was trained, without its lowest channels; the removal is verified."""
        model = build_network(self.job.network.model, self.images, self.job.seed)
        model.load_state_dict(read_weights(self.parts.file("full.safetensors")))
        graph, plan = self._plan(model)
        small, _ = remove(model, graph, plan)
        report = verify(silence(model, graph, plan), small, self.images.train[:2])
        if not report.passed:
            raise VerificationFailed(f"removing channels of {self.job.network.model} isn't the same as silencing them", report)
        return small

    def _train(self, name: str, arm: Arm) -> dict[str, Any]:
        model = copy.deepcopy(self.small)
        if arm.fresh:
            reinitialise(model, self.job.seed + FRESH)
        network = self.job.network
        if name == "fine-tuned":
            network = network.model_copy(update={"schedule": "constant"})  # fine-tuning is at the last rate already
        curve, _ = Course(network, self.images, self.job.seed, arm.epochs, arm.lr).execute(model)
        return {"epochs": arm.epochs, "lr": arm.lr, **curve.to_json()}
