"""What the methods share: hooks that do nothing, and plans and figures that follow from one strength per channel."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunus.allocation import allocate
from prunus.errors import PrunusWarning, UnsupportedNetwork
from prunus.graph.labels import named_tensors
from prunus.training_hooks import SparsityProgress, SparsityTask
from prunus.types import Budget, ChannelGraph, ChannelGroup, PruningPlan, Scores


class BaseMethod:
    """A `SparsityMethod` that does nothing; methods override the hooks that they need, and always `strengths` and `left`.

    ``model``, ``graph`` and ``task`` are what `prepare` was given; ``steps``, ``steps_per_epoch``, ``step`` and ``lr`` follow
    the training loop. `attach` is for what a method does to the network before training.
    """

    name: ClassVar[str]
    model: nn.Module
    graph: ChannelGraph
    task: SparsityTask

    def prepare(self, model: nn.Module, graph: ChannelGraph, task: SparsityTask) -> nn.Module:
        """See `SparsityMethod`."""
        self.model, self.graph, self.task = model, graph, task
        self.steps = self.steps_per_epoch = self.step = 0
        self.lr = 0.0
        self.attach()
        return model

    def attach(self) -> None:
        """Check the network and change it, in place."""

    def parameter_options(self) -> Mapping[str, Mapping[str, Any]]:
        """No options."""
        return {}

    def begin(self, steps: int, steps_per_epoch: int) -> None:
        """Remember how long training is."""
        self.steps, self.steps_per_epoch = steps, steps_per_epoch

    def before_step(self, step: int, lr: float) -> None:
        """Remember where training is."""
        self.step, self.lr = step, lr

    def penalty(self) -> Tensor | float:
        """Nothing."""
        return 0.0

    def after_backward(self) -> None:
        """Nothing."""

    def after_step(self) -> None:
        """Nothing."""

    def end_epoch(self, loss: float) -> None:
        """Nothing."""

    def strengths(self) -> dict[str, Tensor]:
        """What the method decides by: group name -> (num_channels,), at least zero, comparable over groups, higher = keep."""
        raise NotImplementedError

    def left(self) -> dict[str, Tensor]:
        """The channels that would stay if the network were cut now: group name -> bool (num_channels,)."""
        raise NotImplementedError

    def progress(self) -> SparsityProgress:
        """Figures of `left` and `strengths`."""
        widths = {name: int(mask.sum()) for name, mask in self.left().items()}
        strengths = {name: values.detach().float().cpu() for name, values in self.strengths().items()}
        return SparsityProgress(self.graph.cost_model.cost(widths).macs, widths, strengths)

    def plan(self, budget: Budget) -> PruningPlan:
        """The weakest channels of the whole network go, until the budget is met."""
        strengths = {name: values.detach().double().cpu() for name, values in self.strengths().items()}
        return allocate(self.graph, Scores(strengths, self.name, comparable=True), budget, "global")

    def finish(self) -> nn.Module:
        """The network as it is."""
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


class NormScales:
    """The scales (gamma) of the batch norms on every prunable group: what Network Slimming and ISTA work on.

    ``by_group``: group name -> (parameter name, positions (num_channels, k)) of every batch norm on its channels. A group without
    one isn't there; with ``alone`` neither is one that several batch norms act on (residual stages).
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, method: str, *, alone: bool = False) -> None:
        """Raises `UnsupportedNetwork` if no prunable group has what is asked for; warns of groups that haven't."""
        names = {norm.scale for norm in graph.norms if norm.kind == "batch_norm"}
        found = {group.name: _members(group, names) for group in graph.prunable}
        self.by_group = {name: members for name, members in found.items() if (len(members) == 1 if alone else members)}
        what = "a batch norm of its own" if alone else "a batch norm with scales"
        if not self.by_group:
            raise UnsupportedNetwork(
                f"{method} works on the scales of batch norms, and none of the {len(graph.prunable)} prunable groups has {what}: "
                "take a method that doesn't need them (`prunus methods`), or prune by a criterion"
            )
        without = [name for name in found if name not in self.by_group]
        if without:
            shown = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
            text = f"{method}: {len(without)} of {len(found)} groups stay whole, for they have not {what}: {shown}"
            warnings.warn(text, PrunusWarning, stacklevel=5)
        tensors = dict(named_tensors(model))
        used = dict.fromkeys(name for members in self.by_group.values() for name, _ in members)
        self.parameters = {name: tensors[name] for name in used}

    def strengths(self) -> dict[str, Tensor]:
        """Mean of abs(gamma) over a channel's norms and positions: group name -> (num_channels,)."""
        return {
            name: torch.stack(
                [self.parameters[p].detach().abs()[at.to(self.parameters[p].device)].mean(1) for p, at in members]
            ).mean(0)
            for name, members in self.by_group.items()
        }


def _members(group: ChannelGroup, names: set[str | None]) -> list[tuple[str, Tensor]]:
    members = [m for m in group.with_role("scales") if m.parameter_axis.parameter in names]
    return [(m.parameter_axis.parameter, m.positions) for m in members]
