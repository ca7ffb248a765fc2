"""Second derivatives by gates, and Taylor scores on weights and norms, against figures by hand and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.graph.gates import Gates
from prunus.importance import curvature
from small_nets import NETS, Toy, batches, build, images, squared

DOUBLE = torch.float64


def test_published_toy_of_second_order() -> None:
    """METHODS A4.7: g = (-.8, .4, -.08), H / 2 = h^2, so the true changes (1.80, -.15, .09), squared."""
    model = Toy()
    graph = prunus.trace(model, torch.ones(2, 1))
    batch = (torch.ones(1, 1), torch.ones(1, 1))
    found = prunus.score(model, graph, "taylor_second_order", [batch], squared)
    assert found.by_group["hidden"].tolist() == pytest.approx([1.80**2, 0.15**2, 0.09**2], rel=1e-5)
    assert found.comparable


def test_obd_of_the_toy() -> None:
    """H / 2 = h^2 = (1, .25, .01), whatever the gradient."""
    model = Toy()
    graph = prunus.trace(model, torch.ones(2, 1))
    data = [(torch.ones(1, 1), torch.full((1, 1), y)) for y in (1.0, -3.0)]
    found = prunus.score(model, graph, "obd", data, squared)
    assert found.by_group["hidden"].tolist() == pytest.approx([1, 0.25, 0.01], rel=1e-5)


@pytest.mark.parametrize("name", ["Plain", "Residual", "Layouts"])
def test_the_second_derivative_is_the_finite_difference_of_the_first(name: str) -> None:
    model, (batch, *_) = build(name, DOUBLE), batches(1, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    obd = prunus.score(model, graph, "obd", [batch]).by_group
    both = prunus.score(model, graph, "taylor_second_order", [batch]).by_group

    def derivative(group: prunus.ChannelGroup, channel: int, at: float) -> float:
        gate = torch.ones(group.num_channels, dtype=DOUBLE)
        gate[channel] = at
        gate.requires_grad_(True)
        with Gates(model, graph, {group.name: gate}):
            loss = F.cross_entropy(model(batch[0]), batch[1])
        return float(torch.autograd.grad(loss, gate)[0][channel])

    step = 1e-6
    for group in graph.prunable:
        for channel in (0, group.num_channels - 1):
            high, low = (derivative(group, channel, 1 + sign * step) for sign in (1, -1))
            second = (high - low) / (2 * step)
            assert float(obd[group.name][channel]) == pytest.approx(second / 2, rel=1e-3, abs=1e-9)
            change = second / 2 - derivative(group, channel, 1)
            assert float(both[group.name][channel]) == pytest.approx(change**2, rel=1e-3, abs=1e-12)


def test_channels_may_be_taken_in_any_number_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = build("Plain", DOUBLE), batches(1, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    expected = prunus.score(model, graph, "obd", data).by_group
    monkeypatch.setattr(curvature, "CHANNELS_AT_ONCE", 5)
    found = prunus.score(model, graph, "obd", data).by_group
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-15)


def test_a_linear_loss_has_no_second_derivative() -> None:
    model = Toy()
    graph = prunus.trace(model, torch.ones(2, 1))
    data = [(torch.ones(1, 1), torch.ones(1, 1))]
    assert prunus.score(model, graph, "obd", data, lambda output, _: output.sum()).by_group["hidden"].tolist() == [0, 0, 0]
    found = prunus.score(model, graph, "taylor_second_order", data, lambda output, _: output.sum()).by_group["hidden"]
    assert found.tolist() == pytest.approx([1, 0.25, 0.01])


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class NoSecond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return OnceOnly.apply(self.two(torch.relu(self.one(x))))


def test_operations_without_a_second_derivative_are_told() -> None:
    model = NoSecond()
    x = torch.randn(2, 3)
    graph = prunus.trace(model, x)
    with pytest.raises(
        prunus.EvidenceError, match="second derivatives can't be taken through this network: an operation in it has a backward"
    ):
        prunus.score(model, graph, "obd", [(x, torch.tensor([0, 1]))])


# -- first order on weights and norms


def test_products_on_weights_are_squared_before_they_are_summed() -> None:
    """Weights (1, -2) with derivatives (3, 4) and inputs: (1 * 3)^2 + (-2 * 4)^2 = 73, where the plain sum would give 25."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data, model[1].weight.data = torch.tensor([[1.0, -2.0], [0.0, 0.5]]), torch.ones(1, 2)
    graph = prunus.trace(model, torch.ones(1, 2))
    data = [(torch.tensor([[3.0, 4.0]]), torch.zeros(1))]
    found = prunus.score(model, graph, "taylor", data, lambda output, _: output.sum(), on="weights")
    assert found.by_group["0"].tolist() == [73, 4]


