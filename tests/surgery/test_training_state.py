"""Optimizer state and averaged weights go along with surgery, or are refused and left as they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from nets import NETS, image, random_plan, residual
from prunus.graph import trace
from prunus.graph.labels import named_tensors
from prunus.surgery import remove
from prunus.types import ChannelGraph, PruningPlan


def pruned(model: nn.Module, inputs: Any = None, seed: int = 0, **state: Any) -> tuple[nn.Module, Any, ChannelGraph, PruningPlan]:
    """Trace, remove half of every group: (small, record, graph, plan)."""
    graph = trace(model, image() if inputs is None else inputs)
    plan = random_plan(graph, seed)
    return *remove(model, graph, plan, **state), graph, plan


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
    assert optimizer.param_groups[0]["weight_decay"] == 1e-2 and optimizer.param_groups[1]["lr"] == 0.02
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
    """By hand: the small network's step is its own gradient and the sliced momentum."""
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
    with pytest.raises(
        prunus.UnsupportedNetwork,
        match=r"optimizer state 'row_var' of `stem\.0\.weight` isn't shaped like it and can't be sliced",
    ):
        pruned(model, optimizer=optimizer)


@pytest.mark.parametrize("wrapped", [True, False])
def test_averaged_weights_are_sliced_along(wrapped: bool) -> None:
    model = residual().train()
    ema: Any = (
        torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
        if wrapped
        else copy.deepcopy(model)
    )
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
