"""Surgery on a network that somebody else holds: its modules stay, and its optimizers hold what is left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from nets import EXACT, NETS, image, random_plan
from prunus.graph import trace
from prunus.graph.labels import named_tensors
from prunus.integrations.in_place import remove_in_place
from prunus.surgery import remove

IMAGES = image(4, 3, 8, 8)


class Together(nn.Module):
    """What a framework trains: a network, and a scale that the loss learns."""

    def __init__(self) -> None:
        super().__init__()
        self.network = NETS["residual identity"].model()
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self) -> Tensor:
        return F.cross_entropy(self.scale * self.network(IMAGES), torch.tensor([0, 1, 2, 0]))


def optimizers_of(model: Together) -> list[torch.optim.Optimizer]:
    """Two: one over weights with decay and the scale, one over the rest."""
    weights = [p for p in model.network.parameters() if p.ndim > 1]
    rest = [p for p in model.network.parameters() if p.ndim == 1]
    first: Any = [{"params": [model.scale, *weights], "weight_decay": 1e-2}]
    return [torch.optim.AdamW(first, lr=1e-2), torch.optim.SGD(rest, lr=1e-2, momentum=0.9)]


def step(model: Together, optimizers: list[torch.optim.Optimizer]) -> float:
    loss = model.loss()
    model.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


def held(optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def test_modules_stay_and_optimizers_hold_what_is_left() -> None:
    """The next steps are those of the small network that `remove` gives, with its optimizers, to the bit."""
    torch.manual_seed(0)
    model = Together()
    optimizers = optimizers_of(model)
    for _ in range(3):
        step(model, optimizers)
    graph = trace(model.network, IMAGES)
    plan = random_plan(graph)
    twin = copy.deepcopy(model)
    twins = optimizers_of(twin)
    for optimizer, other in zip(optimizers, twins, strict=True):
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    modules, scale = list(model.network.modules()), model.scale
    record = remove_in_place(model.network, graph, plan, optimizers, None, IMAGES, None)
    assert list(model.network.modules()) == modules and model.scale is scale
    small, expected = remove(twin.network, graph, plan)
    assert record.to_json() == expected.to_json()
    for (name, a), (other, b) in zip(named_tensors(model.network), named_tensors(small), strict=True):
        assert name == other and torch.equal(a, b)
    assert {id(p) for p in held(optimizers)} == {id(p) for p in model.parameters()} and len(held(optimizers)) == len(
        list(model.parameters())
    )
    state = [p for optimizer in optimizers for p in optimizer.state]
    assert {id(p) for p in state} == {id(p) for p in model.parameters()}
    for optimizer in optimizers:
        for p in optimizer.state:
            assert all(v.shape == p.shape for v in optimizer.state[p].values() if isinstance(v, Tensor) and v.ndim)
    # a fresh pair of optimizers over a network that was always small, given this state, makes the same steps
    other = copy.deepcopy(model)
    others = optimizers_of(other)
    for optimizer, loaded in zip(optimizers, others, strict=True):
        loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        assert step(model, optimizers) == step(other, others)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if i % 12 else ()) for i, n in enumerate(EXACT)])
def test_every_difficulty_in_place_is_the_small_network(name: str) -> None:
    """Attributes, parametrisations, ties, recurrent layers: whatever `remove` builds, taking its place gives the same outputs."""
    net = NETS[name]
    model = net.model()
    graph = trace(model, net.inputs())
    if not graph.prunable:
        return
    plan = random_plan(graph)
    small, expected = remove(model, graph, plan)
    if set(graph.unsupported_ops):
        return
    record = remove_in_place(model, graph, plan, [], None, net.inputs(), None)
    assert record.to_json() == expected.to_json()
    assert [t.shape for _, t in named_tensors(model)] == [t.shape for _, t in named_tensors(small)]


def test_a_branch_of_which_nothing_is_left() -> None:
    model = NETS["residual identity"].model()
    graph = trace(model, IMAGES)
    branch = next(name for name in graph.emptiable)
    plan = prunus.PruningPlan({branch: torch.zeros(graph[branch].num_channels, dtype=torch.bool)}, graph.cost())
    small, _ = remove(model, graph, plan)
    remove_in_place(model, graph, plan, [], None, IMAGES, None)
    assert torch.equal(model.eval()(IMAGES), small.eval()(IMAGES))


class Hoarder(nn.Module):
    """Keeps its convolution's weight in a list, where nobody looks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.hoard = [self.first.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(F.conv2d(x, self.hoard[0], self.first.bias)))


def test_a_module_that_keeps_parameters_elsewhere_is_refused() -> None:
    torch.manual_seed(0)
    model = Hoarder()
    graph = trace(model, IMAGES)
    with pytest.raises(prunus.UnsupportedNetwork, match=r"can't be pruned while a framework holds it.*Prune before training"):
        remove_in_place(model, graph, random_plan(graph), [], None, IMAGES, None)


def test_the_average_goes_along() -> None:
    torch.manual_seed(0)
    model = Together()
    ema = copy.deepcopy(model.network)
    graph = trace(model.network, IMAGES)
    remove_in_place(model.network, graph, random_plan(graph), [], ema, IMAGES, None)
    assert torch.equal(ema.eval()(IMAGES), model.network.eval()(IMAGES))
