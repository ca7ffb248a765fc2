"""Layers and scores as a result holds them: figures that add up to those of the networks."""

from __future__ import annotations

import itertools

import torch
import torchvision
from torch import nn

import prunus
from prunus.pipeline.layers import layer_rows
from prunus.pipeline.score_rows import MOST, score_rows
from prunus.reconstruction import factorize
from prunus.types import PruningPlan, Scores


class Residual(nn.Module):
    """Two layers whose outputs are added, a depthwise one behind them, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = x + self.b(x.relu())
        return self.head(self.c(x).mean((2, 3)))


def test_rows_of_a_small_network_by_hand():
    x = torch.randn(2, 3, 6, 6)
    found = prunus.prune(Residual().eval(), x, prunus.Budget(channels=0.5, min_channels=1), allocator="uniform")
    rows = layer_rows(found.graph, prunus.trace(found.model, x), x, threads=1)
    assert [(row["name"], row["kind"], row["writes"], row["makes"]) for row in rows] == [
        ("a", "convolution", ["a"], True),
        ("b", "convolution", ["a"], True),
        ("c", "depthwise convolution", ["a"], False),
        ("head", "matrix product", ["head"], True),
    ]
    figures = [[(part["reads"], part["writes"], part["macs"]) for part in (row["before"], row["after"])] for row in rows]
    assert figures == [
        [(3, 8, 3 * 8 * 9 * 36), (3, 4, 3 * 4 * 9 * 36)],
        [(8, 8, 8 * 8 * 9 * 36), (4, 4, 4 * 4 * 9 * 36)],
        [(8, 8, 8 * 9 * 36), (4, 4, 4 * 9 * 36)],
        [(8, 4, 32), (4, 4, 16)],
    ]
    assert all(part["ms"] > 0 for row in rows for part in (row["before"], row["after"]))


def test_multiply_adds_of_the_layers_are_those_of_the_network():
    x = torch.randn(2, 3, 64, 64)
    found = prunus.prune(torchvision.models.mobilenet_v2().eval(), x, prunus.Budget(macs=0.5), verify=False)
    rows = layer_rows(found.graph, prunus.trace(found.model, x), x, threads=1)
    assert sum(row["before"]["macs"] for row in rows) == found.before.macs
    assert sum(row["after"]["macs"] for row in rows) == found.after.macs
    coupled = [row["name"] for row in rows if row["writes"] == ["features.4.conv.2"] and row["makes"]]
    assert coupled == ["features.4.conv.2", "features.5.conv.2", "features.6.conv.2"]


def test_a_divided_layer_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    x = torch.randn(8, 3, 8, 8)
    full = prunus.trace(model, x)
    found = factorize(model, [x], prunus.Budget(macs=0.6))
    small = prunus.trace(found.model, x)
    rows = layer_rows(full, small, x, threads=1)
    assert len(small.layers) > len(full.layers) == len(rows)
    assert sum(row["after"]["macs"] for row in rows) == small.cost().macs
    assert [(row["after"]["reads"], row["after"]["writes"]) for row in rows] == [(3, 8), (8, 8)]


def test_scores_are_thinned_evenly_in_rank():
    values = torch.arange(100.0).flip(0)
    values[0] = torch.inf
    keep = values >= 60
    plan = PruningPlan({"a": keep}, prunus.Cost(0, 0, 0))
    found = score_rows(Scores({"a": values, "b": torch.tensor([2.0, 1.0])}, "l1", comparable=True), plan)
    assert found["criterion"] == "l1" and found["across_groups"] is True
    removed = found["groups"]["a"]["removed"]
    assert len(removed) == MOST and removed[0] == 0 and removed[-1] == 59
    assert max(b - a for a, b in itertools.pairwise(removed)) == 3
    assert found["groups"]["a"]["kept"][-1] == 98  # 39 finite ones
    assert found["groups"]["b"] == {"kept": [1, 2], "removed": []}
