"""`check_op_rule`: does the rule of an operation say what the operation does to channels?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.errors import UnsupportedNetwork
from prunus.graph.trace import tensors_in
from prunus.testing.network import NetworkReport, check_network

_CONVOLUTIONS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_PLANS = ((0.5, 0), (0.25, 1), (0.75, 2))


@dataclass(frozen=True, eq=False)
class OpRuleReport:
    """Whether the rule is ``"exact"``, ``"frozen"`` (safe, nothing around the operation is pruned) or ``"wrong"``, and why.

    A wrong rule never makes a wrong network, because `prunus.prune` verifies; but it costs a search for the group at fault and
    a second plan each time. ``network`` is the report of the small network around the operation with the worst verdict.
    """

    verdict: Literal["exact", "frozen", "wrong"]
    reason: str
    network: NetworkReport

    def __str__(self) -> str:
        told = {
            "exact": "the rule is exact: a quarter, half and three quarters of the channels came out and nothing else changed",
            "frozen": f"the rule freezes the channels: {self.reason}",
            "wrong": f"the rule is wrong: {self.reason}",
        }
        return told[self.verdict]


def check_op_rule(function: Callable[..., Any], *example_tensors: Tensor, channel_axis: int = 1) -> OpRuleReport:
    """Build a small network around an operation (layer -> operation -> layer), prune it three times and see what the rule does.

    Args:
        function: calls the operation: a function or a module, whose own parameters are pruned along.
        example_tensors: what it takes, one tensor an argument; give other arguments with a lambda. Each float tensor of two axes
            or more is written by a layer of its own: convolutions where ``channel_axis`` is 1 and there are 3 to 5 axes,
            else linear layers over the last axis. Every float result is read by a layer in the same manner.

    Raises:
        UnsupportedNetwork: no example has channels, or the operation returns no float tensor.

    >>> import torch, prunus.testing
    >>> str(prunus.testing.check_op_rule(torch.relu, torch.randn(2, 8, 6, 6)))
    'the rule is exact: a quarter, half and three quarters of the channels came out and nothing else changed'
    """
    network = _Around(function, example_tensors, channel_axis)
    reports = [check_network(network, network.example_inputs, fraction=f, seed=seed) for f, seed in _PLANS]
    judged = [_judge(report) for report in reports]
    return max(judged, key=lambda found: ("exact", "frozen", "wrong").index(found.verdict))


def _judge(report: NetworkReport) -> OpRuleReport:
    reasons = list(report.shortcomings.values())
    wrong = [r for r in reasons if r.startswith("removal differs from silencing")]
    if wrong:
        return OpRuleReport("wrong", wrong[0], report)
    return OpRuleReport("frozen", reasons[0], report) if reasons else OpRuleReport("exact", "", report)


class _Around(nn.Module):
    """Layers that write what the operation takes, the operation, layers that read what it gives."""

    def __init__(self, function: Callable[..., Any], examples: Sequence[Tensor], channel_axis: int) -> None:
        super().__init__()
        self.function = function
        self.channel_axis = channel_axis
        results = [r for r in tensors_in(function(*examples)) if _has_channels(r)]
        if not results or not any(_has_channels(e) for e in examples):
            raise UnsupportedNetwork(
                "check_op_rule needs an example with channels (a float tensor of two axes or more) and an operation that returns "
                "one: wrap the operation in a function that takes and gives such tensors"
            )
        self.writers = nn.ModuleList([self._layer(e, 5, None) if _has_channels(e) else nn.Identity() for e in examples])
        self.readers = nn.ModuleList([self._layer(r, None, 3) for r in results])
        self.example_inputs = tuple(self._input(e) for e in examples)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        written = [writer(x) for writer, x in zip(self.writers, inputs, strict=True)]
        results = [r for r in tensors_in(self.function(*written)) if _has_channels(r)]
        return [reader(r) for reader, r in zip(self.readers, results, strict=True)]

    def _layer(self, like: Tensor, fan_in: int | None, fan_out: int | None) -> nn.Module:
        axis = self._axis(like)
        width = like.shape[axis]
        if axis == like.ndim - 1:
            return nn.Linear(fan_in or width, fan_out or width)
        return _CONVOLUTIONS[like.ndim](fan_in or width, fan_out or width, 1)

    def _input(self, like: Tensor) -> Tensor:
        if not _has_channels(like):
            return like
        shape = list(like.shape)
        shape[self._axis(like)] = 5
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def _axis(self, like: Tensor) -> int:
        return 1 if self.channel_axis == 1 and like.ndim in _CONVOLUTIONS else like.ndim - 1


def _has_channels(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2
