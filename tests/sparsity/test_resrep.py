"""ResRep: where compactors can be, which rows are selected, and that merging is exact."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import PrunusWarning, UnsupportedNetwork
from prunus.sparsity.compactors import VANISHED, Compactor, resrep_gradient
from prunus.sparsity.resrep import ResRep
from prunus.sparsity.selection import weakest
from prunus.training_hooks import SparsityTask
from small_nets import Plain, Residual, build, conv_norm_relu, images

DOUBLE = torch.float64


def prepared(model: nn.Module, budget: prunus.Budget | None = None, **options: object) -> ResRep:
    x = images(dtype=next(model.parameters()).dtype)
    graph = prunus.trace(model, x)
    method = ResRep(**options)  # type: ignore[arg-type]
    method.prepare(model, graph, SparsityTask(budget or prunus.Budget(macs=0.5), x))
    method.begin(100, 10)
    return method


def stir(method: ResRep) -> None:
    """Compactors that mix all channels."""
    with torch.no_grad():
        for one in method.compacted:
            one.weight.add_(0.2 * torch.randn(one.weight.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE))


class Mobile(nn.Sequential):
    """A depthwise convolution follows the compacted one."""

    def __init__(self) -> None:
        layers = conv_norm_relu(1, 10), conv_norm_relu(10, 10, groups=10), conv_norm_relu(10, 8, 1)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


class Biased(nn.Sequential):
    def __init__(self) -> None:
        layers = nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6), nn.SiLU(), nn.Flatten(), nn.Linear(54, 7), nn.BatchNorm1d(7)
        super().__init__(*layers, nn.ReLU(), nn.Linear(7, 3))


@pytest.mark.parametrize(
    ("net", "groups", "options"),
    [(Plain, 3, {}), (Mobile, 2, {}), (Biased, 2, {}), (Residual, 3, {"residual": True})],
)
def test_merging_is_exact_and_leaves_the_original_architecture(net: type[nn.Module], groups: int, options: dict) -> None:
    """Convolutions and linear layers, with and without bias, in front of a depthwise one, three that share a compactor."""
    original = prunus.surgery.randomise(net()).double().eval()
    model = copy.deepcopy(original)
    method = prepared(model, **options)
    assert len(method.compacted) == groups
    x = images(5, dtype=DOUBLE, seed=3)
    torch.testing.assert_close(model(x), original(x), rtol=1e-12, atol=1e-12)  # compactors start as the identity
    stir(method)
    expected = model(x)
    assert float((expected - original(x)).detach().abs().max()) > 1e-2
    merged = method.finish()
    torch.testing.assert_close(merged(x), expected, rtol=1e-10, atol=1e-10)
    assert str(merged) == str(original) and merged.state_dict().keys() == original.state_dict().keys()


def test_norms_keep_the_statistics_of_what_they_normalise() -> None:
    """The mean of the merged convolution exactly; its variance for the identity."""
    model = prunus.surgery.randomise(Plain((4, 6, 6))).double()
    before = [t.clone() for t in (model.two[1].running_mean, model.two[1].running_var, model.two[1].weight)]
    method = prepared(model)
    method.finish()
    factor = before[2] / (before[1] + 1e-5).sqrt()
    torch.testing.assert_close(model.two[1].running_mean, before[0] * factor)
    torch.testing.assert_close(model.two[1].running_var, before[1] * factor.square())


def test_groups_that_cant_be_compacted_stay_whole_with_a_reason() -> None:
    with pytest.warns(PrunusWarning, match=r"1 of 3 groups stay whole: `stem.0`: 3 convolutions write it \(residual = true"):
        method = prepared(prunus.surgery.randomise(Residual()))
    assert [c.group for c in method.compacted] == ["inner.0.0", "inner.1.0"]


class Leak(Plain):
    """The convolution's output is used beside its norm."""

    def forward(self, x: Tensor) -> Tensor:
        raw = self.one[0](x)
        x = torch.relu(self.one[1](raw)) + raw
        return self.classifier(self.three(self.two(x)).mean((2, 3)))


