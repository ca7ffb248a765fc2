"""One training step's gradients: of a batch as a whole, or summed up over its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, cast

from accelerate import Accelerator
from torch import Tensor, nn

from prunus.errors import TrainingError
from prunus.training.mixup import Mixed
from prunus.training.objective import Objective, batch_size


class Forward(nn.Module):
    """The network and how it is called: what Accelerate wraps, casts and marks is this module, never the user's."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, inputs: Any) -> Any:
        return self.objective.forward(self.model, inputs)


def add_gradients(
    accelerator: Accelerator,
    forward: nn.Module,
    objective: Objective,
    batch: Any,
    *,
    mixup: float,
    parts: int,
    penalty: Callable[[], Tensor | float] | None,
) -> Tensor:
    """Add the gradients of the mean loss over ``batch``, plus ``penalty()``, to the parameters'; the loss comes back detached.

    In several ``parts``, only one of them is in memory at a time. Each counts as its number of examples says, so that a loss that
    is a mean over examples has the gradients of the whole batch, however unevenly it divides; processes exchange gradients
    once. Layers that look at a batch as a whole, as batch norm in training, see the parts.

    Raises:
        TrainingError: ``batch`` holds something that can't be divided.
    """
    total: Tensor | None = None
    losses = list(_losses(forward, objective, batch, mixup, parts))
    for number, (share, loss_of_part) in enumerate(losses, start=1):
        last = number == len(losses)
        with nullcontext() if last else accelerator.no_sync(forward):
            loss = loss_of_part() if share == 1 else share * loss_of_part()
            if last and penalty is not None:
                loss = loss + penalty()
            accelerator.backward(loss)
        total = loss.detach() if total is None else total + loss.detach()
    return cast("Tensor", total)


def _losses(
    forward: nn.Module, objective: Objective, batch: Any, mixup: float, parts: int
) -> Iterator[tuple[float, Callable[[], Tensor]]]:
    """For every part its share of the examples, and what computes its loss."""
    count = batch_size(batch)
    if mixup:
        mixed = Mixed(batch, mixup)
        for share, (own, others) in divide((mixed.own, mixed.others), count, parts):
            yield share, lambda own=own, others=others: _mixed_loss(forward, objective, mixed.weight, own, others)
        return
    for share, part in divide(batch, count, parts):
        yield share, lambda part=part: objective.loss(forward(objective.inputs(part)), part, training=True)


def _mixed_loss(forward: nn.Module, objective: Objective, weight: float, own: Any, others: Any) -> Tensor:
    output = forward(own[0])
    own_loss, other_loss = (objective.loss(output, batch, training=True) for batch in (own, others))
    return weight * own_loss + (1 - weight) * other_loss


def divide(batch: Any, count: int, parts: int) -> list[tuple[float, Any]]:
    """``batch`` of ``count`` examples in at most so many ``parts``, sizes within one of each other; each with its share of them.

    Tensors and lists of ``count`` entries are divided, in tuples, lists and mappings too; what holds no examples (numbers, texts,
    None) goes to every part.

    Raises:
        TrainingError: a tensor has another length.
    """
    parts = min(parts, count)
    if parts <= 1:
        return [(1.0, batch)]
    bounds = [count * number // parts for number in range(parts + 1)]
    return [((end - start) / count, _part(batch, count, slice(start, end), top=True)) for start, end in pairwise(bounds)]


def _part(value: Any, count: int, chosen: slice, *, top: bool = False) -> Any:
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) != count:
            raise TrainingError(
                f"a batch of {count} examples holds a tensor of shape {tuple(value.shape)}: it can't be divided for gradient "
                "accumulation. Put the examples along the first axis, or set compute.accumulation_steps = 1"
            )
        return value[chosen]
    if isinstance(value, Mapping):
        return {key: _part(entry, count, chosen) for key, entry in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        entries = cast("list[Any] | tuple[Any, ...]", value)
        # A loader's own batch is a list, too: of inputs and targets, however many examples there are.
        if isinstance(entries, list) and not top and len(entries) == count:
            return entries[chosen]
        found = [_part(entry, count, chosen) for entry in entries]
        if hasattr(entries, "_fields"):
            return cast("Any", type(entries))(*found)
        return found if isinstance(entries, list) else tuple(found)
    return value
