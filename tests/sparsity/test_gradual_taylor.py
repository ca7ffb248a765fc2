"""Gradual Taylor pruning: the criterion's scores, the papers' schedules, and silence that lasts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import prunus
from prunus.config import OptimizerConfig
from prunus.errors import PrunusWarning
from prunus.sparsity.gradual_taylor import GradualTaylor
from prunus.sparsity.methods import SPARSITY_METHODS
from prunus.training import train
from prunus.training_hooks import SparsityTask
from small_nets import batches, build, images


def prepared(model: nn.Module, budget: prunus.Budget | None = None, **options: object) -> GradualTaylor:
    x = images(dtype=next(model.parameters()).dtype)
    method = GradualTaylor(**options)  # type: ignore[arg-type]
    method.prepare(model, prunus.trace(model, x), SparsityTask(budget or prunus.Budget(macs=0.5), x))
    return method


def backward(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model.zero_grad()
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()


@pytest.mark.parametrize("net", ["Plain", "Residual", "Flattened", "Dense"])
def test_scores_are_the_criterions(net: str) -> None:
    """In evaluation mode, over two minibatches: `prunus.score(..., "taylor")`."""
    model = build(net, torch.float64)
    method = prepared(model, group_lasso=0.5)
    data = batches(2, dtype=torch.float64)
    for batch in data:
        backward(model, batch)
        method.after_backward()
    method._update_scores()
    expected = prunus.score(model, method.graph, "taylor", data)
    for name, values in expected.by_group.items():
        torch.testing.assert_close(method.scores[name].double(), values)


def test_momentum_joins_scores() -> None:
    method = prepared(build("Plain"), momentum=0.9)
    for value in (1.0, 2.0):
        for total in method.sums.values():
            total.fill_(3 * value)
        method.steps_seen = 3
        method._update_scores()
    assert method.scores["one.0"].tolist() == pytest.approx([1.1] * 16)


def test_normalised_scores_are_those_of_the_paper() -> None:
    """[3, 4] and [.3, .4] both become [.6, .8] (METHODS A2.7)."""
    method = prepared(build("Plain"), normalisation="l2")
    for name, factor in (("two.0", 1.0), ("three.0", 0.1)):
        method.scores[name] = factor * torch.tensor([3.0, 4.0] + [0.0] * 30)
    strengths = method.strengths()
    for name in ("two.0", "three.0"):
        assert strengths[name][:2].tolist() == pytest.approx([0.6, 0.8])


def test_group_lasso_pulls_filters_by_their_direction() -> None:
    model = build("Plain")
    method = prepared(model, group_lasso=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.three[0].weight.grad = None  # a frozen layer
    method.after_backward()
    weight = model.two[0].weight
    torch.testing.assert_close(weight.grad, 0.5 * weight.detach() / weight.detach().flatten(1).norm(dim=1)[:, None, None, None])
    assert model.three[0].weight.grad is None and not model.two[1].weight.grad.any()


def test_a_hundred_every_thirty_steps_until_the_budget_is_met() -> None:
    """Of the schedule: six channels every five steps, from a warm-up on; the last removal takes what is missing."""
    model = build("Plain")
    method = prepared(model, prunus.Budget(macs=0.6), interval=5, per_removal=6, warmup_epochs=1.0)
    seen: list[int] = []

    class Watched(GradualTaylor):
        pass

    method.__class__ = Watched
    plain = Watched.before_step

    def watched(self: GradualTaylor, step: int, lr: float) -> None:
        plain(self, step, lr)
        seen.append(sum(int(mask.sum()) for mask in self.removed.values()))

    Watched.before_step = watched  # type: ignore[method-assign]
    train(model, batches(4), OptimizerConfig(epochs=10, lr=0.02, warmup_epochs=0), seed=0, method=method)
    assert seen[:9] == [0] * 9 and seen[9:14] == [6] * 5 and seen[14:19] == [12] * 5
    steps = [b - a for a, b in pairwise(seen) if b > a]
    assert steps[:-1] == [6] * (len(steps) - 1) and 0 < steps[-1] <= 6
    progress = method.progress()
    assert progress.macs <= 0.6 * method.graph.cost().macs
    plan = method.plan(prunus.Budget(macs=0.6))  # and doesn't warn
    assert all(bool((~keep <= method.removed[name]).all()) for name, keep in plan.keep.items())


def test_silence_lasts_against_momentum_and_decay() -> None:
    model = build("Plain")
    method = prepared(model, per_removal=0, interval=2, until=0.5)
    train(model, batches(4), OptimizerConfig(epochs=5, lr=0.1, warmup_epochs=0, momentum=0.95), seed=0, method=method)
    gone = method.removed["one.0"]
    assert 0 < int(gone.sum()) < 16
    assert not model.two[0].weight[:, gone].any() and bool(model.two[0].weight[:, ~gone].abs().amin((0, 2, 3)).gt(0).all())


def test_evenly_spread_removal_ends_at_its_share_of_training() -> None:
    model = build("Plain")
    method = prepared(model, per_removal=0, interval=1, until=0.5)
    method.begin(20, 4)
    counts: list[int] = []
    for step in range(20):
        method.before_step(step, 0.01)
        backward(model, batches(1)[0])
        method.after_backward()
        method.after_step()
        counts.append(sum(int(mask.sum()) for mask in method.removed.values()))
    total = counts[-1]
    assert counts[0] == 0 and counts[10:] == [total] * 10
    assert counts[5] == pytest.approx(total / 2, abs=2)
    assert method.progress().macs <= 0.5 * method.graph.cost().macs


def test_a_training_too_short_for_the_schedule_is_told() -> None:
    model = build("Plain")
    method = SPARSITY_METHODS["taylor"].build("paper_2016")
    method.prepare(model, prunus.trace(model, images()), SparsityTask(prunus.Budget(macs=0.5), images()))
    train(model, batches(4), OptimizerConfig(epochs=8, lr=0.02), seed=0, method=method)
    with pytest.warns(PrunusWarning, match=r"training ended with 1 channels silenced, and the budget takes \d+ more"):
        plan = method.plan(prunus.Budget(macs=0.5))
    assert plan.predicted.macs <= 0.5 * method.graph.cost().macs
