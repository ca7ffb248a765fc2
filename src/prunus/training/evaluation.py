"""Accuracy and loss of a network on a data set, exact under any number of processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from prunus.errors import TrainingError
from prunus.training.log import Evaluation
from prunus.training.objective import MetricFn, Objective, batch_size
from prunus.training.placement import count_batches, is_sharded, placed, share_batches, start_accelerator
from prunus.training.progress import progress_bar
from prunus.training.randomness import restored_generators
from prunus.types import ForwardFn, LossFn


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss_fn: LossFn | None = None,
    metric: MetricFn | None = None,
    forward_fn: ForwardFn | None = None,
    description: str = "evaluate",
) -> Evaluation:
    """Evaluate ``model`` in eval mode, without gradients and in its own precision; mode, device and random state stay as found.

    A batch is ``(inputs, targets)``. ``loss_fn(output, batch)`` returns a mean over the batch (default: cross entropy of the main
    output), ``metric(output, batch)`` one value per example, shape (n,) (default: top-1), ``forward_fn(model, inputs)`` the
    output. Every example counts once, however the batches and processes divide them. A network that has diverged has a loss
    of nan here: that is its loss.

    Raises:
        TrainingError: the loader yields nothing, or an output, batch or callable doesn't fit the above.
    """
    accelerator = start_accelerator()
    objective = Objective(loss_fn, metric, forward_fn)
    with restored_generators(), placed(model, accelerator.device):
        return run_evaluation(accelerator, model, loader, objective, description, show=True)


@torch.no_grad()
def run_evaluation(
    accelerator: Accelerator, model: nn.Module, loader: Iterable[Any], objective: Objective, description: str, *, show: bool
) -> Evaluation:
    """`evaluate` on a network that is on its device already; leaves it in eval mode."""
    model.eval()
    batches = share_batches(accelerator, loader, even=False)
    losses: list[Tensor] = []
    scores: list[Tensor] = []
    counts: list[int] = []
    start = time.perf_counter()
    with progress_bar(description, count_batches(batches), enabled=show and accelerator.is_main_process) as report:
        for batch in batches:
            output = objective.forward(model, objective.inputs(batch))
            counts.append(batch_size(batch))
            losses.append(objective.loss(output, batch, training=False).detach())
            scores.append(objective.score(output, batch, counts[-1]).float().sum())
            report(description, len(counts), None)
    # Sums, not means, leave the process: shards may be uneven, and a mean over padded batches would count examples twice.
    loss = math.fsum(value * n for value, n in zip(_values(losses), counts, strict=True))
    sums = [loss, math.fsum(_values(scores)), float(sum(counts))]
    if accelerator.num_processes > 1 and is_sharded(accelerator, loader):
        shared = torch.tensor(sums, dtype=torch.float64, device=accelerator.device)
        sums = cast("Tensor", accelerator.reduce(shared, "sum")).tolist()
    loss_sum, score_sum, count = sums
    if count == 0:
        raise TrainingError(f"{description}: the loader yields nothing: is the split empty, or smaller than one batch?")
    return Evaluation(score_sum / count, loss_sum / count, int(count), time.perf_counter() - start)


def _values(scalars: list[Tensor]) -> list[float]:
    """Read all at once: one synchronisation with the device instead of one per batch."""
    return torch.stack(scalars).double().tolist() if scalars else []
