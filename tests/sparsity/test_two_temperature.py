"""Selection by gates of two temperatures: its price in multiply-adds, resampled weights, and what it hands over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import UnsupportedNetwork
from prunus.graph.gates import Gates
from prunus.sparsity.two_temperature import LOGITS, ExpectedMacs, TwoTemperatureSelection, resample
from prunus.training_hooks import SparsityTask
from small_nets import NETS, Plain, build, images

X = images(4, dtype=torch.float64, seed=6)
BUDGET = prunus.Budget(macs=0.5, tolerance=0.1)


def prepared(**options: object) -> tuple[nn.Module, prunus.ChannelGraph, TwoTemperatureSelection]:
    torch.manual_seed(2)
    model = Plain((8, 8, 8)).double()
    graph = prunus.trace(model, X[:1])
    method = TwoTemperatureSelection(**options)
    method.prepare(model, graph, SparsityTask(BUDGET, X[:1], seed=4))
    method.begin(10, 5)
    return model, graph, method


@pytest.mark.parametrize("name", NETS)
def test_the_price_of_whole_gates_is_the_counted_cost(name: str) -> None:
    graph = prunus.trace(build(name), images())
    price, generator = ExpectedMacs(graph), torch.Generator().manual_seed(0)
    for _ in range(3):
        gates = {g.name: (torch.rand(g.num_channels, generator=generator) < 0.6).double() for g in graph.prunable}
        counts = {group: int(gate.sum()) for group, gate in gates.items()}
        assert float(price.share(gates)) == pytest.approx(graph.cost_model.cost(counts).macs / graph.cost().macs, rel=1e-12)


def test_the_gradient_of_the_price_is_what_a_channel_costs() -> None:
    """With half open gates: the MACs that one more channel of each group would add, by differences of the closed form."""
    graph = prunus.trace(build("Plain"), images())
    gates = {g.name: torch.full((g.num_channels,), 0.5, dtype=torch.float64, requires_grad=True) for g in graph.prunable}
    ExpectedMacs(graph).share(gates).backward()
    half = {g.name: g.num_channels // 2 for g in graph.prunable}
    for name, gate in gates.items():
        more = graph.cost_model.cost({**half, name: half[name] + 1}).macs - graph.cost_model.cost(half).macs
        assert gate.grad.tolist() == pytest.approx([more / graph.cost().macs] * len(gate), rel=1e-9)


def test_gates_act_and_learn_where_channels_are_read() -> None:
    """A logit's gradient is the smooth slope .2494 times that of the gate; a negative logit closes its channel."""
    model, graph, method = prepared(strength=0.0, weights="kept")
    with torch.no_grad():
        method.logits["one.0"][3] = -1.0
    model(X).square().sum().backward()
    found = method.logits["two.0"].grad
    closed = torch.where(
        torch.arange(8) == 3, torch.sigmoid(torch.tensor(-50.0).double()), 1 / (1 + torch.exp(torch.tensor(-5.0).double()))
    )
    gates = {
        "one.0": closed,
        "two.0": closed.new_full((8,), float(closed[0])).requires_grad_(),
        "three.0": closed.new_full((8,), float(closed[0])),
    }
    plain = Plain((8, 8, 8)).double()
    state = {name: value for name, value in model.state_dict().items() if LOGITS not in name}
    plain.load_state_dict(state)
    with Gates(plain, graph, gates):
        output = plain(X)
    torch.testing.assert_close(model(X), output)
    (slope,) = torch.autograd.grad(output.square().sum(), gates["two.0"])
    torch.testing.assert_close(
        found, slope * torch.sigmoid(torch.tensor(0.1)).item() * (1 - torch.sigmoid(torch.tensor(0.1)).item())
    )


