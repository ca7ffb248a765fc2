"""A new head learns on a frozen network: on features computed once where it can, else through the whole network."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from prunus.config import TransferConfig
from prunus.pipeline.trainer import Trainer
from prunus.sources import make_loader
from prunus.training import memory_format
from prunus.training.workers import worker_failures

MEMORY_LIMIT = 4 * 2**30  # bytes of features that are kept; more images than that are passed through the network every epoch


class Features(Dataset[Any]):
    """What the head reads, for every image of a data set, with the image's label."""

    def __init__(self, features: Tensor, labels: Sequence[int]) -> None:
        self.features, self.labels = features, list(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.features[index], self.labels[index]


def train_head(model: nn.Module, head: str, settings: TransferConfig, trainer: Trainer) -> dict[str, Any]:
    """Train module ``head`` of ``model`` alone, in place; returns the epochs and a note on how it was done."""
    plain = (trainer.data.calibration, trainer.data.validation)
    own = trainer.loss_fn or trainer.metric or trainer.forward_fn  # the user's functions expect whole images in a batch
    features: list[Features | None] = []
    if not settings.augment and not own:
        with worker_failures("features of the head"), memory_format(model, trainer.compute.channels_last):
            features = [compute_features(model, head, images, **trainer.decoding) for images in plain]
    with frozen_below(model, head):
        if len(features) == 2 and features[0] and features[1]:
            part, how = model.get_submodule(head), f"on the features of {len(features[0]):,} images, computed once"
            epochs = trainer.fit(part, settings, "transfer", images=(features[0], features[1]))
        else:
            how = f"through the frozen network, on {'augmented' if settings.augment else 'plain'} images"
            epochs = trainer.fit(model, settings, "transfer", images=None if settings.augment else plain)
    return {"epochs": epochs, "notes": [f"the head `{head}` was trained {how}"]}


@torch.no_grad()
def compute_features(
    model: nn.Module, head: str, images: Dataset[Any], *, batch_size: int = 64, **decoding: Any
) -> Features | None:
    """The input of ``head`` for every image, in evaluation mode.

    ``decoding``: further arguments of `make_loader`. None where features can't stand for the network: the head's output isn't the
    network's (something follows it), or they need more than `MEMORY_LIMIT`.
    """
    part = model.get_submodule(head)
    seen: list[Tensor] = []
    hook = part.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    parts: list[Tensor] = []
    labels: list[int] = []
    try:
        for inputs, targets in make_loader(images, batch_size=batch_size, shuffle=False, **decoding):
            seen.clear()
            output = model(inputs)
            if not parts and not _fits(part, seen, output, len(images)):  # pyright: ignore[reportArgumentType]
                return None
            parts.append(seen[0].clone(memory_format=torch.contiguous_format))
            labels += targets.tolist()
    finally:
        hook.remove()
        for module, training in modes:
            module.training = training
    return Features(torch.cat(parts), labels)


def _fits(head: nn.Module, seen: list[Tensor], output: Any, images: int) -> bool:
    if len(seen) != 1 or not isinstance(output, Tensor):
        return False
    feature = seen[0].clone()
    per_image = feature[0].numel() * feature.element_size()
    again = head(feature)
    return again.shape == output.shape and torch.allclose(again, output) and per_image * images <= MEMORY_LIMIT


@contextmanager
def frozen_below(model: nn.Module, head: str) -> Generator[None, None, None]:
    """Nothing but ``head`` requires gradients meanwhile; afterwards every parameter is as it was found."""
    own = {id(parameter) for parameter in model.get_submodule(head).parameters()}
    found = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in found:
            parameter.requires_grad_(id(parameter) in own)
        yield
    finally:
        for parameter, required in found:
            parameter.requires_grad_(required)
