"""He et al.'s widths by stage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import UnknownName


def stages() -> nn.Module:
    """Four stages of two layers, 24 channels each, on maps of 16, 8, 4 and 2 pixels, and a classifier."""
    layers: list[nn.Module] = []
    for stage in range(4):
        for i in range(2):
            layers += [nn.Conv2d(3 if stage == i == 0 else 24, 24, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if stage < 3 else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 24), nn.ReLU(), nn.Linear(24, 5))


def plan(budget: prunus.Budget) -> tuple[prunus.ChannelGraph, prunus.PruningPlan]:
    model = stages()
    graph = prunus.trace(model, torch.randn(1, 3, 16, 16))
    return graph, prunus.allocate(graph, prunus.score(model, graph, "l1"), budget, "per_layer", ratios="shallow_to_deep")


def test_deep_layers_keep_half_as_much_again_and_the_last_stage_everything() -> None:
    graph, found = plan(prunus.Budget(macs=0.3, tolerance=0.05))
    kept = found.counts()
    names = [group.name for group in graph.prunable]
    assert set(kept) == set(names[:6])  # neither the last stage nor the classifier
    shallow, deep = [kept[name] for name in names[:4]], [kept[name] for name in names[4:6]]
    assert max(shallow) - min(shallow) <= 1 and max(deep) - min(deep) <= 1
    assert sum(deep) / 2 == pytest.approx(1.5 * sum(shallow) / 4, abs=1.5)
    assert found.predicted.macs <= 0.3 * graph.cost().macs


def test_deep_layers_keep_everything_at_a_mild_budget() -> None:
    graph, found = plan(prunus.Budget(macs=0.7, tolerance=0.05))
    names = [group.name for group in graph.prunable]
    assert all(bool(found.keep[name].all()) for name in names[4:6] if name in found.keep)
    assert found.predicted.macs <= 0.7 * graph.cost().macs


def test_a_single_stage_is_pruned_evenly() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 4, 1)
    )
    graph = prunus.trace(model, torch.randn(1, 3, 8, 8))
    scores = prunus.score(model, graph, "l1")
    found = prunus.allocate(graph, scores, prunus.Budget(macs=0.4, tolerance=0.05), "per_layer", ratios="shallow_to_deep")
    kept = list(found.counts().values())
    assert len(kept) == 2 and max(kept) - min(kept) <= 1


def test_other_words_are_refused() -> None:
    graph = prunus.trace(stages(), torch.randn(1, 3, 16, 16))
    scores = prunus.score(stages(), graph, "l1")
    with pytest.raises(UnknownName, match="ratios = 'deep': a table of shares, or 'shallow_to_deep'"):
        prunus.allocate(graph, scores, prunus.Budget(macs=0.5), "per_layer", ratios="deep")