def test_within_the_budget_multiply_adds_are_free() -> None:
    _, _, method = prepared(strength=2.0, stop_at_budget=True, weights="kept")
    open_share = float(method.macs.share(method.gates()).detach())
    assert method.penalty().item() == pytest.approx(2.0 * (open_share - 0.5), rel=1e-5)
    with torch.no_grad():
        for logit in method.logits.values():
            logit[:5] = -1.0
    assert method.penalty().item() == 0.0
    _, _, always = prepared(strength=2.0, stop_at_budget=False, weights="kept")
    assert always.penalty().item() == pytest.approx(2.0 * open_share, rel=1e-5)


def test_logits_move_at_a_rate_of_their_own() -> None:
    """Gradients (3, 4, 0, ...) over 24 logits: their root mean square is sqrt(25 / 24)."""
    for normalise, factor in ((False, 0.5), (True, 0.5 / (25 / 24) ** 0.5)):
        _, _, method = prepared(weights="kept", rate=0.5, normalise=normalise)
        for logit in method.logits.values():
            logit.grad = torch.zeros_like(logit)
        method.logits["one.0"].grad[0], method.logits["two.0"].grad[5] = 3.0, 4.0
        method.after_backward()
        assert method.logits["one.0"].grad[0].item() == pytest.approx(3 * factor)
        assert method.logits["two.0"].grad[5].item() == pytest.approx(4 * factor)


def test_settled_gates_are_the_plans_and_rest() -> None:
    """In the last three of ten steps: zeros and ones, with no price, and the logits don't move."""
    _, _, method = prepared(weights="kept", settle=0.3, stop_at_budget=True)
    with torch.no_grad():
        for i, logit in enumerate(method.logits.values()):
            logit.copy_(torch.linspace(-0.2, 0.2 - 0.02 * i, 8))
    method.before_step(6, 0.1)
    assert not method.settled
    method.before_step(7, 0.1)
    gates = method.gates()
    assert method.settled and method.penalty() == 0.0
    assert {v for gate in gates.values() for v in gate.tolist()} == {0.0, 1.0}
    plan = method.plan(BUDGET)
    assert all(torch.equal(plan.keep[name], gate.detach() > 0.5) for name, gate in gates.items())
    for logit in method.logits.values():
        logit.grad = torch.ones_like(logit)
    method.after_backward()
    assert all(not bool(logit.grad.any()) for logit in method.logits.values())


def test_weights_are_drawn_anew_behind_every_step_and_learn_nothing() -> None:
    model, _, method = prepared()
    seen: list[Tensor] = []
    before = torch.get_rng_state()
    for step in range(3):
        method.before_step(step, 0.1)
        model.zero_grad()
        model.train()(X).square().sum().backward()
        method.after_backward()
        own = {id(logit) for logit in method.logits.values()}
        assert all((p.grad is not None) == (id(p) in own) for p in model.parameters())
        method.after_step()
        seen.append(model.two[0].weight.detach().clone())
        assert not bool(model.two[1].running_mean.any())  # the statistics are fresh, too
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert torch.equal(torch.get_rng_state(), before)
    resample(model, 5)
    first = model.two[0].weight.detach().clone()
    resample(model, 5)
    assert torch.equal(model.two[0].weight, first)


def test_a_sequential_network_calls_no_logits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)).double()
    names = list(model.state_dict())
    graph = prunus.trace(model, X[:1])
    method = TwoTemperatureSelection()
    method.prepare(model, graph, SparsityTask(BUDGET, X[:1]))
    assert len(list(model.parameters())) == len(names) + 2 and len(model) == 5
    model(X).sum().backward()
    assert all(logit.grad is not None for logit in method.logits.values())
    assert list(method.finish().state_dict()) == names


def test_a_module_that_cannot_draw_its_weights_is_refused() -> None:
    class Scaled(Plain):
        def __init__(self) -> None:
            super().__init__((8, 8, 8))
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * super().forward(x)

    model = Scaled()
    graph = prunus.trace(model, images())
    with pytest.raises(UnsupportedNetwork, match=r'resampled.*which module `` \(Scaled\) doesn\'t have: .*weights="kept"'):
        TwoTemperatureSelection().prepare(model, graph, SparsityTask(BUDGET, images()))
