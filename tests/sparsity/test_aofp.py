"""AOFP in a network: it finds what is harmless by itself, stops at the budget or when nothing is, and keeps its times."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import PrunusWarning
from prunus.sparsity.aofp import AOFP
from prunus.training_hooks import SparsityTask
from small_nets import Plain, images

X = images(6, dtype=torch.float64, seed=4)
DEAD = {"one.0": [1, 2, 5], "two.0": [0], "three.0": []}


def prepared(method: AOFP, budget: prunus.Budget) -> tuple[nn.Module, prunus.ChannelGraph]:
    """Channels in `DEAD` are read with weights of zero."""
    torch.manual_seed(1)
    model = Plain((8, 6, 5)).double()
    with torch.no_grad():
        for reader, channels in ((model.two[0], DEAD["one.0"]), (model.three[0], DEAD["two.0"])):
            reader.weight[:, channels] = 0
    graph = prunus.trace(model, X[:1])
    method.prepare(model, graph, SparsityTask(budget, X[:1], seed=3))
    return model, graph


def search(model: nn.Module, method: AOFP, steps: int) -> None:
    """Training steps that leave the weights as they are."""
    method.begin(steps, steps)
    model.train()
    for step in range(steps):
        method.before_step(step, 0.0)
        model(X).sum().backward()
        method.after_backward()
        model.zero_grad()


def gone(method: AOFP) -> dict[str, list[int]]:
    return {name: (~mask).nonzero()[:, 0].tolist() for name, mask in method.left().items()}


def test_exactly_the_dead_channels_go_and_the_search_ends() -> None:
    method = AOFP(threshold=1e-9, steps_per_half=8, start=0, patience=2, stop_at_budget=False)
    model, graph = prepared(method, prunus.Budget(macs=0.9, tolerance=0.9))
    search(model, method, 200)
    assert gone(method) == DEAD
    assert all(found.over_after(2) for found in method.searches.values())
    method.before_step(200, 0.0)
    assert method._drawn == {}  # nothing is scored any more
    plan = method.plan(method.task.budget)
    assert {name: (~mask).nonzero()[:, 0].tolist() for name, mask in plan.keep.items()} == DEAD
    with torch.no_grad():
        expected = model.eval()(X)
        small, _ = prunus.remove(method.finish(), graph, plan)
        torch.testing.assert_close(small(X), expected, rtol=1e-10, atol=1e-12)
    assert small.two[0].weight.shape == (5, 5, 3, 3)


def test_of_the_last_move_only_what_the_budget_asks_for_goes() -> None:
    """With everything harmless a move takes half a layer; at the budget it stops, and one filter less would miss it."""
    budget = prunus.Budget(macs=0.7)
    method = AOFP(threshold=1e9, steps_per_half=3, start=0)
    model, graph = prepared(method, budget)
    limit = int(0.7 * graph.cost().macs)
    before: dict[str, int] = {}
    method.begin(60, 60)
    model.train()
    for step in range(60):
        before = method.progress().widths | {}
        method.before_step(step, 0.0)
        model(X).sum().backward()
        method.after_backward()
        if method.progress().macs <= limit:
            break
    now = method.progress().widths
    (last,) = (name for name in now if now[name] != before[name])
    assert graph.cost_model.cost({**now, last: now[last] + 1}).macs > limit >= graph.cost_model.cost(now).macs
    search(model, method, 20)
    assert method.progress().widths == now
    plan = method.plan(budget)
    assert plan.counts() == now and plan.provenance["budget"][0]["met"]


def test_a_budget_that_harm_forbids_is_met_by_the_least_harmful_and_said() -> None:
    method = AOFP(threshold=1e-9, steps_per_half=8, start=0, patience=1)
    budget = prunus.Budget(macs=0.3, tolerance=0.2)
    model, graph = prepared(method, budget)
    search(model, method, 100)
    with pytest.warns(PrunusWarning, match=r"aofp ended with .* macs for .*: to meet the budget \d+ channels go"):
        plan = method.plan(budget)
    assert plan.predicted.macs <= 0.3 * graph.cost().macs
    assert all(not bool(plan.keep[name][channel]) for name, channels in DEAD.items() for channel in channels)


def test_layers_start_one_after_the_other_and_decide_on_time() -> None:
    """Three layers, halves of nine steps, from step 4 on: draws begin at 4, 7 and 10; the first decision is behind step 12."""
    method = AOFP(threshold=1e-9, steps_per_half=9, start=4)
    model, _ = prepared(method, prunus.Budget(macs=0.3))
    begins: dict[str, int] = {}
    narrowed: dict[str, int] = {}
    method.begin(40, 40)
    model.train()
    for step in range(22):
        method.before_step(step, 0.0)
        for name in method._drawn:
            begins.setdefault(name, step)
        model(X)
        method.after_backward()
        for name, found in method.searches.items():
            if int(found.candidates.sum()) < len(found.candidates):
                narrowed.setdefault(name, step)
    assert begins == {"one.0": 4, "two.0": 7, "three.0": 10}
    assert narrowed == {"one.0": 12, "two.0": 15, "three.0": 18}


@pytest.mark.parametrize(("never", "expected"), [("kept", False), ("first", True)])
def test_a_filter_that_no_half_held(never: str, expected: bool) -> None:
    """One step draws half of the filters: the others are kept (PyTorch) or, with a harm of zero, go first (TensorFlow)."""
    method = AOFP(threshold=1e-9, steps_per_half=1, start=0, never_drawn=never, stop_at_budget=False)
    model, _ = prepared(method, prunus.Budget(macs=0.3))
    method.begin(10, 10)
    method.before_step(0, 0.0)
    drawn = method._drawn["three.0"].clone()
    model.train()(X)
    method.after_backward()
    assert bool(gone(method)["three.0"]) == expected
    if expected:
        assert not any(bool(drawn[channel]) for channel in gone(method)["three.0"])


def test_scoring_leaves_batch_norm_and_evaluation_alone() -> None:
    """The statistics are those of the same steps without scoring; an evaluation pass scores nothing."""
    found = []
    for start in (0, 1000):
        method = AOFP(threshold=1e-9, steps_per_half=50, start=start)
        model, _ = prepared(method, prunus.Budget(macs=0.3))
        search(model, method, 5)
        found.append([b.clone() for b in model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    method.before_step(1001, 0.0)
    assert method._drawn
    model.eval()(X)
    assert method._modes[model].changed == {}
