"""Training of small networks on images held in memory: every batch is one index into a tensor."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.errors import RecipeError, TrainingError
from prunus.sources import load_data, load_model, make_loader
from prunus.ticket_recipe import TicketNetwork
from prunus.tickets import Snapshot, milestones

POINTS = 12
"""Points of a learning curve, evenly over the training, beside the early one."""


@dataclass(frozen=True, eq=False)
class Images:
    """All images of a data set: normalised float tensors (n, channels, height, width) and class indices (n,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


def load_images(network: TicketNetwork) -> Images:
    """The training images, without augmentation, and the test images."""
    bundle = load_data(network.data, image_size=network.image_size, train_limit=network.train_limit)
    train, test = (_held(part) for part in (bundle.calibration, bundle.test))
    return Images(*train, *test, bundle.num_classes)


def _held(dataset: Any) -> tuple[Tensor, Tensor]:
    parts = list(make_loader(dataset, batch_size=256, shuffle=False))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def build_network(source: str, images: Images, seed: int) -> nn.Module:
    """A network with weights drawn from the seed: mlp:WIDTHS, conv:WIDTHS, or what `prunus.sources.load_model` knows.

    Raises:
        RecipeError: widths that can't be read, images too small for the pooling.
    """
    kind, _, widths = source.partition(":")
    if kind not in ("mlp", "conv"):
        return load_model(source, num_classes=images.classes, in_channels=images.train.shape[1], seed=seed)
    try:
        sizes = [int(part) for part in widths.split("-")]
        if min(sizes) < 1:
            raise ValueError
    except ValueError:
        raise RecipeError(f"can't read the network {source!r}: write the widths of its layers, e.g. {kind}:300-100") from None
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return _mlp(sizes, images) if kind == "mlp" else _conv(sizes, images)


def _mlp(widths: Sequence[int], images: Images) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    inside = math.prod(images.train.shape[1:])
    for width in widths:
        layers += [nn.Linear(inside, width), nn.ReLU()]
        inside = width
    return nn.Sequential(*layers, nn.Linear(inside, images.classes))


def _conv(widths: Sequence[int], images: Images) -> nn.Module:
    layers: list[nn.Module] = []
    inside = images.train.shape[1]
    for place, width in enumerate(widths):
        layers += [nn.Conv2d(inside, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place < 2 else []
        inside = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, images.classes))


@dataclass(frozen=True)
class Curve:
    """Test accuracy on the way: ``points`` (step, accuracy), ``early`` after the early step, ``final`` at the end."""

    points: tuple[tuple[int, float], ...]
    early: float
    final: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"early": self.early, "accuracy": self.final, "curve": [list(point) for point in self.points]}


@dataclass(frozen=True, eq=False)
class Course:
    """How a network is trained; ``seed`` gives the order of the images, the same for all networks of a seed."""

    network: TicketNetwork
    images: Images
    seed: int
    epochs: int
    lr: float
    early: float = 0.1

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last may be smaller."""
        return -(-len(self.images.train) // self.network.batch_size)

    @property
    def steps(self) -> int:
        """Batches of the whole training."""
        return self.epochs * self.steps_per_epoch

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over all parameters that are trained, in the order of their names: with or without masks the same."""
        named = sorted((plain_name(name), p) for name, p in model.named_parameters() if p.requires_grad)
        decay = [p for _, p in named if p.ndim >= 2]
        groups: list[dict[str, Any]] = [
            {"params": decay, "weight_decay": self.network.weight_decay},
            {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.network.optimizer == "adam":
            return torch.optim.AdamW(groups, lr=self.lr, fused=True)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.network.momentum, fused=True)

    def rate(self, step: int) -> float:
        """The learning rate of a step (from 0)."""
        if self.network.schedule == "constant":
            return self.lr
        half, three_quarters = milestones(self.epochs)
        epoch = step // self.steps_per_epoch
        return self.lr * (0.01 if epoch >= three_quarters else 0.1 if epoch >= half else 1.0)

    def batches(self, start: int) -> Iterator[tuple[int, Tensor]]:
        """Steps from ``start`` on with their images' indices; the order is that of the seed and the epoch."""
        size = self.network.batch_size
        for epoch in range(start // self.steps_per_epoch, self.epochs):
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            order = torch.randperm(len(self.images.train), generator=generator)
            for place in range(self.steps_per_epoch):
                step = epoch * self.steps_per_epoch + place
                if step >= start:
                    yield step, order[place * size : (place + 1) * size]

    def execute(
        self,
        model: nn.Module,
        snapshot: Snapshot | None = None,
        until: int | None = None,
        after_backward: Callable[[int], None] = lambda _: None,
    ) -> tuple[Curve, Snapshot | None]:
        """Train in place; returns accuracies and, with ``until``, what there was after so many steps, where training stops.

        With ``snapshot`` the optimizer's state, the order of the images and the learning rate go on where it was taken; the
        network's weights are the caller's to set. ``after_backward`` is told the step.

        Raises:
            TrainingError: the loss isn't a number.
        """
        optimizer = self.optimizer(model)
        start = 0 if snapshot is None else snapshot.step
        if snapshot is not None:
            optimizer.load_state_dict(copy.deepcopy(dict(snapshot.optimizer)))  # it would train on the tensors themselves
        early = max(round(self.early * self.steps), 1)
        watched = {max(round(self.steps * n / POINTS), 1) for n in range(1, POINTS + 1)} | {early}
        points = [(start, accuracy(model, self.images))]
        with torch.random.fork_rng([]):  # dropout, drawn masks
            torch.manual_seed(self.seed)
            for step, chosen in self.batches(start):
                if step == until:
                    break
                self._step(model, optimizer, step, chosen, after_backward)
                if step + 1 in watched:
                    points.append((step + 1, accuracy(model, self.images)))
        taken = None if until is None else Snapshot.of(model, optimizer, until)
        at_early = next((found for step, found in points if step >= early), points[-1][1])
        return Curve(tuple(points), at_early, points[-1][1]), taken

    def _step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, chosen: Tensor, after_backward: Callable[[int], None]
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step)
        optimizer.zero_grad(set_to_none=True)
        model.train()
        loss = functional.cross_entropy(model(self.images.train[chosen]), self.images.train_labels[chosen])
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss became {loss.item()} in step {step + 1} of {self.steps}: lower lr (now {self.lr})")
        loss.backward()
        after_backward(step)
        optimizer.step()


def plain_name(name: str) -> str:
    """The name that a parameter has without its parametrisation."""
    return name.replace("parametrizations.", "").removesuffix(".original")


def accuracy(model: nn.Module, images: Images) -> float:
    """Share of the test images that are classified right, in evaluation mode, drawing nothing from the callers' generators."""
    model.eval()
    with torch.no_grad():
        return float((model(images.test).argmax(1) == images.test_labels).double().mean())


def weights_of(model: nn.Module, names: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies of the named parameters."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in names}


def set_weights(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set named parameters, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
