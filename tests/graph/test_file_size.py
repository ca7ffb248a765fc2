"""Predicted bytes of the file, beside those that are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import prunus
from prunus.graph.cost import ClosedFormCost, StoredFile, WidthTable
from small_nets import NETS, build, images


def written(model: nn.Module, record: prunus.SurgeryRecord, folder: Path) -> int:
    prunus.save(model, record, folder / "net.prunus")
    return (folder / "net.prunus").stat().st_size


def check(model: nn.Module, example: torch.Tensor, folder: Path) -> None:
    """Whole and pruned, the file is at most as large as predicted, and at most 1 % and 1 kB smaller."""
    graph = prunus.trace(model, example)
    whole = written(model, prunus.SurgeryRecord.nothing_removed(model), folder)
    assert 0 <= graph.cost().file_size - whole <= 1000 + 0.01 * whole
    scores = prunus.score(model, graph, "random")
    for share in (0.8, 0.35):
        plan = prunus.allocate(graph, scores, prunus.Budget(channels=share, tolerance=0.5))
        small = written(*prunus.remove(model, graph, plan), folder)
        assert small < whole and 0 <= plan.predicted.file_size - small <= 1000 + 0.01 * small


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_networks(net: str, dtype: torch.dtype, tmp_path: Path) -> None:
    check(build(net, dtype), images(dtype=dtype), tmp_path)


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5"])
def test_networks_of_torchvision(name: str, tmp_path: Path) -> None:
    check(torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 32, 32), tmp_path)


def test_by_hand() -> None:
    """Weights of 4 x a x b bytes and a header of 50; once a is narrower the record tells of it: 7 bytes, and 3 an entry."""
    widths = WidthTable(np.array([0, 0, 1]), np.array([2, 1]))
    a, b = (widths.row(np.array(labels)) for labels in ([0, 1], [2]))
    stored = StoredFile([(4.0, [a, b])], 50.0, [(a, 7.0, 3.0), (b, 100.0, 1.0)])
    cost = ClosedFormCost({"a": 2, "b": 1}, widths, [], [], [], [], stored)
    assert cost.cost({}).file_size == 4 * 2 + 50
    assert cost.cost({"a": 1}).file_size == 4 + 50 + 7 + 3
    assert cost.terms("file_size") == [{("a", "b"): 4.0, ("a",): 3.0, ("b",): 1.0, (): 157.0}]
