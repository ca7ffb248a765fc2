"""A small network, data and a training run for the contracts of `SPARSITY_METHODS`, shared with the test's two processes."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunus
from prunus.config import OptimizerConfig
from prunus.sparsity.methods import SPARSITY_METHODS
from prunus.training import train
from prunus.training_hooks import SparsityMethod, SparsityTask
from small_nets import Plain, images

BUDGET = prunus.Budget(macs=0.5, tolerance=0.1)
SETTINGS = OptimizerConfig(epochs=3, lr=0.05, warmup_epochs=0)


class FixedNorm(nn.BatchNorm2d):
    """Batch norm by its running statistics in training, too: what processes compute must not depend on their share of a batch."""

    def train(self, mode: bool = True) -> FixedNorm:
        return super().train(False)


def network(norm: type[nn.BatchNorm2d] | None = nn.BatchNorm2d) -> nn.Module:
    """Convolutions of 8, 12 and 12 channels in float64, statistics and scales as after some training; None: without norms."""
    torch.manual_seed(3)
    model = Plain((8, 12, 12))
    for block in (model.one, model.two, model.three):
        block[1] = nn.Identity() if norm is None else norm(block[0].out_channels)
        if norm is None:
            continue
        for tensor, low, high in ((block[1].weight, 0.4, 1.6), (block[1].bias, -0.3, 0.3), (block[1].running_var, 0.2, 0.6)):
            nn.init.uniform_(tensor, low, high)
    return model.double()


def data(count: int = 48) -> TensorDataset:
    """Images that show their class by the quadrant that is bright."""
    labels = torch.arange(count) % 4
    x = 0.4 * images(count, dtype=torch.float64, seed=5)
    for i, label in enumerate(labels.tolist()):
        row, column = 4 * (label // 2), 4 * (label % 2)
        x[i, :, row : row + 4, column : column + 4] += 1.5
    return TensorDataset(x, labels)


def loader(batch: int = 12) -> DataLoader[tuple[Tensor, ...]]:
    """With a generator of its own the order is the same in however many processes."""
    return DataLoader(data(), batch_size=batch, shuffle=True, generator=torch.Generator())


def task() -> SparsityTask:
    return SparsityTask(BUDGET, images(dtype=torch.float64), seed=1)


def prepared(name: str, norm: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> tuple[nn.Module, prunus.ChannelGraph, SparsityMethod]:
    """The network, its graph, and a method of the short preset that has prepared it."""
    model = network(norm)
    graph = prunus.trace(model, images(dtype=torch.float64))
    method = SPARSITY_METHODS[name].build("short")
    return method.prepare(model, graph, task()), graph, method


def trained(
    name: str, norm: type[nn.BatchNorm2d] = nn.BatchNorm2d, batch: int = 12, **options: Any
) -> tuple[nn.Module, prunus.ChannelGraph, SparsityMethod]:
    """The same after training."""
    model, graph, method = prepared(name, norm)
    train(model, loader(batch), SETTINGS, seed=2, method=method, **options)
    return model, graph, method


def kept(name: str, batch: int) -> dict[str, list[bool]]:
    """The plan of a training in however many processes there are."""
    plan = trained(name, FixedNorm, batch)[2].plan(BUDGET)
    return {group: mask.tolist() for group, mask in plan.keep.items()}


def copied(model: nn.Module, graph: prunus.ChannelGraph, plan: prunus.PruningPlan) -> Callable[[Tensor], Tensor]:
    """The training network, silenced, as it is now."""
    return prunus.silence(copy.deepcopy(model).eval(), graph, plan)


if __name__ == "__main__":
    torch.set_num_threads(1)
    plans = {name: kept(name, batch=6) for name in SPARSITY_METHODS}
    Path(sys.argv[1]).write_text(json.dumps(plans))
    torch.distributed.destroy_process_group()
