"""What goes as one where a layer divides its channels: the same slot of every group, or a group as a whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from nets import conv, random_plan
from prunus.errors import NothingPruned
from prunus.graph import trace
from prunus.surgery import randomise, remove, silence, verify
from prunus.surgery.verify import verify_training

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _grouped() -> nn.Sequential:
    return nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 12, groups=4), nn.ReLU(), conv(12, 2))


def _transposed() -> nn.Sequential:
    return nn.Sequential(conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4), nn.ReLU(), conv(12, 2))


def _norm(groups: int) -> nn.Sequential:
    return nn.Sequential(conv(3, 12), nn.GroupNorm(groups, 12), nn.ReLU(), conv(12, 2))


def _widths(graph: prunus.ChannelGraph) -> dict[str, tuple[int, bool]]:
    return {g.name: (g.num_channels, g.mixing) for g in graph.prunable}


@pytest.mark.parametrize(
    ("build", "whole", "expected"),
    [
        (_grouped, False, {"0": (2, False), "2": (3, False)}),  # slots: 8 / 4 and 12 / 4
        (_grouped, True, {"0": (4, False)}),  # four groups of two inputs and three outputs each
        (_transposed, False, {"0": (2, False), "2": (3, False)}),
        (_transposed, True, {"0": (4, False)}),
        (lambda: _norm(4), False, {"0": (3, True)}),
        (lambda: _norm(4), True, {"0": (4, False)}),
        (lambda: _norm(12), False, {"0": (12, False)}),
        (lambda: _norm(1), True, {"0": (12, True)}),  # one norm group can't go: its statistics are over all channels
    ],
)
def test_units_by_hand_are_exact(build: object, whole: bool, expected: dict[str, tuple[int, bool]]) -> None:
    torch.manual_seed(0)
    net = randomise(build()).eval()  # type: ignore[operator]
    graph = trace(net, X, whole_groups=whole)
    assert _widths(graph) == expected
    plan = random_plan(graph)
    small, _ = remove(net, graph, plan)
    report = verify(silence(net, graph, plan), small, X)
    assert report.passed and report.max_error < 1e-12, report
    assert verify_training(silence(net, graph, plan), small, X).passed
    assert sum(p.numel() for p in small.parameters()) == graph.cost(plan).parameters


def test_whole_groups_lower_the_number_of_groups() -> None:
    net = _grouped()
    graph = trace(net, X, whole_groups=True)
    plan = prunus.PruningPlan({"0": torch.tensor([True, False, False, True])}, graph.cost())
    small, record = remove(net, graph, plan)
    layer = small[2]
    assert (layer.groups, layer.in_channels, layer.out_channels, small[0].out_channels) == (2, 4, 6, 4)
    assert torch.equal(layer.weight, net[2].weight[[0, 1, 2, 9, 10, 11]])
    assert record.repaired == ()  # a layer's own attribute is no repair
    norm = trace(_norm(4), X, whole_groups=True)
    kept = prunus.PruningPlan({"0": torch.tensor([False, True, True, True])}, norm.cost())
    small_norm = remove(_norm(4), norm, kept)[0][1]
    assert (small_norm.num_groups, small_norm.num_channels) == (3, 9)


def test_freezing_what_mixes_leaves_whole_norm_groups() -> None:
    assert _widths(trace(_norm(4), X, mixing="freeze")) == {"0": (4, False)}
    assert _widths(trace(_norm(1), X, mixing="freeze")) == {}


def test_prune_takes_whole_groups() -> None:
    net = randomise(_grouped()).eval()
    result = prunus.prune(net, X, prunus.Budget(macs=0.6, tolerance=0.2), "l1", whole_groups=True)
    assert result.model[2].groups == 2 and result.verification is not None and result.verification.passed
    with pytest.raises(NothingPruned, match="all 2 groups are frozen"):
        prunus.prune(_norm(1), X, prunus.Budget(macs=0.5), "l1", mixing="freeze")
