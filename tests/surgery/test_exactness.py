"""Remove == silence on every named difficulty, and proof that the comparison notices a single wrong slice."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import prunus
from nets import EXACT, FROZEN, NETS, REFUSED, Program, conv, image, random_plan
from prunus.graph import trace
from prunus.graph.labels import named_tensors
from prunus.surgery import SurgeryRecord, randomise, remove, silence, verify
from prunus.surgery.verify import compare
from prunus.types import ChannelGraph, PruningPlan, call_model


def swapped_reading_slices(
    small: nn.Module, record: SurgeryRecord, graph: ChannelGraph, plan: PruningPlan
) -> Iterator[tuple[str, nn.Module]]:
    """Copies of the small network, in each of which two kept channels have changed places in one weight that reads them."""
    for name, keep in plan.keep.items():
        kept = keep.nonzero().flatten()
        if len(kept) < 2:
            continue
        for member in graph[name].with_role("reads"):
            where = member.parameter_axis
            index = record.kept[where.parameter][where.axis]  # original index of every slice that is left
            a, b = (torch.searchsorted(index, member.positions[c]) for c in kept[:2])
            twin = copy.deepcopy(small)
            weight = dict(named_tensors(twin))[where.parameter]
            with torch.no_grad():
                slices = weight.index_select(where.axis, a).clone()
                weight.index_copy_(where.axis, a, weight.index_select(where.axis, b))
                weight.index_copy_(where.axis, b, slices)
            yield f"{where.parameter}/{where.axis} of {name}", twin


def in_training_mode(model: nn.Module, x: object) -> object:
    """For `verify`: also runs what only training runs (these networks draw no random numbers)."""
    return call_model(model.train(), x)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("seed", range(3))
def test_removing_equals_silencing(name: str, seed: int) -> None:
    net = NETS[name]
    model = randomise(net.model(), seed)
    graph = trace(model, net.inputs())
    plan = random_plan(graph, seed, 0.5 if seed == 0 else None)
    if plan.num_removed == 0:
        plan = random_plan(graph, seed)
    small, _ = remove(model, graph, plan)
    silent = silence(model, graph, plan)
    report = verify(silent, small, net.inputs())
    assert report.passed and report.max_error < 1e-9, report
    assert {n: t.shape for n, t in named_tensors(silent)} == {n: t.shape for n, t in named_tensors(model)}


@pytest.mark.parametrize("name", EXACT)
def test_swapping_two_slices_of_any_reading_weight_is_noticed(name: str) -> None:
    net = NETS[name]
    model = randomise(net.model())
    graph = trace(model, net.inputs())
    plan = PruningPlan({g.name: torch.arange(g.num_channels) != 0 for g in graph.prunable}, graph.cost())
    small, record = remove(model, graph, plan)
    silent = silence(model, graph, plan)
    forward_fn = in_training_mode if name == "training head" else None
    assert verify(silent, small, net.inputs(), forward_fn=forward_fn).passed
    seen = 0
    for where, wrong in swapped_reading_slices(small, record, graph, plan):
        report = verify(silent, wrong, net.inputs(), forward_fn=forward_fn)
        assert not report.passed and report.max_error > 1e-6, f"{where}: {report}"
        seen += 1
    assert seen or all(g.num_channels < 3 for g in graph.prunable), "nothing was swapped: this test proved nothing"


@pytest.mark.parametrize("name", REFUSED)
def test_a_width_held_by_the_program_is_refused_and_then_frozen(name: str) -> None:
    """Labels can't see such a width; verification does, and `prune` freezes the group, here the only one."""
    net = NETS[name]
    model = net.model()
    graph = trace(model, net.inputs())
    plan = random_plan(graph)
    small, _ = remove(model, graph, plan)
    report = verify(silence(model, graph, plan), small, net.inputs())
    assert not report.passed and report.max_error == math.inf
    assert report.detail.startswith("the forward pass after removal fails: ")
    with (
        pytest.warns(
            prunus.PrunusWarning, match=r"^frozen after verification failed on them: stem; the plan is made again without them$"
        ),
        pytest.raises(
            prunus.VerificationFailed, match=r"^removal differs from silencing in every group: the forward pass after removal"
        ),
    ):
        prunus.prune(model, net.inputs(), prunus.Budget(macs=0.8, tolerance=0.5))


@pytest.mark.parametrize("name", FROZEN)
def test_nothing_can_be_pruned_in_a_frozen_network(name: str) -> None:
    net = NETS[name]
    graph = trace(net.model(), net.inputs())
    assert not graph.prunable
    with pytest.raises(prunus.NothingPruned, match=r"all \d+ groups are frozen, so nothing can be pruned\. `"):
        prunus.prune(net.model(), net.inputs(), prunus.Budget(macs=0.5))


def test_silence_zeroes_readers_only() -> None:
    net = NETS["flatten"]
    model = net.model()
    graph = trace(model, net.inputs())
    keep = torch.tensor([True] * 6 + [False] * 2)
    silent = silence(model, graph, PruningPlan({"0": keep}, graph.cost()))
    for name, tensor in silent.named_parameters():
        original = model.get_parameter(name)
        if name == "5.weight":
            assert not tensor[:, 96:].any() and torch.equal(tensor[:, :96], original[:, :96])
        else:
            assert torch.equal(tensor, original)


