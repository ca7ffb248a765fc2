"""How fast a network trains with this many threads and that memory format: measured, since no rule holds on every machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.training.objective import Objective, batch_size
from prunus.training.placement import memory_format
from prunus.training.randomness import restored_generators


@dataclass(frozen=True)
class TrainingSpeed:
    """Images per second of forward, backward and update, the median of a few steps."""

    threads: int
    channels_last: bool
    images_per_second: float


def measure_training_speed(
    model: nn.Module,
    batch: Any,
    *,
    threads: Iterable[int],
    channels_last: Iterable[bool],
    objective: Objective | None = None,
    steps: int = 3,
) -> list[TrainingSpeed]:
    """Time training steps of a copy of ``model`` on ``batch`` with every combination, on the CPU.

    The combinations take turns, so that a disturbance of the machine falls on all of them; the model, PyTorch's number of threads
    and its random state are left as found.
    """
    objective = objective or Objective()
    found = torch.get_num_threads()
    settings = [(count, last) for count in threads for last in channels_last]
    seconds: dict[tuple[int, bool], list[float]] = {setting: [] for setting in settings}
    try:
        with restored_generators():
            for turn in range(steps + 1):  # the first one warms up
                for count, last in settings:
                    torch.set_num_threads(count)
                    taken = _step(model, batch, last, objective)
                    if turn:
                        seconds[count, last].append(taken)
    finally:
        torch.set_num_threads(found)
    size = batch_size(batch)
    return [TrainingSpeed(count, last, size / statistics.median(seconds[count, last])) for count, last in settings]


def fastest(measured: Sequence[TrainingSpeed]) -> TrainingSpeed:
    """The fastest; among equals within 3 %, fewer threads and the plain memory format."""
    limit = 0.97 * max(speed.images_per_second for speed in measured)
    return min((s for s in measured if s.images_per_second >= limit), key=lambda s: (s.threads, s.channels_last))


def _step(model: nn.Module, batch: Any, channels_last: bool, objective: Objective) -> float:
    twin = deepcopy(model).train()
    optimizer = torch.optim.SGD((p for p in twin.parameters() if p.requires_grad), lr=1e-9, momentum=0.9)
    with memory_format(twin, channels_last):
        begin = time.perf_counter()
        objective.loss(objective.forward(twin, objective.inputs(batch)), batch, training=True).backward()
        optimizer.step()
        return time.perf_counter() - begin
