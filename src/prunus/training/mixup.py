"""Mixup: training on weighted means of two images, with both of their labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from prunus.errors import TrainingError


class Mixed:
    """One batch, every image mixed with another of it: x_i <- w x_i + (1 - w) x_p(i), one w ~ Beta(alpha, alpha) for all.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), equation 2 as released: the loss is w times that with the
    own targets plus (1 - w) times that with the other's, so that it works with any loss that is a mean over the batch.

    Raises:
        TrainingError: the batch isn't (inputs, targets), two tensors.
    """

    def __init__(self, batch: Any, alpha: float) -> None:
        parts = cast("tuple[Any, ...]", batch) if isinstance(batch, (tuple, list)) else ()
        if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
            raise TrainingError("mixup mixes tensors of images and targets: batches must be (inputs, targets), two tensors")
        inputs, targets = cast("tuple[Tensor, Tensor]", parts)
        self.weight = float(np.random.beta(alpha, alpha))
        other = torch.randperm(len(inputs)).to(inputs.device)
        self.inputs = self.weight * inputs + (1 - self.weight) * inputs[other]
        self.own, self.others = (self.inputs, targets), (self.inputs, targets[other.to(targets.device)])

    def loss(self, loss_of: Callable[[Any], Tensor]) -> Tensor:
        """The weighted sum of both losses; ``loss_of(batch)`` is the loss with a batch's targets."""
        return self.weight * loss_of(self.own) + (1 - self.weight) * loss_of(self.others)
