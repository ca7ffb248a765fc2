"""What the small network looks like, what survives in it, and what training state goes along."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from nets import NETS, Program, conv, image, random_plan, residual
from prunus.graph import trace
from prunus.surgery import randomise, remove, silence, verify
from prunus.types import ChannelGraph, PruningPlan


def pruned(model: nn.Module, inputs: Any = None, seed: int = 0, **state: Any) -> tuple[nn.Module, Any, ChannelGraph, PruningPlan]:
    """Trace, remove half of every group: (small, record, graph, plan)."""
    graph = trace(model, image() if inputs is None else inputs)
    plan = random_plan(graph, seed)
    return *remove(model, graph, plan, **state), graph, plan


# -- attributes


ATTRIBUTES = {
    "chain": {"0": {"out_channels": 4}, "2": {"in_channels": 4, "out_channels": 3}, "4": {"in_channels": 3, "out_channels": 4}},
    "flatten": {"0": {"out_channels": 4}, "1": {"num_features": 4}, "5": {"in_features": 64, "out_features": 5}},
    "grouped": {"0.0": {"out_channels": 6}, "1.0": {"in_channels": 6, "out_channels": 3, "groups": 3}, "2": {"in_channels": 3}},
    "depthwise": {"1": {"in_channels": 4, "out_channels": 4, "groups": 4}, "3": {"in_channels": 4}},
    "depthwise multiplier": {"1": {"in_channels": 3, "out_channels": 6, "groups": 3}, "2": {"in_channels": 6}},
    "transposed": {"1": {"in_channels": 3, "out_channels": 2, "groups": 1}},
    "transposed grouped": {"1": {"in_channels": 4, "out_channels": 4, "groups": 2}},
    "transposed depthwise": {"1": {"in_channels": 4, "out_channels": 4, "groups": 4}},
    "three dimensions": {"1": {"num_features": 3}, "3": {"in_channels": 3, "out_channels": 2}},
    "prelu": {"1": {"num_parameters": 3}, "3": {"num_parameters": 1}},
    "instance norm": {"1": {"num_features": 3}},
    "layer norm": {"norm": {"normalized_shape": (4,)}},
    "group norm": {"norm": {"num_channels": 4, "num_groups": 2}},
    "embedding": {"stem": {"embedding_dim": 3, "num_embeddings": 10}},
    "parametrised weight": {"2": {"in_channels": 3, "out_channels": 2}},
    "weight norm": {"2": {"in_channels": 3, "out_channels": 2}},
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_follow_the_new_shapes(name: str) -> None:
    small, record, _, _ = pruned(NETS[name].model(), NETS[name].inputs())
    found = {path: {a: getattr(small.get_submodule(path), a) for a in values} for path, values in ATTRIBUTES[name].items()}
    assert found == ATTRIBUTES[name]
    for path, values in record.attributes.items():
        assert all(getattr(small.get_submodule(path), a) == v for a, v in values.items())


def test_kept_slices_are_the_original_values() -> None:
    model = NETS["flatten"].model()
    graph = trace(model, image())
    keep = torch.tensor([True, False, True, True, False, True, True, True])
    small, record = remove(model, graph, PruningPlan({"0": keep}, graph.cost()))
    columns = keep.repeat_interleave(16)
    assert torch.equal(small[0].weight, model[0].weight[keep])  # type: ignore[index, arg-type]
    assert torch.equal(small[5].weight, model[5].weight[:, columns])  # type: ignore[index, arg-type]
    assert torch.equal(small[5].bias, model[5].bias)  # type: ignore[index, arg-type]
    assert {name: {axis: len(kept) for axis, kept in axes.items()} for name, axes in record.kept.items()} == {
        "0.weight": {0: 6},
        "1.weight": {0: 6},
        "1.bias": {0: 6},
        "1.running_mean": {0: 6},
        "1.running_var": {0: 6},
        "5.weight": {1: 96},
    }


# -- what survives


class Special(nn.Conv2d):
    """A subclass with an attribute of its own."""

    remark = "mine"


def test_the_input_is_untouched_to_the_bit() -> None:
    model = residual().train()
    before = copy.deepcopy(model.state_dict())
    ids = [id(p) for p in model.parameters()]
    pruned(model)
    assert ids == [id(p) for p in model.parameters()] and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.stem[0].out_channels == 6  # type: ignore[union-attr, index]


def test_classes_modes_flags_hooks_and_ties_survive() -> None:
    model = NETS["shared parameter"].model()
    model.head = Special(6, 2, 3, padding=1)
    model.head.extra = {"scale": 3}  # type: ignore[assignment]
    model.stem.weight.requires_grad_(False)  # type: ignore[union-attr]
    model.first.weight.decay = 0.25  # type: ignore[union-attr]
    model.first.train()
    model.second.register_forward_hook(lambda module, args, out: out * 2)  # type: ignore[union-attr]
    small, _, graph, plan = pruned(model)
    assert type(small.head) is Special and small.head.remark == "mine" and small.head.extra == {"scale": 3}
    assert small.first.training and not small.second.training  # type: ignore[union-attr]
    assert small.first.weight is small.second.weight  # type: ignore[union-attr]
    assert not small.stem.weight.requires_grad and small.stem.bias.requires_grad  # type: ignore[union-attr]
    assert small.first.weight.decay == 0.25  # type: ignore[union-attr]
    assert verify(silence(model, graph, plan), small, image()).passed
    calls: list[int] = []
    small.second.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    out = small(image())
    small.second._forward_hooks.clear()  # type: ignore[union-attr]
    assert calls == [1] and not torch.equal(out, small(image()))  # the doubling hook did work in the small network


def test_gradient_hooks_survive() -> None:
    model = NETS["chain"].model()
    seen: list[str] = []
    weight = model[2].weight  # type: ignore[index]
    weight.register_hook(lambda grad: seen.append("tensor") or grad * 0)  # type: ignore[operator, union-attr]
    weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))  # type: ignore[operator, union-attr]
    model[0].weight.register_hook(lambda grad: grad)  # type: ignore[index, operator, union-attr]
    model[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    small, *_ = pruned(model)
    small(image()).sum().backward()
    assert seen == ["tensor", "accumulated"]
    assert not small[2].weight.grad.any() and small[4].weight.grad.any()  # type: ignore[index, union-attr]
    assert not small[0].weight.requires_grad  # type: ignore[index, union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_memory_format_survive(dtype: torch.dtype) -> None:
    model = residual().to(dtype=dtype, memory_format=torch.channels_last)
    small, _, graph, plan = pruned(model, image().to(dtype))
    assert {p.dtype for p in small.parameters()} == {dtype}
    for name, p in small.named_parameters():
        if p.ndim == 4:
            assert p.is_contiguous(memory_format=torch.channels_last), name
    assert not small.second[0].weight.is_contiguous()  # type: ignore[union-attr, index, operator]
    report = verify(silence(model, graph, plan), small, image().to(dtype))
    assert report.passed and report.tolerance == 1e-9


def test_a_pruned_network_can_be_pruned_again_and_trained() -> None:
    small, _, _, _ = pruned(randomise(residual()))
    smaller, _, graph, plan = pruned(small)
    assert verify(silence(small, graph, plan), smaller, image()).passed
    smaller.train()
    before = smaller.head.weight.detach().clone()  # type: ignore[union-attr, operator]
    optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1)
    F.cross_entropy(smaller(image()), torch.tensor([0, 2])).backward()
    optimizer.step()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in smaller.parameters())
    assert not torch.equal(before, smaller.head.weight)  # type: ignore[union-attr, arg-type]


# -- plans that can't be carried out


def test_removing_nothing_is_an_error() -> None:
    model = residual()
    graph = trace(model, image())
    for keep in ({}, {"first.0": torch.ones(8, dtype=torch.bool)}):
        with pytest.raises(prunus.NothingPruned, match=r"the plan removes no channel: lower the budget, or see `graph\.frozen`"):
            remove(model, graph, PruningPlan(keep, graph.cost()))


def test_unknown_and_frozen_groups_are_refused() -> None:
    model = residual()
    graph = trace(model, image())
    for carry_out in (remove, silence):
        with pytest.raises(prunus.UnknownName, match=r"unknown group in the plan 'frist\.0': did you mean first\.0"):
            carry_out(model, graph, PruningPlan({"frist.0": torch.arange(8) > 1}, graph.cost()))
        with pytest.raises(prunus.UnknownName, match="the plan prunes group `head`, which is frozen: it is the network's output"):
            carry_out(model, graph, PruningPlan({"head": torch.arange(3) > 1}, graph.cost()))


@pytest.mark.parametrize("keep", [torch.zeros(8, dtype=torch.bool), torch.arange(7) > 1])
def test_a_mask_that_fits_no_group_is_refused(keep: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    graph = trace(model, image())
    with pytest.raises(prunus.UnsupportedNetwork, match=r"the plan for group `0` must keep at least one of its 8 channels"):
        remove(model, graph, PruningPlan({"0": keep}, graph.cost()))


def test_another_network_than_the_traced_one_is_refused() -> None:
    graph = trace(residual(), image())
    with pytest.raises(prunus.UnsupportedNetwork, match="don't have the names and shapes of the traced one: trace it again"):
        remove(NETS["chain"].model(), graph, random_plan(graph))


def test_a_shared_module_is_edited_once() -> None:
    block = conv(6, 6)
    model = Program(lambda m, x: m.head(m.a(F.relu(m.b(m.stem(x))))), stem=conv(3, 6), a=block, b=block, head=conv(6, 2))
    small, _, graph, plan = pruned(model)
    assert small.a is small.b and small.a.out_channels == 3  # type: ignore[union-attr]
    assert verify(silence(model, graph, plan), small, image()).passed