class Activated(nn.BatchNorm2d):
    """A norm with the activation inside, as timm has them."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


def test_what_cant_be_merged_exactly_is_refused() -> None:
    with pytest.raises(UnsupportedNetwork, match="something else than its batch norm uses the output of a convolution"):
        prepared(prunus.surgery.randomise(Leak((4, 6, 6))))
    model = Plain((4, 6, 6))
    model.one[1], model.two[1], model.three[1] = Activated(4), Activated(6), Activated(6)
    with pytest.raises(UnsupportedNetwork, match=re.escape("no batch norm is directly behind `one.0`")):
        prepared(model)
    assert not any("compactor" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("shape", [(5, 6), (3, 6, 4), (3, 6, 9), (2, 6, 4, 4), (2, 6, 2, 2), (2, 6, 2, 3, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_compactor_is_a_convolution_of_size_one(shape: tuple[int, ...], channels_last: bool) -> None:
    """Forward and both gradients, for few positions and many, in either memory format."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=DOUBLE)
    x = (x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x).requires_grad_()
    compactor = Compactor(torch.zeros(6, dtype=DOUBLE))
    assert torch.equal(compactor.weight, torch.eye(6, dtype=DOUBLE))
    with torch.no_grad():
        compactor.weight.normal_()
    weighted = torch.randn(shape, dtype=DOUBLE)
    expected = torch.einsum("jd,nd...->nj...", compactor.weight, x)
    wanted = torch.autograd.grad((expected * weighted).sum(), [x, compactor.weight])
    found = compactor(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for gradient, want in zip(torch.autograd.grad((found * weighted).sum(), [x, compactor.weight]), wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-12)


def test_rows_that_have_all_but_vanished_have_finite_gradients() -> None:
    """Squares of 1e-30 are zero in float32: a norm of zero of a row that isn't."""
    rows = torch.tensor([[1e-30, 0.0], [3e-5, 4e-5]])
    found = resrep_gradient(rows, torch.ones(2, 2), torch.zeros(2), 0.1)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.06, 0.08]]))


def test_a_new_selection_is_heard_in_the_next_step() -> None:
    method = prepared(build("Plain"), strength=0.0, warmup_epochs=0.0, interval=1, per_selection=3)
    one = method.compacted[0]

    def gradient_behind(step: int, row: int) -> Tensor:
        with torch.no_grad():
            one.weight.copy_(torch.eye(16))
            one.weight[row] *= 0.5
        method.before_step(step, 0.1)
        one.weight.grad = torch.ones(16, 16)
        method.after_backward()
        return one.weight.grad

    assert gradient_behind(0, 4)[:, 0].tolist() == (~method.selected[one.group]).float().tolist()
    assert gradient_behind(1, 5)[4:6, 0].tolist() == [float(not method.selected[one.group][4]), 0.0]
    method.load_state_dict({"selected": {c.group: torch.zeros(c.width, dtype=torch.bool) for c in method.compacted}})
    one.weight.grad = torch.ones(16, 16)
    method.after_backward()
    assert bool((one.weight.grad == 1).all())


def test_selected_rows_hear_the_penalty_alone() -> None:
    method = prepared(build("Plain"), strength=0.25)
    one = method.compacted[0]
    method.selected[one.group][3] = True
    one.weight.grad = torch.full_like(one.weight, 2.0)
    method.after_backward()
    expected = 2.0 + 0.25 * torch.eye(16)
    expected[3] = 0.25 * torch.eye(16)[3]
    torch.testing.assert_close(one.weight.grad, expected)
    assert method.compacted[1].weight.grad is None
    name = next(n for n, p in method.model.named_parameters() if p is one.weight)
    assert method.parameter_options()[name] == {"momentum": 0.99, "nesterov": False, "weight_decay": 0.0}
    assert len(method.parameter_options()) == 3


# -- selection


def two_layers() -> prunus.ChannelGraph:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1))
    return prunus.trace(net, torch.randn(1, 3, 2, 2))


