"""Gradual pruning by Taylor scores while the network trains: a few channels are silenced at a time, and never come back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from prunus.errors import PrunusWarning, UnsupportedNetwork
from prunus.graph.group_view import channel_sum, sum_along
from prunus.graph.labels import named_tensors
from prunus.sparsity.base import BaseMethod
from prunus.sparsity.selection import weakest, weakest_plan
from prunus.types import Budget, ChannelGroup, PruningPlan


class GradualTaylor(BaseMethod):
    """Every few steps the channels of the lowest Taylor scores are silenced, by gradients that training computes anyway.

        g[c] = sum over the weights w that read channel c of w * dL/dw,   score[c] = mean over the steps since the last of g[c]^2

    Molchanov et al. 2019 (scores, schedule, momentum, group lasso) and 2017 (the paper from 2016: one at a time, scores divided
    by their L2 norm over the layer). The score is the criterion `taylor`'s, taken on the training batches and before the
    optimizer's step, where the released code multiplies moved weights with stale gradients. A silenced channel's reading weights
    are zero and stay zero, so that the network that trains is the one that comes out. The group lasso is added to unscaled
    gradients behind the scores, which it therefore doesn't enter.

    Args:
        interval: steps between two removals.
        per_removal: channels that go each time; 0: so many that the budget is met, evenly, after a share ``until`` of training.
        until: see ``per_removal``.
        warmup_epochs: epochs before the first removal.
        group_lasso: factor of the sum of the L2 norms of all filters.
        momentum: share of earlier scores in a channel's score.
        normalisation: ``l2`` divides scores by their L2 norm over the group.
    """

    name = "taylor"

    def __init__(
        self,
        *,
        interval: int = 30,
        per_removal: int = 100,
        until: float = 0.7,
        warmup_epochs: float = 0.0,
        group_lasso: float = 1e-8,
        momentum: float = 0.9,
        normalisation: str = "none",
    ) -> None:
        self.interval, self.per_removal, self.until, self.warmup_epochs = interval, per_removal, until, warmup_epochs
        self.group_lasso, self.momentum, self.normalisation = group_lasso, momentum, normalisation

    def attach(self) -> None:
        """Find the weights that read and write each group."""
        tensors = dict(named_tensors(self.model))
        self.groups = {g.name: g for g in self.graph.prunable if not g.mixing and g.with_role("reads")}
        if not self.groups:
            raise UnsupportedNetwork(
                f"taylor scores channels by the weights that read them, and none of the {len(self.graph.prunable)} prunable "
                "groups has such weights outside operations that compute statistics over channels: prune by a criterion "
                "(`prunus criteria`)"
            )
        left_out = [g.name for g in self.graph.prunable if g.name not in self.groups]
        if left_out:
            shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
            text = f"taylor: {len(left_out)} groups stay whole, for no weight reads them or their statistics are shared: {shown}"
            warnings.warn(text, PrunusWarning, stacklevel=4)
        self.tensors = tensors
        self.sums = {name: torch.zeros(g.num_channels) for name, g in self.groups.items()}
        self.scores: dict[str, Tensor] = {}
        self.steps_seen = 0
        self._remember({name: torch.zeros(g.num_channels, dtype=torch.bool) for name, g in self.groups.items()})

    def before_step(self, step: int, lr: float) -> None:
        """Silence the next channels where it is time."""
        super().before_step(step, lr)
        start = round(self.warmup_epochs * self.steps_per_epoch)
        if step > start and (step - start) % self.interval == 0 and self.steps_seen:
            self._update_scores()
            self._remove(start)

    def _update_scores(self) -> None:
        for name, total in self.sums.items():
            fresh = total / self.steps_seen
            before = self.scores.get(name)
            self.scores[name] = fresh if before is None else self.momentum * before + (1 - self.momentum) * fresh
            self.sums[name] = torch.zeros_like(total)
        self.steps_seen = 0

    def _remove(self, start: int) -> None:
        gone = sum(int(mask.sum()) for mask in self.removed.values())
        if self.per_removal:
            keep = weakest(self.graph, self.strengths(), self.task.budget, at_most=gone + self.per_removal)
        else:
            share = min((self.step - start) / max(self.until * self.steps - start, 1), 1.0)
            keep = weakest(self.graph, self.strengths(), self.task.budget, share=share)
        self._remember({name: mask | ~keep[name] for name, mask in self.removed.items()})
        self._silence()

    def _remember(self, removed: dict[str, Tensor]) -> None:
        self.removed = removed
        self._silent = list(self._reads_of_removed())

    def _reads_of_removed(self) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Every reading weight with its axis and the positions there that removed channels have."""
        for name, mask in self.removed.items():
            if bool(mask.any()):
                for member in self.groups[name].with_role("reads"):
                    weight = self.tensors[member.parameter_axis.parameter]
                    yield weight, member.parameter_axis.axis, member.positions[mask].reshape(-1).to(weight.device)

    @torch.no_grad()
    def _silence(self) -> None:
        for weight, axis, gone in self._silent:
            weight.index_fill_(axis, gone, 0)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Score, keep what is silent silent, and add the group lasso."""
        for name, group in self.groups.items():
            gradient = self._gate_gradient(group)
            if gradient is not None:
                self.sums[name] = self.sums[name].to(gradient.device) + gradient.square()
        self.steps_seen += 1
        for weight, axis, gone in self._silent:
            if weight.grad is not None:
                weight.grad.index_fill_(axis, gone, 0)
        if self.group_lasso:
            self._add_lasso()

    def _gate_gradient(self, group: ChannelGroup) -> Tensor | None:
        total: Tensor | None = None
        for member in group.with_role("reads"):
            weight = self.tensors[member.parameter_axis.parameter]
            if weight.grad is None:
                continue
            part = channel_sum(member, sum_along(weight * weight.grad, member.parameter_axis.axis))
            total = part if total is None else total + part
        return total

    def _add_lasso(self) -> None:
        for group in self.groups.values():
            for member in group.with_role("writes"):
                weight, axis = self.tensors[member.parameter_axis.parameter], member.parameter_axis.axis
                if weight.grad is None or weight.ndim < 2:
                    continue
                norms = torch.linalg.vector_norm(weight, dim=[i for i in range(weight.ndim) if i != axis], keepdim=True)
                weight.grad.addcdiv_(weight, norms.clamp_min_(torch.finfo(weight.dtype).tiny), value=self.group_lasso)

    def after_step(self) -> None:
        """Momentum and weight decay must not wake what is silent."""
        self._silence()

    def strengths(self) -> dict[str, Tensor]:
        """The scores, those of removed channels below all others."""
        found: dict[str, Tensor] = {}
        for name, mask in self.removed.items():
            values = self.scores.get(name, torch.zeros(len(mask))).double().cpu()
            if self.normalisation == "l2":
                values = values / values.norm().clamp_min(torch.finfo(values.dtype).tiny)
            found[name] = values.clamp_min(torch.finfo(values.dtype).tiny).masked_fill(mask, 0.0)
        return found

    def left(self) -> dict[str, Tensor]:
        """Channels that aren't silent."""
        return {name: ~mask for name, mask in self.removed.items()}

    def plan(self, budget: Budget) -> PruningPlan:
        """The silent channels go, and more with a warning where they aren't enough."""
        if self.steps_seen:
            self._update_scores()
        plan = weakest_plan(self.graph, self.strengths(), budget)
        if not all(row["met"] for row in plan.provenance["budget"]):
            plan = super().plan(budget)  # which says what holds the cost
        late = sum(int((~keep & ~self.removed[name]).sum()) for name, keep in plan.keep.items())
        gone = sum(int(mask.sum()) for mask in self.removed.values())
        if late > 0.02 * plan.num_removed:
            warnings.warn(
                f"taylor: training ended with {gone} channels silenced, and the budget takes {late} more, which are removed at "
                "once: train longer, shorten interval, or raise per_removal",
                PrunusWarning,
                stacklevel=2,
            )
        return plan

    def state_dict(self) -> dict[str, Any]:
        """Scores and what is silent."""
        return {"sums": dict(self.sums), "scores": dict(self.scores), "steps": self.steps_seen, "removed": dict(self.removed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up again."""
        self.sums, self.scores = dict(state["sums"]), dict(state["scores"])
        self.steps_seen = state["steps"]
        self._remember({name: mask.bool() for name, mask in state["removed"].items()})