def test_products_on_weights_add_up_over_members_or_not() -> None:
    model, (batch, *_) = build("Residual", DOUBLE), batches(1, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    writers = [model.stem[0].weight, model.outer[0][0].weight, model.outer[1][0].weight]
    gradients = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), writers)
    parts = torch.stack([(w * g).detach().square().flatten(1).sum(1) for w, g in zip(writers, gradients, strict=True)])
    for options, expected in (({}, parts.sum(0)), ({"members": "mean"}, parts.mean(0)), ({"members": "max"}, parts.amax(0))):
        found = prunus.score(model, graph, "taylor", [batch], on="weights", **options).by_group["stem.0"]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_the_norm_form_is_the_gate_behind_a_norm_and_relu() -> None:
    """METHODS A4.5: the gate's derivative is gamma dgamma + beta dbeta, so both forms agree; without beta they don't."""
    model, data = build("Plain", DOUBLE), batches(2, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    gates = prunus.score(model, graph, "taylor", data).by_group
    norms = prunus.score(model, graph, "taylor", data, on="norms").by_group
    scales = prunus.score(model, graph, "taylor", data, on="norm_scales").by_group
    for name, expected in gates.items():
        torch.testing.assert_close(norms[name], expected, rtol=1e-9, atol=1e-18)
        assert not torch.allclose(scales[name], expected, rtol=0.05, atol=0)


def test_the_norm_form_by_autograd_where_several_norms_write() -> None:
    model, (batch, *_) = build("Residual", DOUBLE), batches(1, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    layers = [model.stem[1], model.outer[0][1], model.outer[1][1]]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    gradients = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), parameters)
    products = torch.stack([(p * g).detach() for p, g in zip(parameters, gradients, strict=True)]).reshape(3, 2, 16)
    found = prunus.score(model, graph, "taylor", [batch], on="norms").by_group["stem.0"]
    torch.testing.assert_close(found, products.sum(1).square().sum(0), rtol=1e-9, atol=0)
    scales = prunus.score(model, graph, "taylor", [batch], on="norm_scales").by_group["stem.0"]
    torch.testing.assert_close(scales, products[:, 0].square().sum(0), rtol=1e-9, atol=0)


def test_networks_without_norms_have_no_norm_form() -> None:
    model = build("Flattened")
    graph = prunus.trace(model, images())
    with pytest.raises(prunus.NothingPruned, match="criterion taylor can score none of the 2 groups"):
        prunus.score(model, graph, "taylor", batches(1), on="norms")


@pytest.mark.parametrize("per_example", [False, True])
def test_division_rules(per_example: bool) -> None:
    """The stem's group is read by three layers and written by its own and by two blocks: / 9 as a mean, / 2 as released."""
    model, data = build("Residual", DOUBLE), batches(2, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))

    def found(division: str) -> dict[str, Tensor]:
        return dict(prunus.score(model, graph, "taylor", data, per_example=per_example, division=division).by_group)

    plain, mean, released = found("none"), found("mean"), found("released")
    torch.testing.assert_close(mean["stem.0"], plain["stem.0"] / 9)
    torch.testing.assert_close(released["stem.0"], plain["stem.0"] / 2)
    torch.testing.assert_close(mean["inner.0.0"], plain["inner.0.0"])
    torch.testing.assert_close(released["inner.0.0"], plain["inner.0.0"] / 3)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("criterion", ["taylor_2016", "gradient_mean", "obd", "taylor_second_order"])
def test_weights_that_do_not_require_gradients_are_scored_too(name: str, criterion: str) -> None:
    model, data = build(name), batches(1, 2)
    graph = prunus.trace(model, images())
    expected = prunus.score(model, graph, criterion, data).by_group
    model.requires_grad_(False)
    found = prunus.score(model, graph, criterion, data).by_group
    assert all(torch.equal(found[group], expected[group]) for group in expected)
    assert not any(p.requires_grad for p in model.parameters())
