"""ISTA on the scales of batch norms: proximal steps drive them to exact zeros, and what stays of a channel is a constant."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PrunusWarning, UnsupportedNetwork
from prunus.graph.labels import named_tensors
from prunus.sparsity.base import BaseMethod, NormScales
from prunus.sparsity.penalties import ista_step, memory_cost
from prunus.surgery import verify
from prunus.types import Budget, ChannelGroup, PruningPlan, first_tensor

BLOWN_UP = 2.0
"""A loss that is so many times the first epoch's has blown up."""


class Ista(BaseMethod):
    """Each step soft-thresholds the scales of batch norms by lr * strength * cost of their layer's channel: exact zeros.

        gamma <- soft(gamma - lr * dL/dgamma, lr * strength * cost),   soft(x, t) = sign(x) * max(abs(x) - t, 0)

    Ye et al., Rethinking the Smaller-Norm-Less-Informative Assumption, ICLR 2018. ``cost`` is the memory of a channel
    (`memory_cost`); a channel's strength is abs(gamma). One with gamma = 0 emits a constant, to be folded into what reads it.
    Works on groups with one batch norm; those of several (ends of residual branches, projections) keep all channels, as in the
    paper. Departure: the steps are those of SGD without momentum for the scales alone; the paper has no momentum anywhere.
    Needs SGD. Choose ``strength`` so that the penalty is about the loss at the start.

    Args:
        strength: rho, factor of the penalty, the same for all layers.
        rescale: alpha: scales and shifts are multiplied by it, what reads them is divided by it, until the end; the same function
            behind a ReLU. For a trained network choose it so that gamma is about 100 * lr * strength * cost.
    """

    name = "ista"

    def __init__(self, *, strength: float = 0.001, rescale: float = 1.0) -> None:
        self.strength, self.rescale = strength, rescale

    def attach(self) -> None:
        """Find the scales and their costs, and rescale."""
        self.scales = NormScales(self.model, self.graph, self.name, alone=True)
        tensors = dict(named_tensors(self.model))
        image = first_tensor(self.task.example_inputs)
        self.costs: dict[str, float] = {}
        for name, members in self.scales.by_group.items():
            self.costs[members[0][0]] = channel_cost(self.graph[name], tensors, self._map_size(name), image)
        self.penalty_at_start = self._lasso()
        self.first_loss: float | None = None
        self.loss = 0.0
        if self.rescale != 1:
            self._rescale_checked()

    def _map_size(self, group: str) -> tuple[int, int]:
        """Height and width of what the layer that writes the group gives."""
        writers = {m.parameter_axis.parameter.rpartition(".")[0] for m in self.graph[group].with_role("writes")}
        size = next((layer.output_size for layer in self.graph.layers if layer.name in writers), ())
        return (size[2], size[3]) if len(size) == 4 else (1, 1)

    def _rescale_checked(self) -> None:
        before = copy.deepcopy(self.model)
        self._multiply(self.rescale)
        report = verify(before, self.model, self.task.example_inputs, forward_fn=self.task.forward_fn)
        if not report.passed:
            self._multiply(1 / self.rescale)
            raise UnsupportedNetwork(
                f"ista can't rescale this network by {self.rescale:g}: its function changes (relative error "
                f"{report.max_error:.1e}), so something between a batch norm and what reads it isn't positively homogeneous like "
                "ReLU and pooling (SiLU, Hardswish, ...): set rescale = 1"
            )

    @torch.no_grad()
    def _multiply(self, factor: float) -> None:
        tensors = dict(named_tensors(self.model))
        shifts = {norm.scale: norm.shift for norm in self.graph.norms}
        for name, members in self.scales.by_group.items():
            scale = members[0][0]
            for parameter in (scale, shifts[scale]):
                if parameter is not None:
                    tensors[parameter].mul_(factor)
            for member in self.graph[name].with_role("reads"):
                weight, axis = tensors[member.parameter_axis.parameter], member.parameter_axis.axis
                at = member.positions.reshape(-1).to(weight.device)
                weight.index_copy_(axis, at, weight.index_select(axis, at) / factor)

    def parameter_options(self) -> Mapping[str, Mapping[str, Any]]:
        """Plain gradient steps for the scales."""
        return {name: {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0} for name in self.scales.parameters}

    @torch.no_grad()
    def after_step(self) -> None:
        """The proximal part; the optimizer has taken the gradient's."""
        for name, scale in self.scales.parameters.items():
            scale.copy_(ista_step(scale, torch.zeros_like(scale), self.lr, self.costs[name], self.strength))

    def end_epoch(self, loss: float) -> None:
        """Remember the loss: one that blows up is a symptom."""
        self.first_loss, self.loss = loss if self.first_loss is None else self.first_loss, loss

    def strengths(self) -> dict[str, Tensor]:
        """Abs(gamma) of every channel."""
        return self.scales.strengths()

    def left(self) -> dict[str, Tensor]:
        """Channels whose scale isn't zero."""
        return {name: values > 0 for name, values in self.strengths().items()}

    def plan(self, budget: Budget) -> PruningPlan:
        """The smallest scales go; warnings where the run shows a symptom that the paper has advice for."""
        for text in self.symptoms():
            warnings.warn(f"ista: {text}", PrunusWarning, stacklevel=2)
        plan, strengths = super().plan(budget), self.strengths()
        alive = sum(int((strengths[name].cpu()[~keep] > 0).sum()) for name, keep in plan.keep.items())
        if alive:
            warnings.warn(
                f"ista: {alive} of the {plan.num_removed} channels that are removed still have a scale other than zero, so "
                "removing them isn't free: train longer, raise strength, or ask for less",
                PrunusWarning,
                stacklevel=2,
            )
        return plan

    def symptoms(self) -> list[str]:
        """What went wrong by the paper's advice on tuning, and what to do about it."""
        values = torch.cat([v.cpu() for v in self.strengths().values()])
        zeros, found = int((values == 0).sum()), list[str]()
        if zeros >= 0.99 * len(values):
            found.append(f"{zeros} of {len(values)} scales are zero: lower strength (now {self.strength:g})")
        elif zeros == 0 and self._lasso() < 0.9 * self.penalty_at_start * self.rescale:
            found.append(f"the scales shrink but none is zero: lower rescale (now {self.rescale:g})")
        elif zeros == 0:
            found.append(f"no scale is zero: raise strength (now {self.strength:g}), or lower rescale (now {self.rescale:g})")
        if self.first_loss is not None and self.loss > BLOWN_UP * self.first_loss:
            found.append(f"the loss went up from {self.first_loss:.3g} to {self.loss:.3g}: lower lr or strength")
        return found

    def _lasso(self) -> float:
        """Sum of abs(gamma) * cost."""
        return sum(float(scale.detach().abs().sum()) * self.costs[name] for name, scale in self.scales.parameters.items())

    def finish(self) -> nn.Module:
        """The network, its rescaling undone."""
        if self.rescale != 1:
            self._multiply(1 / self.rescale)
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Losses, and the penalty at the start."""
        return {"first_loss": self.first_loss, "loss": self.loss, "penalty_at_start": self.penalty_at_start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up again."""
        self.first_loss, self.loss = state["first_loss"], state["loss"]
        self.penalty_at_start = state["penalty_at_start"]


def channel_cost(group: ChannelGroup, tensors: Mapping[str, Tensor], map_size: tuple[int, int], image: Tensor | None) -> float:
    """`memory_cost` of a channel of ``group``: its map, the weights that write it, those that read it, per pixel of the input."""
    own = tensors[group.with_role("writes")[0].parameter_axis.parameter]
    followers: list[tuple[int, int, int]] = []
    for member in group.with_role("reads"):
        weight = tensors[member.parameter_axis.parameter]
        entries = weight.numel() // weight.shape[member.parameter_axis.axis] * member.positions.shape[1]
        followers.append((1, 1, entries))
    pixels = (image.shape[-2], image.shape[-1]) if image is not None and image.ndim == 4 else (1, 1)
    return memory_cost(map_size, (1, 1), own.numel() // own.shape[0], followers, pixels)
