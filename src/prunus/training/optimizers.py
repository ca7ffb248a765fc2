"""The optimizer with its two parameter groups, and the learning rate as a closed form of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunus.config import OptimizerConfig
from prunus.errors import TrainingError


def build_optimizer(
    model: nn.Module, settings: OptimizerConfig, options: Mapping[str, Mapping[str, Any]] | None = None
) -> torch.optim.Optimizer:
    """SGD (Nesterov wherever momentum > 0) or AdamW; weight decay on parameters of two or more dimensions only.

    ``options``: parameter name -> what a sparsity method wants of SGD for it.

    Raises:
        TrainingError: no parameter requires a gradient, or the optimizer doesn't have what a method wants.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    apart = {name: dict(options[name]) for name in named if options and name in options}
    trained = [p for name, p in named.items() if name not in apart]
    if not named:
        raise TrainingError("nothing to train: no parameter of the network requires a gradient (requires_grad is False)")
    groups = _groups(trained, settings)
    groups += [{"params": [named[name]], "weight_decay": 0.0, **wanted} for name, wanted in apart.items()]
    if settings.optimizer == "adamw":
        foreign = sorted({key for wanted in apart.values() for key in wanted} - {"weight_decay"})
        if foreign:
            raise TrainingError(
                f"the sparsity method sets {' and '.join(foreign)} of single parameters, which adamw doesn't have: "
                'use optimizer = "sgd"'
            )
        return torch.optim.AdamW(groups, lr=settings.lr)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)


def _groups(trained: Sequence[nn.Parameter], settings: OptimizerConfig) -> list[dict[str, Any]]:
    """Weights and the rest; with a rate of its own for every layer, two groups a layer (``lr_scale``: its share of the rate)."""
    scales = layer_scales(trained, settings.first_layer_lr) if settings.first_layer_lr < 1 else [1.0] * len(trained)
    groups: list[dict[str, Any]] = []
    for scale in dict.fromkeys(scales):
        here = [p for p, own in zip(trained, scales, strict=True) if own == scale]
        # Biases and the scales and shifts of norms are vectors: decay would pull them away from where the data put them.
        parts = (([p for p in here if p.ndim >= 2], settings.weight_decay), ([p for p in here if p.ndim < 2], 0.0))
        extra = {} if scale == 1 else {"lr_scale": scale}
        groups += [{"params": part, "weight_decay": decay, **extra} for part, decay in parts if part]
    return groups


def layer_scales(trained: Sequence[nn.Parameter], first: float) -> list[float]:
    """Every parameter's share of the learning rate: ``first`` in the first layer, 1 in the last, geometric in between.

    A layer begins with a parameter of two or more dimensions, in the network's order; the vectors behind it belong to it.
    """
    layers: list[int] = []
    for parameter in trained:
        before = layers[-1] if layers else 0
        layers.append(before + (parameter.ndim >= 2 and bool(layers)))
    last = max(layers, default=0)
    return [first ** ((last - layer) / last) if last else 1.0 for layer in layers]


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float, schedule: str = "cosine") -> float:
    """The rate of step ``step`` (from 0) of ``steps``: linear up to ``peak`` at step ``warmup_steps - 1``, then a cosine to 0.

    With the schedule ``constant`` it stays at the peak instead.

    A closed form, so that a resumed run needs no state to find its place.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def total_steps(settings: OptimizerConfig, steps_per_epoch: int) -> int:
    """Steps of the whole run: ``steps`` where they are given, else those of ``epochs``."""
    return settings.epochs * steps_per_epoch if settings.steps is None else settings.steps


def warmup_steps(settings: OptimizerConfig, steps_per_epoch: int) -> int:
    """Steps of linear warm-up: ``warmup_epochs`` may be fractional and is capped to the run."""
    return min(round(settings.warmup_epochs * steps_per_epoch), total_steps(settings, steps_per_epoch))
