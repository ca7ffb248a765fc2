"""What the tests of reconstruction share: small networks in float64, pruned by half, and their distance from the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import prunus
from prunus.reconstruction import recalibrate
from prunus.types import PruningPlan

EVERY = 10_000
"""More points than any map here has: all of them."""


def data(number: int = 3, count: int = 20, channels: int = 3, size: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64) for _ in range(number)]


def half(model: nn.Module, inputs: Tensor, *groups: str) -> tuple[nn.Module, prunus.SurgeryRecord]:
    """Every second channel of the named groups (none: of all) is removed."""
    graph = prunus.trace(model, inputs[:1])
    keep = {g.name: torch.arange(g.num_channels) % 2 == 0 for g in graph.prunable if not groups or g.name in groups}
    return prunus.remove(model, graph, PruningPlan(keep, graph.cost()))


def settled(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    model = model.double().eval()
    recalibrate(model, batches)
    return model


def halved(build: Callable[[], nn.Module], *groups: str) -> tuple[nn.Module, prunus.SurgeryRecord, nn.Module, list[Tensor]]:
    """A network from seed 0 with every second channel of the named groups removed, the record, the network before, batches."""
    torch.manual_seed(0)
    batches = data(3, 12)
    full = settled(build(), batches)
    small, record = half(full, batches[0], *groups)
    return small, record, full, batches


def error(small: nn.Module, full: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        y = full(x)
        return float(((small(x) - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())


class Shuffled:
    """The same batches, in another order every time."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches, self.times = batches, 0

    def __iter__(self) -> Iterator[Tensor]:
        self.times += 1
        for index in range(len(self.batches)):
            yield self.batches[(index + self.times) % len(self.batches)]


class Two(nn.Module):
    """A pointwise layer and the one to be refitted."""

    def __init__(self, second: nn.Module, last: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = second
        self.last = nn.Conv2d(last, 2, 1) if last else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.relu(self.first(x))))


class Block(nn.Module):
    """A stem whose stream is pruned, and a residual block behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 10, 3, padding=1)
        self.last = nn.Conv2d(10, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = torch.relu(self.stem(x))
        out = self.norm(self.last(torch.relu(self.middle(shortcut))))
        out += shortcut
        return self.head(torch.relu(out))
