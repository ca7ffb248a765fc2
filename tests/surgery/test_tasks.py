"""Small networks of more than classification: removal equals silencing on random weights, and what is left trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nets import Program, conv, conv_bn, image, random_plan
from prunus.graph import trace
from prunus.graph.trace import tensors_in
from prunus.surgery import remove
from prunus.testing import check_network
from prunus.types import call_model

OUTPUT = "it is the network's output"


class UNet(nn.Module):
    """Skips are concatenated; the way up is transposed convolutions, and interpolation to the size of the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_bn(3, 6), conv_bn(6, 8), conv_bn(8, 10)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(10, 8, 2, stride=2), nn.ConvTranspose2d(8, 6, 2, stride=2)])
        self.join = nn.ModuleList([conv_bn(16, 8), conv_bn(12, 6)])
        self.head = conv(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.down:
            x = layer(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            x = join(torch.cat([skip, F.interpolate(up(x), size=skip.shape[-2:])], 1))
        return self.head(x)


class WaveNet(nn.Module):
    """Sound: dilated causal convolutions, gates made of two halves, a sum of skips beside the residual way."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 6
        self.stem = nn.Conv1d(1, 6, 3, padding=1)
        self.dilated = nn.ModuleList(nn.Conv1d(6, 12, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(2))
        self.skip = nn.ModuleList(nn.Conv1d(6, 8, 1) for _ in range(3))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(8, 5, 1), nn.ReLU(), nn.Conv1d(5, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.stem(x), []
        for i, (dilated, skip) in enumerate(zip(self.dilated, self.skip, strict=True)):
            signal, gate = dilated(F.pad(x, (2**i, 0))).split(self.channels, 1)
            y = signal.tanh() * gate.sigmoid()
            skips.append(skip(y))
            if i < len(self.residual):
                x = x + self.residual[i](y)
        return self.head(torch.stack(skips).sum(0))


class Volume(nn.Module):
    """Medical volumes: strided 3-d convolutions with instance norms, a transposed one, a second output from the depths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.InstanceNorm3d(6, affine=True), nn.LeakyReLU())
        self.deep = nn.Sequential(nn.Conv3d(6, 8, 3, 2, 1), nn.InstanceNorm3d(8), nn.LeakyReLU())
        self.up, self.head, self.side = nn.ConvTranspose3d(8, 6, 2, 2), nn.Conv3d(6, 2, 1), nn.Conv3d(8, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.first(x)
        deep = self.deep(first)
        return [self.head(first + self.up(deep)), self.side(deep)]


class Generator(nn.Module):
    """DCGAN: noise is an image of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(5, 12, 4, 1, 0), (12, 8, 4, 2, 1), (8, 6, 4, 2, 1)]
        stages = [
            nn.Sequential(nn.ConvTranspose2d(i, o, k, s, p, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o, k, s, p in widths
        ]
        self.main = nn.Sequential(*stages, nn.ConvTranspose2d(6, 3, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, noise: Tensor) -> Tensor:
        return self.main(noise[:, :, None, None])


def _modulated(m: Any, x: Tensor, *, condition: Tensor, strength: float = 1.0) -> dict[str, Any]:
    """An image and a vector that modulates its channels; outputs nested, one of them no tensor."""
    scale, shift = m.condition(condition).chunk(2, 1)
    x = F.relu(m.stem(x) * (1 + strength * scale[..., None, None]) + shift[..., None, None])
    return {"map": m.map(x), "more": (m.logits(x.mean((2, 3))), [m.value(x.amax((2, 3)))]), "size": tuple(x.shape)}


@dataclass
class Pyramid:
    """Boxes and scores of every level, and how many there are."""

    boxes: list[Tensor]
    scores: list[Tensor]
    levels: int = 0


class Detector(nn.Module):
    """A list of images of any size in, a dataclass out, or losses in training; anchors by a view, a pyramid of two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors, self.classes = 2, 3
        self.stem, self.deep = conv_bn(3, 6), nn.Sequential(conv_bn(6, 8), nn.MaxPool2d(2))
        self.lateral = nn.ModuleList([conv(6, 6, 1), conv(8, 6, 1)])
        self.box, self.score = conv(6, 8), nn.Sequential(conv_bn(6, 6), conv(6, 6))

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        x = torch.stack([F.interpolate(i[None], size=(8, 8))[0] for i in images])
        shallow = self.stem(x)
        deep = self.lateral[1](self.deep(shallow))
        levels = [self.lateral[0](shallow) + F.interpolate(deep, scale_factor=2), deep]
        boxes = [self.box(level).view(len(x), self.anchors, 4, -1).permute(0, 3, 1, 2).reshape(len(x), -1, 4) for level in levels]
        scores = [self.score(level).permute(0, 2, 3, 1).reshape(len(x), -1, self.classes) for level in levels]
        if targets is None:
            return Pyramid(boxes, scores, len(levels))
        wanted = torch.stack([target["boxes"].mean(0) for target in targets])
        labels = torch.cat([target["labels"] for target in targets])
        return {
            "box": F.smooth_l1_loss(torch.cat(boxes, 1).mean(1), wanted),
            "class": F.cross_entropy(torch.cat(scores, 1).mean(1), labels),
        }


def _early_exit(m: Any, x: Tensor) -> Tensor:
    """How often the block runs, and which head answers, depends on the values."""
    x = m.stem(x)
    for _ in range(1 + int(x.abs().mean() > 0)):
        x = x + m.block(x)
    first = m.first(x.mean((2, 3)))
    return first if first.softmax(1).max() > 2 else first + m.second(F.relu(m.more(x)).mean((2, 3)))


def _targets() -> list[dict[str, Tensor]]:
    return [{"boxes": torch.rand(2, 4), "labels": torch.tensor([label])} for label in (0, 2)]


@dataclass
class Task:
    """A network, what it takes, how many groups pass through statistics over channels, and an upper limit of what is left."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    train_inputs: Callable[[], Any] = lambda: None
    mixing: int = 0
    macs_left: float = 0.4


TASKS = [
    Task("u-net", UNet, lambda: image(2, 3, 14, 14)),
    Task("sound", WaveNet, lambda: image(2, 1, 20)),
    Task("volumes", Volume, lambda: image(2, 1, 6, 6, 6)),
    Task("generator", Generator, lambda: image(2, 5)),
    Task(
        "several inputs and outputs",
        lambda: Program(
            _modulated,
            stem=conv(3, 6),
            condition=nn.Linear(4, 12),
            map=conv(6, 2),
            logits=nn.Linear(6, 3),
            value=nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)),
        ),
        lambda: {"x": image(), "condition": image(2, 4), "strength": 0.5},
        macs_left=0.6,
    ),
    Task(
        "lists in, a dataclass out",
        Detector,
        lambda: ([image(3, 8, 8), image(3, 12, 10)],),
        lambda: ([image(3, 8, 8), image(3, 12, 10)], _targets()),
        macs_left=0.5,
    ),
    Task(
        "control flow on data",
        lambda: Program(
            _early_exit, stem=conv_bn(3, 6), block=conv_bn(6, 6), first=nn.Linear(6, 3), more=conv(6, 8), second=nn.Linear(8, 3)
        ),
        image,
        mixing=1,
    ),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_network_of_each_task_is_exact(task: Task) -> None:
    report = check_network(_model(task), task.inputs(), train_inputs=task.train_inputs())
    assert report.verdict in ("exact", "exact after repair"), report
    assert set(report.frozen.values()) <= {OUTPUT}
    assert report.prunable_share == 1.0 and report.macs_left < task.macs_left
    assert len(report.mixing) == task.mixing and report.notes == ()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_small_network_learns(task: Task) -> None:
    """Steps of training lower the loss of the pruned network, and every parameter that is left takes part."""
    model, inputs, train_inputs = _model(task), task.inputs(), task.train_inputs()
    graph = trace(model, inputs, train_inputs=train_inputs)
    small, _ = remove(model, graph, random_plan(graph))
    small.train()
    before = [p.detach().clone() for p in small.parameters()]
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        outputs = tensors_in(call_model(small, inputs if train_inputs is None else train_inputs))
        loss = torch.stack([o.pow(2).mean() for o in outputs if o.requires_grad]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


def _model(task: Task) -> nn.Module:
    torch.manual_seed(0)
    return task.build().eval()
