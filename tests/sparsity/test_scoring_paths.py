"""Scoring paths: the harm of silencing channels to the next layer alone, and nothing else changes by measuring it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.sparsity.scoring_paths import ScoringPaths
from small_nets import Plain, Residual, images

X = images(6, dtype=torch.float64, seed=4)


def network(inplace: bool = False) -> Plain:
    torch.manual_seed(1)
    model = Plain((4, 6, 5)).double()
    for block in (model.one, model.two, model.three):
        nn.init.uniform_(block[1].bias, -0.3, 0.3)
        nn.init.uniform_(block[1].weight, 0.5, 1.5)
        block[2].inplace = inplace
    return model.train()


def masks(**channels: list[int]) -> dict[str, Tensor]:
    sizes = {"one.0": 4, "two.0": 6, "three.0": 5}
    names = {name.replace("_", "."): chosen for name, chosen in channels.items()}
    return {name: torch.tensor([c in names.get(name, []) for c in range(n)]) for name, n in sizes.items()}


def paths(model: nn.Module, alive: dict[str, Tensor], drawn: dict[str, Tensor], next_outputs: str = "alive") -> ScoringPaths:
    graph = prunus.trace(model, X[:1])
    mode = ScoringPaths(model, graph, {name: mask.double() for name, mask in alive.items()}, next_outputs)
    mode.drawn = drawn
    return mode


def norm_relu(block: nn.Sequential, base: Tensor, ablated: Tensor) -> tuple[Tensor, Tensor]:
    """By hand: both with the batch statistics of the first."""
    mean, variance = base.mean((0, 2, 3)), base.var((0, 2, 3), correction=0)
    norm = block[1]
    return tuple(
        torch.relu(
            (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt() * norm.weight[:, None, None]
            + norm.bias[:, None, None]
        )
        for x in (base, ablated)
    )


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("next_outputs", ["alive", "all"])
def test_harm_by_hand(inplace: bool, next_outputs: str) -> None:
    """Channel 0 of the first layer has gone, {1, 3} of it and {2} of the third are tried; output 4 of the second has gone."""
    model = network(inplace)
    alive = {name: ~mask for name, mask in masks(one_0=[0], two_0=[4]).items()}
    drawn = {name: mask for name, mask in masks(one_0=[1, 3], three_0=[2]).items() if mask.any()}
    mode = paths(model, alive, drawn, next_outputs)
    with mode:
        model(X)

    with torch.no_grad():
        model = network()
        read = F.max_pool2d(model.one(X), 2) * alive["one.0"][:, None, None]
        without = read * torch.tensor([1.0, 0, 1, 0])[:, None, None]
        base, ablated = norm_relu(model.two, model.two[0](read), model.two[0](without))
        counted = alive["two.0"].double()[:, None, None] if next_outputs == "alive" else 1.0
        torch.testing.assert_close(mode.changed["one.0"], ((base - ablated) * counted).square().sum())
        torch.testing.assert_close(mode.energy["one.0"], (base * counted).square().sum())

        read = model.three(F.max_pool2d(base, 2) * alive["two.0"][:, None, None]).mean((2, 3))
        logits = model.classifier(read)
        change = logits - model.classifier(read * torch.tensor([1.0, 1, 0, 1, 1]))
        torch.testing.assert_close(mode.changed["three.0"], change.square().sum())
        torch.testing.assert_close(mode.energy["three.0"], logits.square().sum())
    assert set(mode.changed) == {"one.0", "three.0"}


@pytest.mark.parametrize("net", [Plain, Residual])
def test_measuring_changes_nothing(net: type[nn.Module]) -> None:
    """Outputs, gradients and statistics are those of gates alone, to the bit."""
    found: list[list[Tensor]] = []
    for scoring in (False, True):
        torch.manual_seed(1)
        model = net().double().train()
        graph = prunus.trace(model, X[:1])
        values = {g.name: torch.ones(g.num_channels, dtype=torch.float64) for g in graph.prunable}
        mode = ScoringPaths(model, graph, values)
        mode.drawn = {g.name: torch.arange(g.num_channels) % 2 == 0 for g in graph.prunable} if scoring else {}
        with mode:
            output = model(X)
        output.sum().backward()
        assert set(mode.changed) == (set(values) if scoring else set())
        assert all(0 < mode.changed[name] < mode.energy[name] * 4 for name in mode.changed)
        found.append([output.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_path_ends_in_front_of_a_residual_addition() -> None:
    """What the second convolution of a block adds to the residual stream is compared behind its norm."""
    torch.manual_seed(1)
    model = Residual().double().eval()
    graph = prunus.trace(model, X[:1])
    mode = ScoringPaths(model, graph, {g.name: torch.ones(g.num_channels, dtype=torch.float64) for g in graph.prunable})
    mode.drawn = {"inner.0.0": torch.arange(24) < 7}
    with mode, torch.no_grad():
        model(X)
    with torch.no_grad():
        inner = model.inner[0](model.stem(X))
        base, ablated = model.outer[0](inner), model.outer[0](inner * (torch.arange(24) >= 7)[:, None, None])
    torch.testing.assert_close(mode.changed["inner.0.0"], (base - ablated).square().sum())
    torch.testing.assert_close(mode.energy["inner.0.0"], base.square().sum())


def test_an_error_in_the_network_leaves_no_shadows() -> None:
    model = network()
    drawn = {name: mask for name, mask in masks(one_0=[1]).items() if mask.any()}
    mode = paths(model, {name: ~mask for name, mask in masks().items()}, drawn)
    with pytest.raises(RuntimeError), mode:
        model.classifier = nn.Linear(3, 2).double()
        model(X)
    assert mode._shadows == {}
