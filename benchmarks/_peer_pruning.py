"""torch-pruning as a row of a table: its importances, its own search for a ratio, and its training towards sparsity."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn

import prunus
from prunus.sparsity.base import BaseMethod

STEPS = 5
"""Steps in which its quick start prunes iteratively; nothing is trained between them here, as nothing is for anybody."""
TRIALS = 14
REGULARISATION = 5e-4
"""As in its reproduction of group sparsity on CIFAR."""
IMPORTANCES: dict[str, Callable[[], Any]] = {
    "l1": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "taylor": torch_pruning.importance.GroupTaylorImportance,
    "scales": torch_pruning.importance.BNScaleImportance,
    "fpgm": torch_pruning.importance.FPGMImportance,
    "lamp": torch_pruning.importance.LAMPImportance,
    "group-norm": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "growing-reg": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "scale-training": torch_pruning.importance.BNScaleImportance,
}
TRAINED: dict[str, Callable[..., Any]] = {
    "group-norm": lambda *given, **more: torch_pruning.pruner.GroupNormPruner(*given, reg=REGULARISATION, **more),
    "growing-reg": lambda *given, **more: torch_pruning.pruner.GrowingRegPruner(
        *given, reg=REGULARISATION / 5, delta_reg=REGULARISATION / 5, **more
    ),
    "scale-training": lambda *given, **more: torch_pruning.pruner.BNScalePruner(*given, reg=REGULARISATION, **more),
}


def pruner_of(
    model: nn.Module,
    example: Tensor,
    way: str,
    ignored: Sequence[str],
    make: Callable[..., Any] = torch_pruning.pruner.BasePruner,
    **options: Any,
) -> Any:
    """A pruner on ``model``; ``ignored`` are globs of layers whose outputs stay."""
    layers = [module for name, module in model.named_modules() if any(fnmatchcase(name, glob) for glob in ignored)]
    return make(
        model,
        example,
        IMPORTANCES[way](),
        ignored_layers=layers,
        in_channel_groups={},  # its defaults are dicts that all pruners of a process share
        out_channel_groups={},
        num_heads={},
        **options,
    )


def pruned(
    model: nn.Module,
    example: Tensor,
    way: str,
    target: int,
    ignored: Sequence[str],
    batches: Sequence[Any],
    *,
    round_to: int | None = None,
    **options: Any,
) -> nn.Module:
    """A copy of ``model`` with as near to ``target`` MACs as a bisection of its pruning ratio comes; MACs by Prunus' count.

    ``options``: ``global_pruning``, ``isomorphic``. The gradients that Taylor needs are of all batches together.
    """
    gradients = _gradients(model, batches) if way == "taylor" else {}
    low, high, best, gap = 0.0, 1.0, model, float("inf")
    for _ in range(TRIALS):
        ratio = (low + high) / 2
        trial = copy.deepcopy(model)
        for name, parameter in trial.named_parameters():
            parameter.grad = gradients[name].clone() if name in gradients else None
        pruner = pruner_of(trial, example, way, ignored, pruning_ratio=ratio, iterative_steps=STEPS, round_to=round_to, **options)
        for _ in range(STEPS):
            pruner.step()
        trial.zero_grad()
        macs = prunus.trace(trial.eval(), example).cost().macs
        if abs(macs - target) < gap:
            best, gap = trial, abs(macs - target)
        low, high = (ratio, high) if macs > target else (low, ratio)
    return best


def _gradients(model: nn.Module, batches: Sequence[Any]) -> dict[str, Tensor]:
    scored = copy.deepcopy(model).eval()
    for images, labels in batches:
        F.cross_entropy(scored(images), labels).backward()
    return {name: p.grad for name, p in scored.named_parameters() if p.grad is not None}


class PeerTraining(BaseMethod):
    """Its regularisers in the training loop of all rows: called behind every backward pass, and grown epoch by epoch."""

    name = "torch-pruning"

    def __init__(self, way: str, ignored: Sequence[str]) -> None:
        self.way, self.ignored = way, ignored

    def attach(self) -> None:
        """Its pruner on the network that is trained."""
        example = self.task.example_inputs
        assert isinstance(example, Tensor)
        self.pruner = pruner_of(self.model, example, self.way, self.ignored, TRAINED[self.way], global_pruning=True)

    def after_backward(self) -> None:
        """Add to the gradients."""
        self.pruner.regularize(self.model)

    def end_epoch(self, loss: float) -> None:
        """More of it, where it grows."""
        if self.way == "growing-reg":
            self.pruner.update_reg()

    def strengths(self) -> dict[str, Tensor]:
        """Not told."""
        return {}

    def left(self) -> dict[str, Tensor]:
        """Everything, until it is pruned."""
        return {group.name: torch.ones(group.num_channels, dtype=torch.bool) for group in self.graph.prunable}
