"""Masks of torch.nn.utils.prune, in and out: what they mask as whole channels becomes a removal, and a plan becomes masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import prunus
from prunus.errors import NothingPruned, UnknownName
from prunus.tickets import Masks, from_torch_masks, masks_of_plan, plan_of_filters, plan_of_masks, to_torch_masks

X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def net(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, bias=bias), nn.Conv2d(8, 10, 3)
    return nn.Sequential(first, nn.ReLU(), second, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, 3)).eval()


def test_masks_come_off_a_copy_and_the_network_stays() -> None:
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.ln_structured(model[2], "weight", 0.3, n=1, dim=0)
    prune.random_unstructured(model[5], "bias", amount=1)
    before = model(X)
    plain, masks = from_torch_masks(model)
    assert torch.equal(plain(X), before) and torch.equal(model(X), before)
    assert {n for n, _ in plain.named_parameters()} == {n for n, _ in net().named_parameters()}
    assert not dict(plain.named_buffers()) and all(p.is_leaf and p.requires_grad for p in plain.parameters())
    assert hasattr(model[0], "weight_orig") and not plain[0]._forward_pre_hooks
    assert masks.counts() == {"0.weight": 108, "2.weight": 7 * 72, "5.bias": 2}
    assert torch.equal(plain[0].weight != 0, masks.by_name["0.weight"])


def test_whole_filters_become_a_removal() -> None:
    """Without a bias a masked filter emits zeros, so that nothing changes."""
    model = net(bias=False)
    prune.ln_structured(model[0], "weight", 3, n=2, dim=0)
    gone = [c for c in range(8) if not model[0].weight_mask[c].any()]
    plain, masks = from_torch_masks(model)
    graph = prunus.trace(plain, X)
    plan = plan_of_filters(plain, graph, masks)
    (keep,) = plan.keep.values()
    assert [c for c in range(8) if not keep[c]] == gone and len(gone) == 3
    small, _ = prunus.remove(plain, graph, plan)
    assert small[0].out_channels == 5 and plan.predicted.parameters == sum(p.numel() for p in small.parameters())
    torch.testing.assert_close(small(X), model(X))
    assert prunus.verify(prunus.silence(plain, graph, plan), small, X).passed


def test_a_bias_goes_with_its_filter() -> None:
    model = net()
    nn.init.ones_(model[0].bias)
    prune.ln_structured(model[0], "weight", 1, n=1, dim=0)
    plain, masks = from_torch_masks(model)
    graph = prunus.trace(plain, X)
    plan = plan_of_filters(plain, graph, masks)
    small, _ = prunus.remove(plain, graph, plan)
    assert small[0].out_channels == 7 and not torch.allclose(small(X), model(X), atol=1e-3)
    with pytest.raises(NothingPruned):
        plan_of_masks(plain, graph, masks)  # somebody reads the bias


def test_one_channel_stays_and_single_weights_are_no_channel() -> None:
    plain, graph = net(), prunus.trace(net(), X)
    none = Masks({"0.weight": torch.zeros(8, 3, 3, 3, dtype=torch.bool)})
    assert plan_of_filters(plain, graph, none).counts() == {"0": 1}
    single = Masks({"0.weight": torch.ones(8, 3, 3, 3, dtype=torch.bool)})
    single.by_name["0.weight"][:, 0] = False
    with pytest.raises(
        NothingPruned, match=r"no channel is masked in every layer that writes it, .*mask whole filters \(dim=0\)"
    ):
        plan_of_filters(plain, graph, single)


def test_a_residual_stream_loses_what_all_its_layers_mask() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.head(x + self.b(x))

    model = Residual().eval()
    graph = prunus.trace(model, X)
    masks = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in ("a.weight", "b.weight")}
    masks["a.weight"][[0, 1]] = False
    masks["b.weight"][[1, 2]] = False
    (keep,) = plan_of_filters(model, graph, Masks(masks)).keep.values()
    assert keep.tolist() == [True, False, True, True]
    with pytest.raises(NothingPruned):
        plan_of_filters(model, graph, Masks({"a.weight": masks["a.weight"]}))  # the other layer writes all of them


def test_a_plan_as_masks_and_back() -> None:
    model = net()
    graph = prunus.trace(model, X)
    plan = prunus.allocate(graph, prunus.score(model, graph, "l1"), prunus.Budget(channels=0.5))
    masked = to_torch_masks(model, masks_of_plan(model, graph, plan))
    assert prune.is_pruned(masked) and not prune.is_pruned(model)
    torch.testing.assert_close(masked(X), prunus.remove(model, graph, plan)[0](X))
    plain, masks = from_torch_masks(masked)
    back = plan_of_masks(plain, prunus.trace(plain, X), masks)
    assert {name: keep.tolist() for name, keep in back.keep.items()} == {n: k.tolist() for n, k in plan.keep.items()}


def test_what_cant_be_done_is_said() -> None:
    with pytest.raises(NothingPruned, match=r"Sequential has no masks of torch\.nn\.utils\.prune"):
        from_torch_masks(net())
    with pytest.raises(UnknownName, match=r"unknown parameter '0\.wieght': did you mean 0\.weight"):
        to_torch_masks(net(), Masks({"0.wieght": torch.zeros(1, dtype=torch.bool)}))
