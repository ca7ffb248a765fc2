"""Deconstruction of one network and seed at one sparsity: criteria, what kept weights start from, what becomes of the others."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prunus.laboratory.tickets.jobs import FRESH, Job, Parts
from prunus.laboratory.tickets.training import (
    Course,
    Curve,
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
    load_masks,
    mask_scores,
    remove_masks,
    save_masks,
    start,
)

BEST = "large_final"
"""The criterion whose masks the actions are tried with."""


def densities(kept: float, rate: float) -> list[float]:
    """Share of the weights left after every round, ``kept`` after the last: equal steps that prune about ``rate`` of the rest."""
    rounds = max(round(math.log(kept) / math.log(1 - rate)), 1)
    return [kept ** (number / rounds) for number in range(1, rounds + 1)]


def histories(kept: Mapping[str, Tensor]) -> dict[str, WeightHistory]:
    """From tensors named by end and weight (``initial fc.weight``) to what criteria score."""
    names = sorted({name.partition(" ")[2] for name in kept})
    return {name: WeightHistory(kept[f"initial {name}"], kept[f"final {name}"], kept[f"gradient {name}"]) for name in names}


class Deconstruction:
    """All parts of one job: the whole network, then every criterion and action, each in a file of its own."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job, self.parts = job, parts
        self._made: dict[str, Masks] = {}  # all actions are tried with the masks of one criterion

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
        return histories(read_weights(self.parts.file("history.safetensors")))

    @cached_property
    def whole(self) -> Masks:
        return dense_masks(build_network(self.job.network.model, self.images, self.job.seed), self.job.network.exclude)

    def _whole(self) -> dict[str, Any]:
        """Train the whole network; keep masked weights at both ends, and the gradients of the first step."""
        model = build_network(self.job.network.model, self.images, self.job.seed)
        untrained = accuracy(model, self.images)
        curve, kept = self._watched(model, self.whole)
        write_weights(kept, self.parts.file("history.safetensors"))
        return {"untrained": untrained, "classes": self.images.classes, **curve.to_json()}

    def _watched(self, model: nn.Module, masks: Masks) -> tuple[Curve, dict[str, Tensor]]:
        """Train; the masked weights at both ends and their gradients in the first step, each under its end's name and its own."""
        names = masks.by_name
        initial, gradients = weights_of(model, names), dict[str, Tensor]()
        if masks is not self.whole:
            apply_masks(model, masks)
        parameters = {plain_name(name): p for name, p in model.named_parameters()}

        def remember(step: int) -> None:
            for name in names if step == 0 else ():
                gradient = parameters[name].grad
                gradients[name] = torch.zeros_like(initial[name]) if gradient is None else gradient.clone()

        curve, _ = self.course.execute(model, after_backward=remember)
        remove_masks(model)
        ends = {"initial": initial, "final": weights_of(model, names), "gradient": gradients}
        return curve, {f"{end} {name}": values[name] for end, values in ends.items() for name in names}

    # -- masks

    def _generator(self, *what: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(" ".join([str(self.job.seed), *what]).encode()))

    def _masks(self, criterion: str) -> Masks:
        """The masks by which a criterion keeps the asked share, made at once or in rounds; each round is a part of its own."""
        if criterion not in self._made:
            self._made[criterion] = self._make(criterion)
        return self._made[criterion]

    def _make(self, criterion: str) -> Masks:
        if self.job.cell["schedule"] == "one-shot":
            return self._keep(criterion, self.whole, self.history, self.job.cell["kept"])
        masks = self.whole
        for number, density in enumerate(densities(self.job.cell["kept"], self.job.cell["rate"]), 1):
            file = f"masks-{criterion}-{number:02d}.safetensors"
            self.parts.run(
                f"masks-{criterion}-{number:02d}", lambda m=masks, d=density, f=file: self._next(criterion, m, d, f), (file,)
            )
            stored = load_masks(self.parts.file(file)).by_name
            masks = Masks({name: stored[name] for name in self.whole.by_name})  # in the network's order, which draws follow
        return masks

    def _next(self, criterion: str, masks: Masks, density: float, file: str) -> dict[str, Any]:
        """One round: what is left is trained from the start, and the lowest of it go."""
        history = self.history
        if masks is not self.whole:
            model = build_network(self.job.network.model, self.images, self.job.seed)
            history = histories(self._watched(model, masks)[1])
        found = self._keep(criterion, masks, history, density)
        save_masks(found, self.parts.file(file))
        return {"density": found.density}

    def _keep(self, criterion: str, masks: Masks, history: Mapping[str, WeightHistory], density: float) -> Masks:
        generator = self._generator(criterion, f"{density:.6f}")
        counts = {name: kept_after(mask.numel(), 1 - density, 1) for name, mask in masks.by_name.items()}
        known = {name: history[name] for name in masks.by_name}
        return keep_highest(mask_scores(criterion, known, generator), masks, counts, generator)

    def _masked(self, criterion: str, kept: str, pruned: str) -> dict[str, Any]:
        masks = self._masks(criterion)
        model = build_network(self.job.network.model, self.images, self.job.seed)
        fresh = build_network(self.job.network.model, self.images, self.job.seed + FRESH)
        history = {name: self.history[name] for name in masks.by_name}
        generator = self._generator(criterion, kept, pruned)
        values, held = start(masks.by_name, history, kept, pruned, generator, weights_of(fresh, masks.by_name))
        set_weights(model, values)
        apply_masks(model, masks, held)
        untrained = accuracy(model, self.images)
        curve, _ = self.course.execute(model)
        return {"untrained": untrained, "density": masks.density, **curve.to_json()}
