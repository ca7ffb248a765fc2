"""Masks of whole channels become real removal, exactly; others don't."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import NothingPruned, UnsupportedNetwork
from prunus.tickets import Masks, apply_masks, dense_masks, masks_of_plan, plan_of_masks, remove_masks


def net() -> nn.Sequential:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, 7), nn.ReLU(), nn.Linear(7, 3)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 3), *head)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    return model.eval()


X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def test_masked_channels_are_removed_without_a_difference() -> None:
    model = net()
    graph = prunus.trace(model, X)
    plan = prunus.allocate(graph, prunus.score(model, graph, "l1"), prunus.Budget(channels=0.5))
    masks = masks_of_plan(model, graph, plan)
    apply_masks(model, masks)
    masked = model(X)
    assert not torch.allclose(masked, net()(X))
    found = plan_of_masks(model_off(model), graph, masks)
    assert {name: keep.tolist() for name, keep in found.keep.items()} == {n: k.tolist() for n, k in plan.keep.items()}
    assert found.predicted == graph.cost(plan)
    small, _ = prunus.remove(model, graph, found)
    assert sum(p.numel() for p in small.parameters()) == found.predicted.parameters
    torch.testing.assert_close(small(X), masked)


def model_off(model: nn.Module) -> nn.Module:
    remove_masks(model)
    return model


def test_a_masked_filter_whose_norm_still_speaks_is_no_removal() -> None:
    """Only the filter is masked: the shift behind it is read, so the channel stays."""
    model = net()
    graph = prunus.trace(model, X)
    masks = dense_masks(model)
    masks.by_name["0.weight"][3] = False
    apply_masks(model, masks)
    remove_masks(model)
    with pytest.raises(NothingPruned, match="leave no channel unread"):
        plan_of_masks(model, graph, masks)
    masks.by_name["3.weight"][:, 3] = False
    apply_masks(model, masks)
    before = model(X)
    remove_masks(model)
    plan = plan_of_masks(model, graph, masks)
    assert {name: (~keep).nonzero().flatten().tolist() for name, keep in plan.keep.items()} == {"0": [3]}
    torch.testing.assert_close(prunus.remove(model, graph, plan)[0](X), before)


def test_a_layer_that_is_masked_whole_keeps_one_channel() -> None:
    model = net()
    graph = prunus.trace(model, X)
    masks = dense_masks(model)
    masks.by_name["3.weight"][:] = False
    apply_masks(model, masks)
    before = model(X)
    remove_masks(model)
    plan = plan_of_masks(model, graph, masks)
    assert plan.counts() == {"0": 1}
    torch.testing.assert_close(prunus.remove(model, graph, plan)[0](X), before)


def test_masked_weights_that_are_held_elsewhere_are_refused() -> None:
    model = net()
    graph = prunus.trace(model, X)
    masks = dense_masks(model)
    masks.by_name["3.weight"][:, 3] = False
    with pytest.raises(UnsupportedNetwork, match=r"masked weights of `3\.weight` aren't zero"):
        plan_of_masks(model, graph, masks)


def test_mixing_groups_are_left_alone() -> None:
    """Without channel 0 the layer norm's statistics would be others."""
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    graph = prunus.trace(model, torch.randn(2, 4))
    assert graph.prunable[0].mixing
    masks = dense_masks(model)
    masks.by_name["2.weight"][:, 0] = False
    with torch.no_grad():
        model[2].weight[:, 0] = 0
    with pytest.raises(NothingPruned):
        plan_of_masks(model, graph, masks)
    assert isinstance(masks, Masks)
