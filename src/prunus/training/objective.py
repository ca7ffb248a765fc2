"""What is minimised and what is measured: the default loss and metric, the user's own in their place, and how to read a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from prunus.errors import TrainingError
from prunus.types import ForwardFn, LossFn, call_model, first_tensor

MetricFn: TypeAlias = Callable[[Any, Any], Tensor]
AUXILIARY_WEIGHT = 0.3
"""Weight of every auxiliary head's loss, as GoogLeNet was trained."""


def batch_inputs(batch: Any) -> Any:
    """The inputs of a batch: the first entry of a tuple or list, else (with a ``forward_fn``) the batch as it is."""
    if isinstance(batch, (tuple, list)) and len(cast("tuple[Any, ...]", batch)) >= 2:
        return cast("tuple[Any, ...]", batch)[0]
    return batch


def batch_size(batch: Any) -> int:
    """Number of examples in a batch, read off the targets where there are any, else off the inputs."""
    parts = cast("tuple[Any, ...]", batch) if isinstance(batch, (tuple, list)) else (batch,)
    for part in reversed(parts[:2]):
        if isinstance(part, list):
            return len(cast("list[Any]", part))
        tensor = first_tensor(part)
        if tensor is not None and tensor.ndim > 0:
            return tensor.shape[0]
    raise TrainingError(f"can't tell how many examples a batch of type {type(batch).__name__} holds: yield (inputs, targets)")


def _targets(batch: Any) -> Tensor:
    if isinstance(batch, (tuple, list)):
        parts = cast("tuple[Any, ...]", batch)
        if len(parts) == 2 and isinstance(parts[1], Tensor):
            return parts[1]
    raise TrainingError(
        f"the default loss and metric need batches (inputs, targets) with a tensor of targets, "
        f"this one is a {type(batch).__name__}: give your own loss_fn and metric"
    )


def _outputs(output: Any) -> tuple[Tensor, list[Tensor]]:
    """The main output and the auxiliary ones of a tensor, tuple or named tuple (None entries are left out)."""
    if isinstance(output, Tensor):
        return output, []
    if isinstance(output, (tuple, list)):
        parts = [part for part in cast("tuple[Any, ...]", output) if part is not None]
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if tensors and len(tensors) == len(parts) and all(t.shape == tensors[0].shape for t in tensors):
            return tensors[0], tensors[1:]
    raise TrainingError(
        f"the default loss and metric can't read the network's output of type {type(output).__name__}: "
        "they know a tensor of logits, alone or followed by auxiliary logits of the same shape; give your own loss_fn and metric"
    )


def _cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def top1(output: Any, batch: Any) -> Tensor:
    """Share of right answers of every example: float (n,); targets are classes (n, ...) or probabilities (n, classes, ...)."""
    logits, _ = _outputs(output)
    targets = _targets(batch)
    if targets.is_floating_point():
        targets = targets.argmax(dim=1)
    return (logits.argmax(dim=1) == targets).float().reshape(len(logits), -1).mean(dim=1)


@dataclass(frozen=True)
class Objective:
    """Loss, metric and forward call of one run; None stands for cross entropy, top-1 and ``model(inputs)``."""

    loss_fn: LossFn | None = None
    metric: MetricFn | None = None
    forward_fn: ForwardFn | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.loss_fn is not None and self.label_smoothing > 0:
            raise TrainingError(
                f"label_smoothing = {self.label_smoothing} belongs to the default cross entropy and can't act on your own "
                "loss_fn: smooth in loss_fn and set label_smoothing = 0"
            )

    def forward(self, model: nn.Module, inputs: Any) -> Any:
        """The network's output on the inputs of a batch."""
        return call_model(model, inputs, self.forward_fn)

    def inputs(self, batch: Any) -> Any:
        """The inputs of a batch.

        Raises:
            TrainingError: the batch isn't ``(inputs, targets)`` and no ``forward_fn`` says how to read it.
        """
        inputs = batch_inputs(batch)
        if inputs is batch and self.forward_fn is None and not isinstance(batch, (Tensor, Mapping)):
            raise TrainingError(f"a batch is a {type(batch).__name__}: yield (inputs, targets) or give a forward_fn")
        return inputs

    def loss(self, output: Any, batch: Any, *, training: bool) -> Tensor:
        """Mean loss over the batch, a scalar; in training every auxiliary output adds `AUXILIARY_WEIGHT` times its own."""
        if self.loss_fn is not None:
            loss = self.loss_fn(output, batch)
            if not isinstance(cast("Any", loss), Tensor) or loss.numel() != 1:
                shape = tuple(loss.shape) if isinstance(cast("Any", loss), Tensor) else type(loss).__name__
                raise TrainingError(f"loss_fn(output, batch) must return the batch's mean, a tensor with one value, not {shape}")
            return loss.reshape(())
        main, auxiliary = _outputs(output)
        targets = _targets(batch)
        smoothing = self.label_smoothing if training else 0.0
        loss = _cross_entropy(main, targets, smoothing)
        for logits in auxiliary if training else []:
            loss = loss + AUXILIARY_WEIGHT * _cross_entropy(logits, targets, smoothing)
        return loss

    def score(self, output: Any, batch: Any, count: int) -> Tensor:
        """The metric of every example: (count,)."""
        values = (self.metric or top1)(output, batch)
        if not isinstance(cast("Any", values), Tensor) or tuple(values.shape) != (count,):
            shape = tuple(values.shape) if isinstance(cast("Any", values), Tensor) else type(values).__name__
            raise TrainingError(f"metric(output, batch) must return a value per example, shape ({count},), not {shape}")
        return values
