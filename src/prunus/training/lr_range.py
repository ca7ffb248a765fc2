"""The learning-rate range test: how high the rate may be, found by raising it from step to step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from accelerate.utils import send_to_device
from torch import nn

from prunus.config import OptimizerConfig
from prunus.errors import TrainingError
from prunus.training.objective import Objective
from prunus.training.optimizers import build_optimizer
from prunus.training.placement import frozen_batch_norm, train_mode
from prunus.training.progress import progress_bar
from prunus.training.randomness import SeededBatches, restored_generators, seed_epoch
from prunus.types import ForwardFn, LossFn

SMOOTHING = 0.9
"""Of the losses, by step; the mean's bias towards its start is corrected."""
DIVERGED = 4.0
"""The test ends where the smoothed loss is so many times its lowest value."""


@dataclass(frozen=True)
class LrRange:
    """What the test saw. ``rates``, ``losses`` (as they were) and ``smoothed`` have one entry a step.

    ``suggested`` is a tenth of ``lowest_at``, the rate at which the smoothed loss was lowest. ``diverged_at``: the rate at which
    the loss went beyond `DIVERGED` times its lowest value or wasn't finite; None if it never did.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    lowest_at: float
    suggested: float
    diverged_at: float | None


def lr_range(
    model: nn.Module,
    loader: Iterable[Any],
    settings: OptimizerConfig,
    *,
    seed: int = 0,
    lowest: float = 1e-5,
    highest: float = 1.0,
    steps: int = 100,
    loss_fn: LossFn | None = None,
    forward_fn: ForwardFn | None = None,
) -> LrRange:
    """Train a copy of ``model`` for ``steps`` batches at rates that rise geometrically from ``lowest`` to ``highest``.

    Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3; the suggestion, a tenth of the rate of the
    lowest loss, is the usual rule of thumb. ``settings`` gives the optimizer with all but its rate; its epochs, schedule, mixup
    and average have no part in this. Short loaders are gone through again. ``model`` and the random state are left as found.

    Raises:
        TrainingError: the range or the number of steps makes no sense, the loader yields nothing, or the very first loss isn't
            finite.
    """
    if not 0 < lowest < highest or steps < 10:
        raise TrainingError(
            f"the range from {lowest} to {highest} in {steps} steps: give 0 < lowest < highest, and 10 steps or more"
        )
    twin, objective = deepcopy(model), Objective(loss_fn, None, forward_fn, settings.label_smoothing)
    rates = [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]
    losses: list[float] = []
    smoothed: list[float] = []
    diverged = None
    with restored_generators(), frozen_batch_norm(twin, settings.freeze_batch_norm):
        train_mode(twin, settings.freeze_batch_norm)
        for loss in _losses(twin, loader, settings, rates, seed, objective):
            losses.append(loss)
            smoothed.append(_smoothed(losses))
            if not math.isfinite(loss) or smoothed[-1] > DIVERGED * min(smoothed):
                diverged = rates[len(losses) - 1]
                break
    finite = [(value, rate) for value, rate in zip(smoothed, rates, strict=False) if math.isfinite(value)]
    if not finite:
        raise TrainingError(f"the loss is {losses[0]} before any step: check the data and the weights")
    best = min(finite)[1]
    return LrRange(tuple(rates[: len(losses)]), tuple(losses), tuple(smoothed), best, best / 10, diverged)


def _losses(
    model: nn.Module, loader: Iterable[Any], settings: OptimizerConfig, rates: list[float], seed: int, objective: Objective
) -> Iterable[float]:
    """The loss before every step, each at its own rate."""
    optimizer = build_optimizer(model, settings)
    device = next(chain(model.parameters(), model.buffers())).device
    with progress_bar("learning rates", len(rates)) as report:
        for step, (batch, rate) in enumerate(zip(_batches(loader, seed, len(rates)), rates, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            batch = send_to_device(batch, device)
            loss = objective.loss(objective.forward(model, objective.inputs(batch)), batch, training=True)
            yield float(loss.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            report("learning rates", step + 1, float(loss.detach()))


def _batches(loader: Iterable[Any], seed: int, number: int) -> Iterable[Any]:
    """So many batches, from as many passes as that takes."""
    given, epoch = 0, 0
    while given < number:
        seed_epoch(seed, epoch, loader)
        before = given
        for batch in islice(SeededBatches(loader, seed, epoch, 0), number - given):
            given += 1
            yield batch
        if given == before:
            raise TrainingError("the training loader yields nothing: is the data set empty, or smaller than one batch?")
        epoch += 1


def _smoothed(losses: list[float]) -> float:
    """The exponential mean of all losses so far, corrected for its start: sum of b^(n-i) loss_i / sum of b^(n-i)."""
    weights = [SMOOTHING ** (len(losses) - 1 - index) for index in range(len(losses))]
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
