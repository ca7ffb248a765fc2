"""Deconstruction of one network and seed at one sparsity: criteria, what kept weights start from, what becomes of the others."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prunus.laboratory.tickets.jobs import FRESH, Job, Parts
from prunus.laboratory.tickets.training import (
    Course,
    Images,
    accuracy,
    build_network,
    load_images,
    plain_name,
    set_weights,
    weights_of,
)
from prunus.laboratory.tickets.weights import read_weights, write_weights
from prunus.tickets import (
    Masks,
    WeightHistory,
    apply_masks,
    dense_masks,
    keep_highest,
    kept_after,
    mask_scores,
    start,
)

BEST = "large_final"
"""The criterion whose masks the actions are tried with."""


class Deconstruction:
    """All parts of one job: the whole network, then every criterion and action, each in a file of its own."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job, self.parts = job, parts

    def execute(self) -> dict[str, Any]:
        """Test accuracies: of the whole network, and untrained and trained of every masked one; by what was changed."""
        asked = self.job.parts
        whole = self.parts.run("whole", self._whole, ("history.safetensors",))
        return {
            "whole": whole,
            "criteria": {name: self._part(f"criterion-{name}", name, "rewind", "zero") for name in asked["criteria"]},
            "kept_actions": {name: self._part(f"kept-{name}", BEST, name, "zero") for name in asked["kept_actions"]},
            "pruned_actions": {name: self._part(f"pruned-{name}", BEST, "rewind", name) for name in asked["pruned_actions"]},
        }

    def _part(self, name: str, criterion: str, kept: str, pruned: str) -> dict[str, Any]:
        return self.parts.run(name, lambda: self._masked(criterion, kept, pruned))

    @cached_property
    def images(self) -> Images:
        return load_images(self.job.network)

    @cached_property
    def course(self) -> Course:
        return Course(self.job.network, self.images, self.job.seed, self.job.network.epochs, self.job.network.lr)

    @cached_property
    def history(self) -> Mapping[str, WeightHistory]:
        kept = read_weights(self.parts.file("history.safetensors"))
        names = sorted({name.partition(" ")[2] for name in kept})
        return {name: WeightHistory(kept[f"initial {name}"], kept[f"final {name}"], kept[f"gradient {name}"]) for name in names}

    def _whole(self) -> dict[str, Any]:
        """Train the whole network; keep masked weights at both ends, and the gradients of the first step."""
        model = build_network(self.job.network.model, self.images, self.job.seed)
        names = dense_masks(model, self.job.network.exclude).by_name
        initial, gradients = weights_of(model, names), dict[str, Tensor]()
        parameters = {plain_name(name): p for name, p in model.named_parameters()}

        def remember(step: int) -> None:
            for name in names if step == 0 else ():
                gradient = parameters[name].grad
                gradients[name] = torch.zeros_like(initial[name]) if gradient is None else gradient.clone()

        untrained = accuracy(model, self.images)
        curve, _ = self.course.execute(model, after_backward=remember)
        final = weights_of(model, names)
        ends = {"initial": initial, "final": final, "gradient": gradients}
        kept = {f"{end} {name}": values[name] for end, values in ends.items() for name in names}
        write_weights(kept, self.parts.file("history.safetensors"))
        return {"untrained": untrained, "classes": self.images.classes, **curve.to_json()}

    def _masked(self, criterion: str, kept: str, pruned: str) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.job.seed} {criterion} {kept} {pruned}".encode()))
        model = build_network(self.job.network.model, self.images, self.job.seed)
        fresh = build_network(self.job.network.model, self.images, self.job.seed + FRESH)
        whole = dense_masks(model, self.job.network.exclude)
        history = {name: self.history[name] for name in whole.by_name}
        counts = {name: kept_after(mask.numel(), 1 - self.job.cell["kept"], 1) for name, mask in whole.by_name.items()}
        masks: Masks = keep_highest(mask_scores(criterion, history, generator), whole, counts, generator)
        values, held = start(masks.by_name, history, kept, pruned, generator, weights_of(fresh, whole.by_name))
        set_weights(model, values)
        apply_masks(model, masks, held)
        untrained = accuracy(model, self.images)
        curve, _ = self.course.execute(model)
        return {"untrained": untrained, "density": masks.density, **curve.to_json()}
