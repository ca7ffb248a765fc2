"""Segmentation, detection, video and optical flow of torchvision: half of every group removed, on random weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import video

import prunus
from nets import image, random_plan
from prunus.graph import trace
from prunus.graph.trace import tensors_in
from prunus.surgery import randomise, remove, silence, verify
from prunus.types import call_model

OUTPUT = "it is the network's output"
# A detector's numbers of boxes and classes are what its detections are made of.
SCORES = "channels are picked by a mask in `aten.index.Tensor` (called in `the network`)"
OFFSETS = "meets a tensor whose width is fixed in `aten.mul.Tensor` (called in `the network`)"


@dataclass
class Task:
    """A network, what it takes, why groups are frozen, and an upper limit of the share of MACs left."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    train_inputs: Callable[[], Any] = lambda: None
    reasons: frozenset[str] = frozenset({OUTPUT})
    macs_left: float = 0.35


def _lraspp() -> nn.Module:
    return torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


def _ssdlite() -> nn.Module:
    return torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)


def _video() -> nn.Module:
    """r3d_18 without its two wide stages."""
    model = video.r3d_18(weights=None)
    model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 4)
    return model


def _boxes() -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[2.0, 2.0, 30.0, 40.0], [10.0, 10.0, 50.0, 60.0]])
    return [{"boxes": boxes, "labels": torch.tensor([1, label])} for label in (2, 3)]


TASKS = [
    Task("segmentation", _lraspp, lambda: image(2, 3, 64, 64)),
    Task(
        "detection",
        _ssdlite,
        lambda: ([image(3, 64, 64).sigmoid()],),
        lambda: ([image(3, 64, 64).sigmoid()] * 2, _boxes()),
        reasons=frozenset({SCORES, OFFSETS}),
    ),
    Task("video", _video, lambda: image(2, 3, 4, 16, 16)),
]
WHOLE = Task("whole video network", lambda: video.r3d_18(weights=None), lambda: image(2, 3, 8, 32, 32))


@pytest.mark.parametrize("task", [*TASKS, pytest.param(WHOLE, marks=pytest.mark.slow)], ids=lambda task: task.name)
def test_removing_half_of_a_network_of_torchvision(task: Task) -> None:
    """Every group loses half, in evaluation mode remove == silence on random weights, and a training step goes through."""
    torch.manual_seed(0)
    model = randomise(task.build())
    graph = trace(model, task.inputs(), train_inputs=task.train_inputs())
    reasons = {re.sub(r", \w+\.py:\d+$", "", g.frozen_because or "") for g in graph.frozen}  # no lines
    assert reasons == task.reasons and not graph.notes
    plan = random_plan(graph)
    small, _ = remove(model, graph, plan)
    report = verify(silence(model, graph, plan), small, task.inputs())
    assert report.passed and report.max_error < 1e-9, report
    assert graph.cost(plan).macs < task.macs_left * graph.cost().macs
    assert graph.cost(plan).parameters == sum(p.numel() for p in small.parameters())
    _train(small.train(), task.inputs() if task.train_inputs() is None else task.train_inputs())


def _train(model: nn.Module, inputs: Any) -> None:
    for p in model.parameters():  # random weights make huge activations: what counts is that every gradient arrives
        nn.init.normal_(p, std=0.05) if p.ndim > 1 else nn.init.ones_(p)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = [(out - 1).pow(2).mean() for out in tensors_in(call_model(model, inputs)) if out.requires_grad]
    torch.stack(losses).sum().backward()
    optimizer.step()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) > 0.5 * len(before)


def test_optical_flow_is_exact_but_for_what_its_width_scales() -> None:
    """RAFT divides its correlations by the root of the number of features: no label shows it, verification does."""
    torch.manual_seed(0)
    model = randomise(torchvision.models.optical_flow.raft_small(weights=None))
    frames = image(1, 3, 128, 128).tanh(), image(1, 3, 128, 128).cos()

    def run(model: nn.Module, frames: Any) -> list[Tensor]:
        return model(*frames, num_flow_updates=2)

    graph = trace(model, frames, forward_fn=run)
    assert {g.name: (g.frozen_because or "").split(" (")[0] for g in graph.frozen} == {
        "update_block.flow_head.conv2": "meets a tensor whose width is fixed in `aten.add.Tensor`"
    }
    plan = random_plan(graph)
    scaled = {"feature_encoder.conv": plan.keep["feature_encoder.conv"]}
    for keep, passes in ((scaled, False), ({n: k for n, k in plan.keep.items() if n not in scaled}, True)):
        part = prunus.PruningPlan(keep, graph.cost())
        small, record = remove(model, graph, part)
        report = verify(silence(model, graph, part), small, frames, forward_fn=run)
        assert report.passed is passes and report.max_error < 2, report
        assert report.detail.startswith("compared in float32: this network can't run in float64.")
    assert record.repaired == ("update_block.hidden_state_size",)
    run(small.train(), frames)[-1].abs().mean().backward()
    assert all(p.grad is not None for p in small.parameters())
