"""Taylor scores: the published toy, and the gate gradient against inserted gates and against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.graph.gates import Gates
from prunus.types import PruningPlan
from small_nets import NETS, Toy, batches, build, images, squared

DOUBLE = torch.float64


def gate_gradients(
    model: nn.Module, graph: prunus.ChannelGraph, batch: tuple[Tensor, Tensor], loss: object = None
) -> dict[str, Tensor]:
    """dL/dgate of every prunable group, from gates that are really multiplied in."""
    gates = {g.name: torch.ones(g.num_channels, dtype=DOUBLE, requires_grad=True) for g in graph.prunable}
    with Gates(model, graph, gates):
        value = F.cross_entropy(model(batch[0]), batch[1])
    return dict(zip(gates, torch.autograd.grad(value, list(gates.values())), strict=True))


# -- by hand


@pytest.mark.parametrize("per_example", [False, True])
def test_published_toy(per_example: bool) -> None:
    """METHODS A4.7: error 0.6 - 1 = -0.4, so dL/dh = -0.8 and (h dL/dh)^2 = (.64, .16, .0064)."""
    model = Toy()
    graph = prunus.trace(model, torch.ones(2, 1))
    batch = (torch.ones(1, 1), torch.ones(1, 1))
    scores = prunus.score(model, graph, "taylor", [batch], squared, per_example=per_example)
    assert scores.by_group["hidden"].tolist() == pytest.approx([0.64, 0.16, 0.0064], rel=1e-6)
    assert scores.comparable


def test_scores_are_the_mean_over_minibatches() -> None:
    """Targets 1 and 0: errors -0.4 and 0.6, so (h * 2 error)^2 = h^2 * (0.64 + 1.44) / 2."""
    model = Toy()
    graph = prunus.trace(model, torch.ones(2, 1))
    data = [(torch.ones(1, 1), torch.ones(1, 1)), (torch.ones(1, 1), torch.zeros(1, 1))]
    found = prunus.score(model, graph, "taylor", data, squared).by_group["hidden"]
    assert found.tolist() == pytest.approx([1.04, 0.26, 0.0104], rel=1e-6)
    first = prunus.score(model, graph, "taylor", data, squared, batches=1).by_group["hidden"]
    assert first.tolist() == pytest.approx([0.64, 0.16, 0.0064], rel=1e-6)


def test_examples_cancel_in_a_batch_and_not_per_example() -> None:
    """Targets 1.6 and -0.4 pull with opposite errors of 1: the batch's gradient is zero, each example's is (2 h / 2)."""
    model = Toy()
    graph = prunus.trace(model, torch.ones(2, 1))
    batch = (torch.ones(2, 1), torch.tensor([[1.6], [-0.4]]))
    assert prunus.score(model, graph, "taylor", [batch], squared).by_group["hidden"].tolist() == pytest.approx(
        [0, 0, 0], abs=1e-12
    )
    found = prunus.score(model, graph, "taylor", [batch], squared, per_example=True).by_group["hidden"]
    assert found.tolist() == pytest.approx([2.0, 0.5, 0.02], rel=1e-5)


# -- against inserted gates


@pytest.mark.parametrize("name", NETS)
def test_the_gate_gradient_needs_no_gate(name: str) -> None:
    model, data = build(name, DOUBLE), batches(2, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    scores = prunus.score(model, graph, "taylor", data).by_group
    inserted = [gate_gradients(model, graph, batch) for batch in data]
    assert set(scores) == {g.name for g in graph.prunable}
    for group, values in scores.items():
        expected = sum(gradients[group] ** 2 for gradients in inserted) / len(data)
        assert float(expected.max()) > 0
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", NETS)
def test_the_gate_gradient_is_the_finite_difference(name: str) -> None:
    model, (batch, *_) = build(name, DOUBLE), batches(1, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    found = gate_gradients(model, graph, batch)
    step = 1e-6
    for group in graph.prunable:
        for channel in (0, group.num_channels - 1):
            losses: list[float] = []
            for sign in (1, -1):
                gate = torch.ones(group.num_channels, dtype=DOUBLE)
                gate[channel] += sign * step
                with torch.no_grad(), Gates(model, graph, {group.name: gate}):
                    losses.append(float(F.cross_entropy(model(batch[0]), batch[1])))
            difference = (losses[0] - losses[1]) / (2 * step)
            assert float(found[group.name][channel]) == pytest.approx(difference, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_per_example_is_the_batch_size_one_result(name: str) -> None:
    """The mean loss over b examples has 1/b of each example's gradient, and b examples are summed: b * (1/b)^2 = 1/b."""
    model, (batch, *_) = build(name, DOUBLE), batches(1, 6, DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    whole = prunus.score(model, graph, "taylor", [batch], per_example=True).by_group
    single = [(x[None], y[None]) for x, y in zip(*batch, strict=True)]
    ones = prunus.score(model, graph, "taylor", single).by_group
    for group in whole:
        torch.testing.assert_close(whole[group], ones[group] / 6, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("name", NETS)
def test_gates_of_zeros_silence(name: str) -> None:
    model, x = build(name, DOUBLE), images(3, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    keep = {g.name: torch.arange(g.num_channels) % 3 != 0 for g in graph.prunable}
    silent = prunus.silence(model, graph, PruningPlan(keep, graph.cost()))
    with torch.no_grad():
        with Gates(model, graph, {name: mask.to(DOUBLE) for name, mask in keep.items()}):
            gated = model(x)
        torch.testing.assert_close(gated, silent(x), rtol=1e-12, atol=1e-12)
        assert float((gated - model(x)).abs().max()) > 1e-3


def test_weights_that_do_not_require_gradients_are_scored_too() -> None:
    model, data = build("Plain", DOUBLE), batches(1, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    expected = prunus.score(model, graph, "taylor", data).by_group
    model.requires_grad_(False)
    found = prunus.score(model, graph, "taylor", data).by_group
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(p.requires_grad for p in model.parameters())


def test_dropout_and_batch_statistics_play_no_part() -> None:
    model, data = build("Plain", DOUBLE), batches(1, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    expected = prunus.score(model, graph, "taylor", data).by_group
    found = prunus.score(model.train(), graph, "taylor", data).by_group
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, centred / centred.std((1, 2, 3), keepdim=True), self.bias)


class ComputedWeight(nn.Module):
    """The second layer's weight is computed from a parameter: no plain parameter reads the first group."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 8, 3)
        self.two = Standardised(8, 12, 3)
        self.out = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))


@pytest.mark.parametrize("per_example", [False, True])
def test_computed_weights_are_not_scored_wrongly(per_example: bool) -> None:
    """Standardisation doesn't feel the scale of a weight: w dL/dw of the parameter is no gate gradient."""
    model = ComputedWeight().to(DOUBLE).eval()
    graph = prunus.trace(model, images(dtype=DOUBLE))
    assert {g.name for g in graph.prunable} == {"one", "two"}
    with pytest.warns(prunus.PrunusWarning, match="taylor says nothing about 1 of 2 groups, kept whole: one"):
        found = prunus.score(model, graph, "taylor", batches(1, dtype=DOUBLE), per_example=per_example).by_group
    assert set(found) == {"two"}


class MatrixProduct(nn.Module):
    """The first group is read by a plain matrix product, which has no gate but the same derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 6)
        self.two = nn.Parameter(torch.randn(6, 5))
        self.out = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(torch.relu(self.one(x)) @ self.two))


def test_matrix_products_are_scored_by_batch_and_left_out_per_example() -> None:
    model = MatrixProduct().to(DOUBLE).eval()
    x, y = torch.randn(4, 8, dtype=DOUBLE), torch.tensor([1, 2, 3, 4])
    graph = prunus.trace(model, x)
    hidden = torch.relu(model.one(x)).detach()
    gate = torch.ones(6, dtype=DOUBLE, requires_grad=True)
    loss = F.cross_entropy(model.out(torch.relu((hidden * gate) @ model.two)), y)
    expected = torch.autograd.grad(loss, gate)[0] ** 2
    torch.testing.assert_close(prunus.score(model, graph, "taylor", [(x, y)]).by_group["one"], expected)
    with pytest.warns(prunus.PrunusWarning, match="taylor says nothing about 1 of 2 groups, kept whole: one"):
        assert set(prunus.score(model, graph, "taylor", [(x, y)], per_example=True).by_group) == {"two"}