@pytest.mark.parametrize(("at_most", "kept"), [(None, ([0, 1], [0, 1])), (1, ([0, 1], [1, 1])), (0, ([1, 1], [1, 1]))])
def test_the_walk_goes_on_over_a_layer_of_one_channel(at_most: int | None, kept: tuple[list[int], list[int]]) -> None:
    """Norms .1, .15 and .8, .9 at half of the channels: the first of each, for the second of the first layer is its last."""
    norms = {"0": torch.tensor([0.1, 0.15]), "2": torch.tensor([0.8, 0.9])}
    found = weakest(two_layers(), norms, prunus.Budget(channels=0.5, max_pruning_ratio=1.0), at_most=at_most)
    assert [found["0"].int().tolist(), found["2"].int().tolist()] == list(kept)


def test_a_share_of_what_the_budget_takes() -> None:
    norms = {"0": torch.tensor([0.1, 0.15]), "2": torch.tensor([0.8, 0.9])}
    found = weakest(two_layers(), norms, prunus.Budget(channels=0.5), share=0.5)
    assert [found["0"].tolist(), found["2"].tolist()] == [[False, True], [True, True]]
    assert all(bool(mask.all()) for mask in weakest(two_layers(), norms, prunus.Budget(channels=4)).values())


def test_the_walk_never_stalls_at_floors() -> None:
    """Four layers whose weakest rows can't all go: the released code's cap counts them and stops, this one gets to the target."""
    model = build("Plain")
    graph = prunus.trace(model, images())
    norms = {"one.0": torch.linspace(0.01, 0.1, 16), "two.0": torch.linspace(0.5, 1, 32), "three.0": torch.linspace(0.5, 1, 32)}
    budget = prunus.Budget(macs=0.4, min_channels=14, max_pruning_ratio=1.0)
    method = prepared(model, budget, per_selection=4)
    gone = []
    for _ in range(20):
        with torch.no_grad():
            for one in method.compacted:
                one.weight.copy_(torch.diag(norms[one.group]))
        method.select()
        gone.append(sum(int(mask.sum()) for mask in method.selected.values()))
    assert gone[:4] == [4, 8, 12, 16] and gone[-1] == gone[-2]
    widths = {name: int((~mask).sum()) for name, mask in method.selected.items()}
    assert widths["one.0"] == 14 and graph.cost_model.cost(widths).macs <= 0.4 * graph.cost().macs


def test_a_selection_can_be_taken_back_and_waits_for_the_warm_up() -> None:
    method = prepared(build("Plain"), warmup_epochs=2.0, interval=7, per_selection=3)
    group = method.compacted[0]

    def selected_at(step: int, row: int) -> list[int]:
        with torch.no_grad():
            group.weight.copy_(torch.eye(16))
            group.weight[row] *= 0.5
        method.before_step(step, 0.1)
        return method.selected[group.group].nonzero()[:, 0].tolist()

    assert [selected_at(step, 4) for step in (0, 7, 14, 19)] == [[]] * 4  # two epochs of ten steps
    assert 4 in selected_at(20, 4)
    assert 4 in selected_at(26, 5) and 5 not in selected_at(26, 5)
    assert 5 in selected_at(27, 5)
    assert method.progress().widths[group.group] == 16 - len(selected_at(28, 5))


def test_rows_that_havent_vanished_are_told() -> None:
    method = prepared(build("Plain"))
    with pytest.warns(
        PrunusWarning, match=r"resrep: \d+ of \d+ rows that are removed haven't vanished \(the largest norm is 1\)"
    ):
        plan = method.plan(prunus.Budget(macs=0.5))
    with torch.no_grad():
        for one in method.compacted:
            one.weight.mul_(torch.where(plan.keep[one.group], 1.0, 0.9 * VANISHED)[:, None])
    again = method.plan(prunus.Budget(macs=0.5))
    assert all(torch.equal(again.keep[name], plan.keep[name]) for name in plan.keep)
