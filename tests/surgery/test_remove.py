"""What the small network looks like, what survives in it, and what training state goes along."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nets import NETS, Program, conv, image, random_plan, residual
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.graph import trace
from prunus.graph.labels import named_tensors
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
        "0.weight": {0: 6}, "1.weight": {0: 6}, "1.bias": {0: 6}, "1.running_mean": {0: 6}, "1.running_var": {0: 6}, "5.weight": {1: 96},
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
        with pytest.raises(prunus.NothingPruned, match="the plan removes no channel: lower the budget, or see `graph.frozen`"):
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
    model = residual()
    graph = trace(model, image())
    with pytest.raises(prunus.UnsupportedNetwork, match=r"the plan for group `first\.0` must keep at least one of its 8 channels"):
        remove(model, graph, PruningPlan({"first.0": keep}, graph.cost()))


def test_another_network_than_the_traced_one_is_refused() -> None:
    graph = trace(residual(), image())
    with pytest.raises(prunus.UnsupportedNetwork, match="don't have the names and shapes of the traced one: trace it again"):
        remove(NETS["chain"].model(), graph, random_plan(graph))


# -- optimizer and averaged weights


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()


def _make(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 1e-2}, {"params": plain, "lr": 0.02}]
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9) if kind == "sgd" else torch.optim.AdamW(groups, lr=1e-3, amsgrad=True)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizer_state_is_sliced_and_training_goes_on(kind: str) -> None:
    model = residual().train()
    optimizer = _make(kind, model)
    for seed in range(3):
        _step(model, optimizer, seed)
    old = {name: dict(optimizer.state[p]) for name, p in model.named_parameters()}
    small, record, _, _ = pruned(model, optimizer=optimizer)
    small.train()
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(g["params"]) for g in _make(kind, small).param_groups]
    assert [g.get("weight_decay") for g in optimizer.param_groups][0] == 1e-2 and optimizer.param_groups[1]["lr"] == 0.02
    assert len(optimizer.state) == len(list(small.parameters()))
    for name, p in small.named_parameters():
        for key, value in optimizer.state[p].items():
            expected = old[name][key]
            if isinstance(expected, Tensor) and expected.ndim:
                for axis, kept in record.kept.get(name, {}).items():
                    expected = expected.index_select(axis, kept)
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected)), f"{name} {key}"
    fresh = _make(kind, twin := copy.deepcopy(small))
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (7, 8):
        _step(small, optimizer, seed)
        _step(twin, fresh, seed)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), twin.parameters(), strict=True))


def test_the_momentum_goes_on_as_in_a_network_that_was_always_small() -> None:
    """One step of the small network with sliced momentum = the sliced step, for a layer whose gradient doesn't see the removal."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = image(5, 4).double()
    model(x).pow(2).sum().backward()
    optimizer.step()
    momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    graph = trace(model, x)
    keep = torch.tensor([True, True, False, True, False, True])
    small, _ = remove(model, graph, PruningPlan({"0": keep}, graph.cost()), optimizer)
    before = small[0].weight.detach().clone()  # type: ignore[index, union-attr, operator]
    optimizer.zero_grad()
    loss = small(x).pow(2).sum()
    loss.backward()
    gradient = small[0].weight.grad.clone()  # type: ignore[index, union-attr, operator]
    optimizer.step()
    assert torch.allclose(small[0].weight, before - 0.1 * (0.9 * momentum[keep] + gradient), atol=1e-14)  # type: ignore[index, arg-type]


def test_an_optimizer_over_other_parameters_is_refused() -> None:
    model = residual()
    stranger = torch.optim.SGD(residual().parameters(), lr=0.1)
    held = [id(p) for p in stranger.param_groups[0]["params"]]
    with pytest.raises(prunus.UnsupportedNetwork, match="the optimizer holds parameters that aren't the model's"):
        pruned(model, optimizer=stranger)
    assert held == [id(p) for p in stranger.param_groups[0]["params"]]


def test_state_that_is_not_shaped_like_its_parameter_is_refused() -> None:
    model = residual()
    optimizer = torch.optim.Adafactor(model.parameters())
    _step(model, optimizer)
    with pytest.raises(prunus.UnsupportedNetwork, match=r"optimizer state 'row_var' of `stem\.0\.weight` isn't shaped like it and can't be sliced"):
        pruned(model, optimizer=optimizer)


@pytest.mark.parametrize("wrapped", [True, False])
def test_averaged_weights_are_sliced_along(wrapped: bool) -> None:
    model = residual().train()
    ema: Any = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)) if wrapped else copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    _step(model, optimizer)
    if wrapped:
        ema.update_parameters(model)
    inner = ema.module if wrapped else ema
    old = {name: tensor.detach().clone() for name, tensor in named_tensors(inner)}
    small, record, _, _ = pruned(model, ema=ema)
    for name, tensor in named_tensors(inner):
        expected = old[name]
        for axis, kept in record.kept.get(name, {}).items():
            expected = expected.index_select(axis, kept)
        assert torch.equal(tensor, expected), name
    assert inner.first[0].out_channels == 4 and inner(image()).shape == (2, 3)
    if wrapped:  # averaging goes on with the small network
        _step(small.train(), torch.optim.SGD(small.parameters(), lr=0.5))
        ema.update_parameters(small)
        assert not torch.equal(inner.head.weight, old["head.weight"][:, record.kept["head.weight"][1]])


def test_an_ema_of_another_network_is_refused() -> None:
    with pytest.raises(prunus.UnsupportedNetwork, match=r"the averaged model \(ema\) doesn't have the names and shapes"):
        pruned(residual(), ema=NETS["chain"].model())


def test_refused_state_leaves_everything_as_it_was() -> None:
    """The ema is refused only after the optimizer was accepted: neither may have moved."""
    model = residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(prunus.UnsupportedNetwork):
        pruned(model, optimizer=optimizer, ema=NETS["chain"].model())
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_a_shared_module_is_edited_once() -> None:
    block = conv(6, 6)
    model = Program(lambda m, x: m.head(m.a(F.relu(m.b(m.stem(x))))), stem=conv(3, 6), a=block, b=block, head=conv(6, 2))
    small, _, graph, plan = pruned(model)
    assert small.a is small.b and small.a.out_channels == 3  # type: ignore[union-attr]
    assert verify(silence(model, graph, plan), small, image()).passed
