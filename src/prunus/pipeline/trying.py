"""Plans that are tried out before one is chosen: what allocators that ask for an accuracy are handed."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from prunus.allocation import allocate
from prunus.graph.labels import named_tensors
from prunus.importance import score
from prunus.pipeline.images import evaluation_images
from prunus.pipeline.stages import read_json, write_checked
from prunus.pipeline.trainer import Trainer
from prunus.reconstruction import recalibrate
from prunus.sources import make_loader
from prunus.surgery import remove
from prunus.surgery.prove import Checks, prove
from prunus.training import evaluate
from prunus.training.workers import worker_failures
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

HELD_BYTES = 2**30
"""Images up to this size are decoded once and held in memory; more are decoded for every plan."""
JudgeFn = Callable[[nn.Module], float]


class PlansAreTried(Exception):
    """Says that an allocator came as far as its first plan to try out; raised by `stop_at_the_first_plan`."""


def stop_at_the_first_plan(plan: PruningPlan) -> float:
    """Stands for an accuracy where only what comes before trying is of interest: names, options, the reach of the budget."""
    raise PlansAreTried


def tried_out(model: nn.Module, graph: ChannelGraph, judge: JudgeFn) -> Callable[[PruningPlan], float]:
    """``evaluate`` (plan -> accuracy) for allocators: removes the plan's channels from a copy of ``model`` and judges that."""

    def evaluate_plan(plan: PruningPlan) -> float:
        return judge(remove(model, graph, plan)[0] if plan.num_removed else copy.deepcopy(model))

    return evaluate_plan


def provable(model: nn.Module, graph: ChannelGraph, checks: Checks) -> ChannelGraph:
    """The graph without the groups whose removal can't be shown to be exact, so that plans on the rest can be tried out."""
    random = score(model, graph, "random", seed=0)
    return prove(checks, graph, lambda graph: half(graph, random)).graph


def half(graph: ChannelGraph, scores: Scores) -> PruningPlan:
    """A plan that takes something from as many groups as it can."""
    known = Scores({g.name: scores.by_group[g.name] for g in graph.prunable}, scores.criterion, scores.comparable)
    return allocate(graph, known, Budget(channels=0.5, max_pruning_ratio=1.0, tolerance=0.99), "uniform")


class Judge:
    """Accuracy of pruned networks on training images held out, after BN recalibration as `recover` says.

    Every accuracy is kept in a file of ``folder``, by what the network holds: a run that was stopped doesn't measure it again.
    """

    def __init__(self, trainer: Trainer, images: int | None, folder: Path) -> None:
        self.trainer, self.folder, self.tried = trainer, folder, 0
        self.calibration = trainer.calibration(trainer.recipe.recover.recalibrate_batches)
        chosen, self.split, self.notes = evaluation_images(trainer.data, "validation")
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))  # pyright: ignore[reportArgumentType]
        self.count = len(order[:images])
        data = trainer.recipe.data
        loader = make_loader(
            Subset(chosen, order[:images].tolist()), batch_size=data.eval_batch_size, shuffle=False, **trainer.decoding
        )
        small = self.count * math.prod(trainer.data.input_shape) * 4 <= HELD_BYTES
        with worker_failures("plans to try"):
            self.batches: Any = list(loader) if small else loader
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, model: nn.Module) -> float:
        """The accuracy of ``model``, whose BN statistics are recalibrated in place."""
        self.tried += 1
        path = self.folder / f"{_digest(model)}.json"
        if path.exists():
            return float(read_json(path)["accuracy"])
        functions = self.trainer
        if self.calibration:
            recalibrate(model, self.calibration, forward_fn=functions.forward_fn)
        found = evaluate(
            model,
            self.batches,
            loss_fn=functions.loss_fn,
            metric=functions.metric,
            forward_fn=functions.forward_fn,
            description=f"plan {self.tried}",
        )
        write_checked(path, {"accuracy": found.accuracy, "images": found.count})
        return found.accuracy

    def about(self) -> dict[str, Any]:
        """What it judged on, for the result."""
        return {"plans": self.tried, "images": self.count, "split": self.split}


def _digest(model: nn.Module) -> str:
    """A hash of all parameters and buffers, with their names and shapes."""
    found = hashlib.sha256()
    for name, tensor in named_tensors(model):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]
