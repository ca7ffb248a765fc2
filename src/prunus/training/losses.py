"""The losses of an epoch, read seldom where reading is slow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

STEPS_BETWEEN_READS = 16
"""Steps between two looks at the loss on an accelerator, where every look waits for the device; a CPU looks at every step."""


class EpochLosses:
    """Mean loss per example over all processes, and the first step whose loss isn't finite.

    A non-finite loss is seen up to `STEPS_BETWEEN_READS` - 1 steps late on an accelerator, but always with its own step's number.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._read_every = 1 if accelerator.device.type == "cpu" else STEPS_BETWEEN_READS
        self._unread: list[tuple[Tensor, int]] = []
        self._sum = 0.0
        self.steps = 0
        self.count = 0
        self.non_finite: tuple[int, float] | None = None
        """Step (from 0) and loss."""

    @property
    def mean(self) -> float:
        """Mean loss per example of what was read."""
        return self._sum / self.count

    def state(self) -> dict[str, Any]:
        """What `resume` needs, for a checkpoint; the losses must have been read."""
        return {"sum": self._sum, "count": self.count, "steps": self.steps}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._sum, self.count, self.steps = state["sum"], state["count"], state["steps"]

    def add(self, loss: Tensor, size: int) -> bool:
        """Take the loss of a step over ``size`` examples; true if the losses were read."""
        self._unread.append((loss, size))
        self.steps += 1
        if len(self._unread) < self._read_every:
            return False
        self.read()
        return True

    def read(self) -> None:
        """Wait for the losses since the last look and add them up."""
        if not self._unread:
            return
        sizes = [size for _, size in self._unread]
        losses = torch.stack([loss.float() for loss, _ in self._unread])
        if self._accelerator.num_processes > 1:
            losses, sizes = self._over_processes(losses, sizes)
        first = self.steps - len(self._unread)
        for step, (loss, size) in enumerate(zip(losses.tolist(), sizes, strict=True), start=first):
            if self.non_finite is None and not math.isfinite(loss):
                self.non_finite = (step, loss)
            self._sum += loss * size
            self.count += size
        self._unread.clear()

    def _over_processes(self, losses: Tensor, sizes: list[int]) -> tuple[Tensor, list[int]]:
        own = torch.stack([losses, torch.tensor(sizes, dtype=losses.dtype, device=losses.device)])
        everyone, counts = cast("Tensor", self._accelerator.gather(own[None])).unbind(dim=1)  # (processes, steps) each
        total = counts.sum(dim=0)
        return (everyone * counts).sum(dim=0) / total, [int(n) for n in total.tolist()]
