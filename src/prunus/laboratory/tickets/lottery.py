"""The lottery of one network and seed: train, prune, rewind; every round's ticket beside its controls."""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prunus.laboratory.tickets.jobs import FRESH, Job, Parts
from prunus.laboratory.tickets.training import Course, Curve, Images, build_network, load_images, set_weights, weights_of
from prunus.laboratory.tickets.weights import read_weights, write_weights
from prunus.tickets import (
    Masks,
    Snapshot,
    apply_masks,
    control_start,
    dense_masks,
    load_masks,
    next_round,
    random_masks,
    remove_masks,
    round_counts,
    save_masks,
    sign_agreement,
)

DENSE = "ticket-00.safetensors"


class Lottery:
    """All rounds of one job. A round keeps its figures, its ticket's weights after training, and the next round's masks."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job, self.parts, self.cell = job, parts, job.cell

    def execute(self) -> list[dict[str, Any]]:
        """Every round's figures, the whole network's first; finished rounds are read."""
        return [
            self.parts.run(f"round-{n:02d}", lambda n=n: self._round(n), (f"masks-{n + 1:02d}.safetensors", DENSE))
            for n in range(self.job.parts["rounds"] + 1)
        ]

    # -- made when needed

    @cached_property
    def images(self) -> Images:
        return load_images(self.job.network)

    @cached_property
    def whole(self) -> Masks:
        return dense_masks(self._network(0), self.job.network.exclude)

    @cached_property
    def course(self) -> Course:
        network = self.job.network
        return Course(network, self.images, self.job.seed, network.epochs, network.lr, self.cell["early"])

    @cached_property
    def snapshot(self) -> Snapshot | None:
        """What tickets are rewound to, where that isn't the start: the whole network's training after so many steps."""
        step: int = self.cell["rewind_step"]
        return self.course.execute(self._network(0), until=step)[1] if step else None

    def _network(self, fresh: int) -> nn.Module:
        return build_network(self.job.network.model, self.images, self.job.seed + fresh)

    def _generator(self, what: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{self.job.seed} {what}".encode()))

    # -- one round

    def _round(self, number: int) -> dict[str, Any]:
        masks = self.whole
        if number:
            stored = load_masks(self.parts.file(f"masks-{number:02d}.safetensors")).by_name
            masks = Masks({name: stored[name] for name in masks.by_name})  # in the network's order, which draws follow
        names = masks.by_name
        arms: dict[str, Any] = {}
        start, trained = {}, {}
        for arm in ("ticket", *(self.cell["controls"] if number else ())):
            curve, before, after = self._train(arm, masks, number)
            arms[arm] = curve.to_json()
            if arm == "ticket":
                start, trained = before, after
        if number == 0:
            write_weights(trained, self.parts.file(DENSE))
        self._save_next(masks, trained, number)
        at_once = self._at_once(number)
        return {
            "round": number,
            "kept": masks.kept,
            "total": masks.total,
            "density": masks.density,
            "layers": {name: float(masks.by_name[name].double().mean()) for name in names},
            "arms": arms,
            "sign_agreement": sign_agreement(masks, start, trained),
            "overlap_one_shot": masks.overlap(at_once),
            "overlap_random": masks.overlap(random_masks(masks, self._generator(f"overlap {number}"))),
        }

    def _train(self, arm: str, masks: Masks, number: int) -> tuple[Curve, dict[str, Tensor], dict[str, Tensor]]:
        """Accuracies, masked weights at the start and after training. Fresh weights start at step 0 whatever is rewound to."""
        snapshot = None if arm == "reinit" else self.snapshot
        model, fresh = self._network(0), self._network(FRESH)
        if snapshot is not None:
            snapshot.rewind(model)
        rewound, drawn = weights_of(model, masks.by_name), weights_of(fresh, masks.by_name)
        masks, values = control_start(arm, masks, rewound, drawn, self._generator(f"{arm} {number}"))
        model = fresh if arm == "reinit" else model
        set_weights(model, values)
        apply_masks(model, masks)
        curve, _ = self.course.execute(model, snapshot)
        remove_masks(model)
        return curve, values, weights_of(model, masks.by_name)

    def _save_next(self, masks: Masks, trained: dict[str, Tensor], number: int) -> None:
        """The masks that the next round trains."""
        found = self._at_once(number + 1)
        if self.cell["schedule"] == "iterative":
            found = next_round(masks, trained, self._counts(number + 1))
        save_masks(found, self.parts.file(f"masks-{number + 1:02d}.safetensors"))

    def _at_once(self, number: int) -> Masks:
        """Masks of a round's counts from the whole network's weights after training."""
        return next_round(self.whole, read_weights(self.parts.file(DENSE)), self._counts(number))

    def _counts(self, number: int) -> Any:
        return round_counts(self.whole, self.cell["rates"], number, self.cell["scope"])
