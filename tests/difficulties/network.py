"""What a named difficulty is: a small network, inputs to run it on, and the channel groups worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.types import ChannelGroup

OUTPUT = "it is the network's output"


class Program(nn.Module):
    """A module whose forward pass is the given function: ``run(self, *inputs)``."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module | nn.Parameter | int) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


@dataclass(frozen=True)
class G:
    """An expected group. Members are written ``conv.weight/0``: parameter, slash, axis.

    ``frozen`` is a part of the expected reason. ``scales`` (everything element by element) is compared only where given.
    """

    num_channels: int
    writes: str
    reads: str = ""
    frozen: str | None = None
    mixing: bool = False
    scales: str | None = None

    def mismatch(self, group: ChannelGroup) -> str:
        """What differs between this expectation and a traced group; empty if nothing does."""
        found = {
            role: {f"{m.parameter_axis.parameter}/{m.parameter_axis.axis}" for m in group.with_role(role)}
            for role in ("writes", "reads", "scales")
        }
        wrong = [
            f"{role} {sorted(found[role])}, expected {sorted(expected.split())}"
            for role, expected in (("writes", self.writes), ("reads", self.reads), ("scales", self.scales))
            if expected is not None and found[role] != set(expected.split())
        ]
        if group.num_channels != self.num_channels:
            wrong.append(f"{group.num_channels} channels, expected {self.num_channels}")
        if group.mixing != self.mixing:
            wrong.append(f"mixing is {group.mixing}")
        if (self.frozen is None) != (group.frozen_because is None) or (self.frozen or "") not in (group.frozen_because or ""):
            wrong.append(f"frozen because {group.frozen_because!r}, expected {self.frozen!r}")
        return "; ".join(wrong)


@dataclass(frozen=True)
class Net:
    """A named difficulty. ``outcome`` says what removal gives: ``exact`` (mixing groups included), ``refused`` where the network
    holds a width in Python that labels can't show, so that `verify` must fail, ``frozen`` where no group may be pruned."""

    name: str
    build: Callable[[], nn.Module]
    groups: Mapping[str, G]
    inputs: Callable[[], Any] = field(default=lambda: image())
    outcome: Literal["exact", "refused", "frozen"] = "exact"

    def model(self) -> nn.Module:
        """The network in evaluation mode, its weights from seed 0."""
        torch.manual_seed(0)
        return self.build().eval()


def image(*shape: int) -> Tensor:
    """Normal noise of the given shape (default two images of 3 x 8 x 8) from a fixed seed."""
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(1))


def conv(i: int, o: int, k: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the image size."""
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def conv_bn(i: int, o: int, k: int = 3, **options: Any) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU."""
    return nn.Sequential(conv(i, o, k, bias=False, **options), nn.BatchNorm2d(o), nn.ReLU())