def test_a_zero_initialised_branch_hides_errors_that_randomise_uncovers() -> None:
    """Why checks randomise: behind a norm that starts at zero, wrong slices change nothing."""
    model = NETS["residual identity"].model()
    nn.init.zeros_(model.second[1].weight)  # type: ignore[union-attr, index, arg-type]
    graph = trace(model, image())
    for network, noticed in ((model, False), (randomise(model), True)):
        plan = PruningPlan({"first.0": torch.arange(8) > 1}, graph.cost())
        small, record = remove(network, graph, plan)
        ((_, wrong),) = swapped_reading_slices(small, record, graph, plan)
        assert verify(silence(network, graph, plan), wrong, image()).passed is not noticed


def test_randomise_leaves_no_entry_near_zero_and_depends_on_the_seed() -> None:
    model = NETS["residual projection"].model()
    twin = randomise(model, 3)
    for name, tensor in named_tensors(twin):
        if not tensor.is_floating_point():
            continue
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        scale = 1 / math.sqrt(fan_in) if fan_in > 9 else 1 / fan_in
        assert 0.5 * scale - 1e-6 <= tensor.abs().min() and tensor.abs().max() <= 1.5 * scale + 1e-6, name
        if fan_in > 9:
            assert int((tensor > 0).sum()) == tensor.shape[0] * (fan_in // 2), name
    again, other = randomise(model, 3), randomise(model, 4)
    assert torch.equal(twin.stem[0].weight, again.stem[0].weight)  # type: ignore[union-attr, index, arg-type]
    assert not torch.equal(twin.stem[0].weight, other.stem[0].weight)  # type: ignore[union-attr, index, arg-type]


# -- what a comparison says


def test_compare_is_relative_to_the_output() -> None:
    report = compare([torch.tensor([100.0, 1.0])], [torch.tensor([100.0, 1.5])], 1e-9)
    assert report.max_error == pytest.approx(0.005) and not report.passed and report.detail == "largest in output 0 of 1"


@pytest.mark.parametrize(
    ("reference", "own", "detail"),
    [
        ([torch.ones(2)], [torch.ones(3)], "outputs have other shapes: [(2,)] against [(3,)]"),
        ([torch.ones(2), torch.ones(1)], [torch.ones(2)], "outputs have other shapes: [(2,), (1,)] against [(2,)]"),
        ([torch.ones(1)], [torch.tensor([float("nan")])], "largest in output 0 of 1"),
        ([torch.ones(1)], [torch.tensor([float("inf")])], "largest in output 0 of 1"),
        ([torch.tensor([float("nan")])], [torch.ones(1)], "output 0 is not finite: nothing can be concluded from it"),
        ([], [], "the network returns no tensor, so there is nothing to compare: give a forward_fn that does"),
        ([torch.tensor([1, 2])], [torch.tensor([1, 3])], "largest in output 0 of 1"),
        ([torch.zeros(2)], [torch.ones(2)], "largest in output 0 of 1"),
    ],
)
def test_a_comparison_that_fails_says_why(reference: list[Tensor], own: list[Tensor], detail: str) -> None:
    report = compare(reference, own, 1e-9)
    assert not report.passed and report.detail == detail


def test_verify_changes_neither_network_nor_inputs() -> None:
    net = NETS["in-place on the input"]
    model, x = net.model().double(), image().double()
    graph = trace(model, x)
    plan = random_plan(graph)
    small, _ = remove(model, graph, plan)
    small.train()
    assert verify(silence(model, graph, plan), small, x).passed
    assert torch.equal(x, image().double()) and small.training


def test_a_network_of_float32_constants_is_compared_in_float32() -> None:
    matrix = torch.randn(6, 6)  # neither parameter nor buffer: `double()` doesn't reach it
    model = Program(
        lambda m, x: m.head((m.stem(x).flatten(2).transpose(1, 2) @ torch.eye(6)).mean(1) @ matrix * 0 + m.stem(x).mean((2, 3))),
        stem=conv(3, 6),
        head=nn.Linear(6, 2),
    )
    report = verify(model, copy.deepcopy(model), image())
    assert report.passed and report.tolerance == 1e-4
    assert report.detail.startswith("compared in float32: this network can't run in float64.")


def test_mixing_operations_are_evaluated_on_kept_channels() -> None:
    """By hand: the layer norm of the silenced network is the one over the channels that stay."""
    net = NETS["layer norm"]
    model = randomise(net.model())
    graph = trace(model, net.inputs())
    keep = torch.tensor([True, False, True, True, False, True, True, True])
    silent = silence(model, graph, PruningPlan({"stem": keep}, graph.cost()))
    x = net.inputs()
    y = model.stem(x).permute(0, 2, 3, 1)[..., keep]  # type: ignore[operator, union-attr]
    y = nn.functional.layer_norm(y, (6,), model.norm.weight[keep], model.norm.bias[keep])  # type: ignore[index, union-attr]
    expected = nn.functional.conv2d(y.permute(0, 3, 1, 2), model.head.weight[:, keep], model.head.bias, padding=1)  # type: ignore[index, union-attr, arg-type]
    with torch.no_grad():
        assert torch.allclose(silent(x), expected, atol=1e-5)
        assert not torch.allclose(model(x), expected, atol=1e-2)
