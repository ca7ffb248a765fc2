"""Methods that work with gates: while the network trains, every channel of a gated group is multiplied where it is read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prunus.errors import PrunusWarning, UnsupportedNetwork
from prunus.graph.as_found import as_found
from prunus.graph.gates import Gates
from prunus.graph.labels import named_tensors
from prunus.importance.readers import DirectReaders
from prunus.sparsity.base import BaseMethod
from prunus.sparsity.found_widths import plan_within
from prunus.training_hooks import SparsityProgress, SparsityTask
from prunus.types import Budget, ChannelGraph, ChannelGroup, PruningPlan, call_model


class GatedMethod(BaseMethod):
    """A method whose network is masked by gates while it trains: from `plan` on by the plan, in the end folded into the weights.

    Methods override `gates`. A gate of zero is what removal makes of a channel, so that the network that trains is the one that
    is cut. Groups that gates can't reach stay whole: those that are read by anything but the weight of a convolution or linear
    layer, or whose statistics change with the width.
    """

    def attach(self) -> None:
        """Find the groups that have gates; from now on they act in every forward pass of the network.

        Raises:
            UnsupportedNetwork: no prunable group can be gated.
        """
        self.groups = gated_groups(self.model, self.graph, self.task, self.name)
        self.masks: dict[str, Tensor] | None = None
        """The gates of the plan, once there is one."""
        self._modes: WeakKeyDictionary[nn.Module, Gates] = WeakKeyDictionary()
        running: list[ExitStack] = []

        # Plain functions: a copy of the network shares them, and gets gates of its own.
        def enter(module: nn.Module, inputs: Any) -> None:
            stack = ExitStack()
            gates = self.gates() if self.masks is None else self.masks
            if gates:
                stack.enter_context(self._mode(module, gates))
            running.append(stack)

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            running.pop().close()

        self._hooks = [
            self.model.register_forward_pre_hook(enter),
            self.model.register_forward_hook(leave, always_call=True),
        ]

    def gates(self) -> dict[str, Tensor]:
        """The gates of the next forward pass: group name -> (num_channels,); groups that aren't named have none."""
        raise NotImplementedError

    def new_mode(self, module: nn.Module, gates: Mapping[str, Tensor]) -> Gates:
        """The mode that applies ``gates`` to ``module``, the network or a copy of it."""
        return Gates(module, self.graph, gates)

    def _mode(self, module: nn.Module, gates: Mapping[str, Tensor]) -> Gates:
        like = next(module.parameters())
        if module not in self._modes:
            self._modes[module] = self.new_mode(module, gates)
        mode = self._modes[module]
        mode.values = {name: gate.to(like) for name, gate in gates.items()}
        return mode

    def plan(self, budget: Budget) -> PruningPlan:
        """The channels that the method left, or fewer where the budget asks for it; the network is masked by them from now on."""
        plan = plan_within(self.graph, self.left(), self.strengths(), budget, self.name)
        alive = self.left()
        self.masks = {g.name: alive[g.name] & plan.keep[g.name] for g in self.groups}
        return plan

    def progress(self) -> SparsityProgress:
        """Figures of `left` and `strengths`; of the plan, once there is one."""
        found = super().progress()
        if self.masks is None:
            return found
        widths = {**found.widths, **{name: int(mask.sum()) for name, mask in self.masks.items()}}
        return replace(found, macs=self.graph.cost_model.cost(widths).macs, widths=widths)

    def finish(self) -> nn.Module:
        """The network with its gates multiplied into the weights that read them: the same function, without hooks."""
        for hook in self._hooks:
            hook.remove()
        fold_gates(self.model, self.graph, self.gates() if self.masks is None else self.masks)
        return self.model


def fold_gates(model: nn.Module, graph: ChannelGraph, gates: Mapping[str, Tensor]) -> None:
    """Multiply gates (group name -> (num_channels,)) into the weights that read the groups, in place."""
    tensors = dict(named_tensors(model))
    with torch.no_grad():
        for name, gate in gates.items():
            for member in graph[name].with_role("reads"):
                axis, weight = member.parameter_axis.axis, tensors[member.parameter_axis.parameter]
                along = weight.new_ones(weight.shape[axis])
                along[member.positions.to(weight.device)] = gate.detach().to(weight).unsqueeze(1).expand_as(member.positions)
                weight.mul_(along.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]))


def gated_groups(model: nn.Module, graph: ChannelGraph, task: SparsityTask, method: str) -> tuple[ChannelGroup, ...]:
    """The prunable groups whose every reader is the weight of a convolution or linear layer, as one forward pass shows.

    Raises:
        UnsupportedNetwork: there is none.
    """
    with as_found(model), DirectReaders() as seen, torch.no_grad():
        call_model(model.eval(), task.example_inputs, task.forward_fn)
    tensors = dict(named_tensors(model))

    def reached(group: ChannelGroup) -> bool:
        readers = [id(tensors[member.parameter_axis.parameter]) for member in group.with_role("reads")]
        return bool(readers) and not group.mixing and all(reader in seen.direct for reader in readers)

    found = tuple(group for group in graph.prunable if reached(group))
    left_out = [group.name for group in graph.prunable if not reached(group)]
    if not found:
        raise UnsupportedNetwork(
            f"{method} masks channels where convolutions and linear layers read them, and none of the {len(left_out)} prunable "
            "groups is read by these alone: prune by a criterion instead"
        )
    if left_out:
        shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        warnings.warn(
            f"{method}: {len(left_out)} of {len(graph.prunable)} groups stay whole, for something else than a convolution or "
            f"linear layer reads them, or their statistics change with the width: {shown}",
            PrunusWarning,
            stacklevel=4,
        )
    return found
