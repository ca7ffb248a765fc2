"""Sixteen networks of torchvision, every parameter and buffer randomised, half of every group removed."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import Tensor, nn

from nets import random_plan
from prunus.graph import trace
from prunus.graph.build import ONE_CHANNEL
from prunus.graph.labels import named_tensors
from prunus.surgery import SurgeryRecord, randomise, remove, silence, verify
from prunus.surgery.verify import compare
from prunus.types import ChannelGraph, GroupMember, PruningPlan

NAMES = [
    "alexnet",
    "vgg16_bn",
    "googlenet",
    "inception_v3",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "densenet121",
    "squeezenet1_1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet1_0",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
]
# Inception's auxiliary head needs full-size images in training mode; AlexNet's strides need more than 64 pixels.
PIXELS = {"alexnet": 96, "inception_v3": 299}
# Nothing may be frozen but the output, and two stages of ShuffleNetV2, whose repeated chunks and shuffles tie channels into one.
FROZEN = {"shufflenet_v2_x1_0": {ONE_CHANNEL}}


@dataclass
class Case:
    """A network cut in half: all that the checks below need."""

    name: str
    model: nn.Module
    graph: ChannelGraph
    plan: PruningPlan
    small: nn.Module
    record: SurgeryRecord
    inputs: Tensor


def _case(name: str) -> Case:
    torch.manual_seed(0)
    model = randomise(
        torchvision.models.get_model(
            name, weights=None, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {})
        )
    )
    pixels = PIXELS.get(name, 64)
    inputs = torch.randn(2, 3, pixels, pixels)
    graph = trace(model, inputs)
    plan = random_plan(graph)
    small, record = remove(model, graph, plan)
    return Case(name, model, graph, plan, small, record, inputs)


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield _case(request.param)


def test_removing_half_of_every_group_equals_silencing(case: Case) -> None:
    assert not case.graph.notes and not case.graph.unsupported_ops
    assert set(case.plan.keep) == {g.name for g in case.graph.prunable}
    for group in case.graph.prunable:
        assert int((~case.plan.keep[group.name]).sum()) == max(1, group.num_channels // 2)
    assert {g.frozen_because for g in case.graph.frozen} == {"it is the network's output"} | FROZEN.get(case.name, set())
    report = verify(silence(case.model, case.graph, case.plan), case.small, case.inputs)
    assert report.passed and report.max_error < 1e-9, report
    before, after = case.graph.cost(), case.graph.cost(case.plan)
    assert after.macs <= 0.4 * before.macs
    assert after.parameters == sum(p.numel() for p in case.small.parameters())


def test_the_small_network_trains(case: Case) -> None:
    model = copy.deepcopy(case.small).train()
    for module in model.modules():  # random weights make huge activations: what counts is that every gradient arrives
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.05) if p.ndim > 1 else nn.init.ones_(p)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    outputs = model(case.inputs)
    losses = [
        nn.functional.cross_entropy(o, torch.tensor([1, 2])) for o in (outputs if isinstance(outputs, tuple) else [outputs])
    ]
    torch.stack(losses).sum().backward()
    optimizer.step()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) > 0.5 * len(before)


def _readers(case: Case) -> list[tuple[str, GroupMember, Tensor]]:
    """Every weight that reads a pruned group of which two channels are left, and those; but for heads that only training runs."""
    run = {layer.name for layer in case.graph.layers}
    return [
        (name, member, keep.nonzero().flatten())
        for name, keep in case.plan.keep.items()
        for member in case.graph[name].with_role("reads")
        if int(keep.sum()) >= 2 and member.parameter_axis.parameter.rpartition(".")[0] in run
    ]


def _check_swaps(case: Case, most: int) -> None:
    """Swap two slices of one reading weight at a time and compare with the silenced network: it must be noticed each time."""
    readers = _readers(case)
    assert readers
    random.Random(0).shuffle(readers)
    generator = torch.Generator().manual_seed(0)
    closed = 0
    with torch.no_grad():
        reference = [silence(case.model, case.graph, case.plan).double().eval()(case.inputs.double())]
        small = copy.deepcopy(case.small).double().eval()
        tensors = dict(named_tensors(small))
        assert compare(reference, [small(case.inputs.double())], 1e-9).passed
        for name, member, kept in readers[:most]:
            where = member.parameter_axis
            weight = tensors[where.parameter]
            index = case.record.kept[where.parameter][where.axis]
            places = torch.searchsorted(index, member.positions[kept])
            original = weight.clone()
            pair = places[torch.randperm(len(places), generator=generator)[:2]]
            weight.index_copy_(where.axis, pair.reshape(-1), original.index_select(where.axis, pair.flip(0).reshape(-1)))
            error = compare(reference, [small(case.inputs.double())], 1e-9).max_error
            if error < 1e-8:  # only if both channels are closed, for these inputs and weights: then zeros change nothing either
                weight.index_fill_(where.axis, pair.reshape(-1), 0)
                silent = compare(reference, [small(case.inputs.double())], 1e-9).max_error
                assert silent < 1e-9, f"a swap in {where.parameter}, axis {where.axis}, group {name} goes unnoticed: {error}"
                closed += 1
            weight.copy_(original)
    assert closed <= 0.05 * min(most, len(readers)) + 1


def test_swapped_reading_slices_are_noticed(case: Case) -> None:
    _check_swaps(case, most=2 if case.inputs.shape[-1] > 200 else 8)


@pytest.mark.slow
def test_every_swapped_reading_slice_is_noticed(case: Case) -> None:
    _check_swaps(case, most=10**6)
