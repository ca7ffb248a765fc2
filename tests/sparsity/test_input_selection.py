"""Sparsity methods on a pre-activation network whose norms select their inputs: what is cut is what was trained."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import prunus
from prunus.config import OptimizerConfig
from prunus.errors import PrunusWarning
from prunus.sparsity import SPARSITY_METHODS
from prunus.sparsity.slimming import NetworkSlimming
from prunus.surgery import SurgeryRecord, randomise, select_streams
from prunus.training import train
from prunus.training_hooks import SparsityTask
from small_nets import PreActivation

DOUBLE = torch.float64


def numbers(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def network() -> tuple[PreActivation, SurgeryRecord, prunus.ChannelGraph]:
    model = randomise(PreActivation()).double()
    record = select_streams(model, SurgeryRecord.nothing_removed(model), numbers(2, 0))
    return model, record, prunus.trace(model, numbers(2, 0))


@pytest.mark.parametrize("name", SPARSITY_METHODS)
def test_the_small_network_is_the_masked_training_network(name: str) -> None:
    model, _, graph = network()
    budget = prunus.Budget(macs=0.6, tolerance=0.2)
    method = SPARSITY_METHODS[name].build("short")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrunusWarning)  # short training; filters don't write selections
        method.prepare(model, graph, SparsityTask(budget, numbers(2, 0)))
        data = TensorDataset(numbers(36, 3), torch.arange(36) % 5)
        train(model, DataLoader(data, batch_size=12), OptimizerConfig(epochs=2, lr=0.02), seed=0, method=method)
        plan = method.plan(budget)
    masked = prunus.silence(copy.deepcopy(model).eval(), graph, plan)
    small, _ = prunus.remove(method.finish().eval(), graph, plan)
    x = numbers(5, 9)
    with torch.no_grad():
        assert float((small(x) - masked(x)).abs().max()) < 1e-9 * float(masked(x).abs().max())
    assert model.norm.selected.tolist() == list(range(12))  # training moves no number
    selections = {"blocks.0.bn1", "blocks.1.bn1", "blocks.2.bn1", "norm"}
    chosen = {n for n in selections & plan.keep.keys() if not bool(plan.keep[n].all())}
    assert not chosen if name in ("resrep", "sfp", "fpgm") else chosen


def test_slimming_removes_the_small_scales_of_one_reader() -> None:
    """Two of eight scales of one norm are small: they go for its branch, and the stream's other readers keep reading them."""
    model, record, graph = network()
    with torch.no_grad():
        model.blocks[0].bn1.weight.fill_(1.0)[[2, 5]] = 1e-3
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim == 1 and name != "blocks.0.bn1.weight":
                parameter.fill_(1.0)
    method = NetworkSlimming(percentile=2.5 / 72)
    budget = prunus.Budget(macs=0.99, tolerance=0.2)
    method.prepare(model, graph, SparsityTask(budget, numbers(2, 0)))
    plan = method.plan(budget)
    assert {name: (~keep).nonzero()[:, 0].tolist() for name, keep in plan.keep.items() if not bool(keep.all())} == {
        "blocks.0.bn1": [2, 5]
    }
    small, later = prunus.remove(method.finish(), graph, plan)
    assert small.blocks[0].bn1.selected.tolist() == [0, 1, 3, 4, 6, 7] and small.blocks[0].conv1.in_channels == 6
    assert small.blocks[1].bn1.num_features == 8
    assert record.compose(later).kept["blocks.0.bn1.selected"][0].tolist() == [0, 1, 3, 4, 6, 7]
