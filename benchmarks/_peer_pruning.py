"""torch-pruning as a row of a table, set as in the scripts with which its authors reproduce their paper (reproduce/main.py)."""

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

STEPS = 400
"""Its scripts go towards a ratio of 1 in so many steps, scores renewed before each, and stop where the cost is reached."""
REGULARISATION, GROWTH = 5e-4, 1e-4
"""Its scripts' defaults on CIFAR; they train without weight decay meanwhile."""
IMPORTANCES: dict[str, Callable[[], Any]] = {
    "l1": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "taylor": torch_pruning.importance.GroupTaylorImportance,
    "scales": torch_pruning.importance.BNScaleImportance,
    "fpgm": torch_pruning.importance.FPGMImportance,
    "lamp": torch_pruning.importance.LAMPImportance,
    "group-norm": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
    "growing-reg": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "scale-training": torch_pruning.importance.BNScaleImportance,
}
TRAINED: dict[str, Callable[..., Any]] = {
    "group-norm": lambda *given, **more: torch_pruning.pruner.GroupNormPruner(*given, reg=REGULARISATION, **more),
    "growing-reg": lambda *given, **more: torch_pruning.pruner.GrowingRegPruner(
        *given, reg=REGULARISATION, delta_reg=GROWTH, **more
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
    """A copy of ``model`` with as near to ``target`` MACs as single steps of the pruner come; MACs by Prunus' count.

    ``options``: ``global_pruning``, ``isomorphic``. Taylor's gradients are those of all batches together, of the network as it
    was; they lose their channels with the weights. Taken anew every 20 steps, as in its example of criteria, they did worse:
    a network without recovery in between soon knows nothing to differentiate (ResNet-20, a quarter: 60.0 for 64.2 %, one seed).
    """
    small = copy.deepcopy(model)
    if way == "taylor":
        _add_gradients(small, batches)
    pruner = pruner_of(small, example, way, ignored, pruning_ratio=1.0, iterative_steps=STEPS, round_to=round_to, **options)
    before, macs = small, prunus.trace(small, example).cost().macs
    for _ in range(STEPS):
        if macs <= target:
            break
        before, above = copy.deepcopy(small), macs
        pruner.step()
        macs = prunus.trace(small, example).cost().macs
    else:
        raise RuntimeError(f"torch-pruning left {macs} MACs in {STEPS} steps, {target} were wanted")
    nearest = before if above - target < target - macs else small
    nearest.zero_grad()
    return nearest.eval()


def _add_gradients(model: nn.Module, batches: Sequence[Any]) -> None:
    model.eval().zero_grad()
    for images, labels in batches:
        F.cross_entropy(model(images), labels).backward()


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
