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
from prunus.training.workers import worker_failures
from prunus.types import ForwardFn, LossFn, first_tensor
from prunus.wrapping import refuse_wrapped

TOP = 5
LARGEST_CONFUSION = 50  # classes
MOST_CONFUSED = 10  # pairs of classes
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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
        TrainingError: the loader yields nothing, its processes die or hang, or an output, batch or callable doesn't fit.
        UnsupportedNetwork: the model is wrapped or divided (DDP, FSDP): several processes evaluate a plain one in each.
    """
    refuse_wrapped(model)
    accelerator = start_accelerator()
    objective = Objective(loss_fn, metric, forward_fn)
    with worker_failures(description), restored_generators(), placed(model, accelerator.device):
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
    answers = _Answers()
    start = time.perf_counter()
    with progress_bar(description, count_batches(batches), enabled=show and accelerator.is_main_process) as report:
        for batch in batches:
            output = objective.forward(model, objective.inputs(batch))
            counts.append(batch_size(batch))
            losses.append(objective.loss(output, batch, training=False).detach())
            scores.append(objective.score(output, batch, counts[-1]).float().sum())
            if objective.metric is None:
                answers.add(output, batch)
            report(description, len(counts), None)
    # Sums, not means, leave the process: shards may be uneven, and a mean over padded batches would count examples twice.
    loss = math.fsum(value * n for value, n in zip(_values(losses), counts, strict=True))
    sums = [loss, math.fsum(_values(scores)), float(sum(counts)), *answers.sums()]
    several = accelerator.num_processes > 1 and is_sharded(accelerator, loader)
    if several:
        shared = torch.tensor(sums, dtype=torch.float64, device=accelerator.device)
        sums = cast("Tensor", accelerator.reduce(shared, "sum")).tolist()
    loss_sum, score_sum, count, *answer_sums = sums
    if count == 0:
        raise TrainingError(f"{description}: the loader yields nothing: is the split empty, or smaller than one batch?")
    pairs = answers.pairs(accelerator, gather=several) if answer_sums[0] == count else None
    classes = _describe(pairs, answer_sums) if pairs is not None else {}
    return Evaluation(score_sum / count, loss_sum / count, int(count), time.perf_counter() - start, **classes)


class _Answers:
    """The true and the predicted class of every example of plain classification; other batches leave it short of examples."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []  # (2, n): true and predicted class
        self.top: list[Tensor] = []
        self.classes = 0

    def add(self, output: Any, batch: Any) -> None:
        """Take in a batch that the default metric has read already. Nothing is moved off the device here."""
        logits, targets = first_tensor(output), batch[1]
        if logits is None or logits.ndim != 2 or targets.ndim != 1 or targets.dtype not in _INTEGERS:
            return
        if self.classes not in (0, logits.shape[1]):
            return
        self.classes = logits.shape[1]
        predicted = logits.argmax(dim=1)
        self.batches.append(torch.stack([targets.to(torch.int64), predicted]))
        if self.classes > TOP:
            among = (logits.topk(TOP, dim=1).indices == targets[:, None]).any(dim=1)
            self.top.append((among | (predicted == targets)).sum())  # topk may break ties another way than argmax

    def sums(self) -> list[float]:
        """Examples taken in, those among the top five, examples times classes: they add up over processes."""
        count = sum(batch.shape[1] for batch in self.batches)
        return [float(count), math.fsum(_values(self.top)), float(count * self.classes)]

    def pairs(self, accelerator: Accelerator, *, gather: bool) -> Tensor:
        """The classes (2, n) of all examples; with ``gather``, of those of all processes, in no particular order."""
        empty = torch.empty(0, 2, dtype=torch.int64, device=accelerator.device)  # a process may have had no batch
        rows = torch.cat([empty, *(batch.T for batch in self.batches)])
        if gather:
            padding = torch.iinfo(torch.int64).min
            padded = accelerator.pad_across_processes(rows, dim=0, pad_index=padding)
            rows = cast("Tensor", accelerator.gather(padded))
            rows = rows[rows[:, 0] != padding]
        return rows.T.cpu()


def _describe(pairs: Tensor, sums: list[float]) -> dict[str, Any]:
    """The fields of `Evaluation` that are about classes; none where a target isn't one of the classes (an ignored label)."""
    true, predicted = pairs
    count = len(true)
    classes = round(sums[2] / count)
    if classes * count != sums[2] or true.min() < 0 or true.max() >= classes:
        return {}
    occurs = true.bincount(minlength=classes)
    recall = true[true == predicted].bincount(minlength=classes)[occurs > 0] / occurs[occurs > 0].double()
    kinds, examples = (true * classes + predicted)[true != predicted].unique(return_counts=True)
    order = examples.sort(descending=True, stable=True).indices[:MOST_CONFUSED]
    matrix = None
    if classes <= LARGEST_CONFUSION:
        matrix = (true * classes + predicted).bincount(minlength=classes**2).reshape(classes, classes).tolist()
    return {
        "top5": sums[1] / count if classes > TOP else None,
        "balanced_accuracy": recall.mean().item(),
        "confusion": matrix,
        "most_confused": torch.stack([kinds[order] // classes, kinds[order] % classes, examples[order]], dim=1).tolist(),
    }


def _values(scalars: list[Tensor]) -> list[float]:
    """Read all at once: one synchronisation with the device instead of one per batch."""
    return torch.stack(scalars).double().tolist() if scalars else []
