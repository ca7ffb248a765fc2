"""ResRep: a 1 x 1 convolution behind each normed convolution learns which channels can go, and is merged into it at the end."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PrunusWarning, UnsupportedNetwork, VerificationFailed
from prunus.sparsity.base import BaseMethod
from prunus.sparsity.compactors import VANISHED, Compacted, find_compactable, merge, reset_gradient_
from prunus.sparsity.selection import weakest
from prunus.surgery import randomise, verify
from prunus.types import Budget, PruningPlan, VerificationReport


class ResRep(BaseMethod):
    """Compactors (1 x 1 convolutions, at first the identity) behind conv + batch norm lose rows, and are merged at the end.

        dL/dQ[j] <- m[j] * dL/dQ[j] + strength * Q[j] / norm(Q[j])

    Ding et al., ResRep, ICCV 2021. Every ``interval`` steps behind the warm-up the rows of smallest norm are selected anew, so
    that a choice can be taken back: until the budget is met, but at most ``per_selection`` more than were selected before.
    Selected rows no longer hear the task (m[j] = 0) and vanish by the penalty alone. A channel's strength is its row's norm.
    Departures: only rows that really are deselected count towards ``per_selection`` (the released code counts skipped ones too,
    and can stall); a row of zeros has no direction and is left alone; after merging, the batch norm stays, set to an affine map.

    Groups are compacted whose every writer is a plain convolution with a batch norm behind it. Depthwise convolutions may follow:
    what a vanished channel then emits is a constant. Others stay whole, with a warning. Needs SGD.

    Args:
        strength: factor of the penalty.
        warmup_epochs: epochs before rows are selected.
        interval: steps between two selections.
        per_selection: how many more rows each selection may take.
        momentum: of the compactors, without Nesterov's correction and without weight decay.
        residual: also compact groups of several writers (residual stages): one compactor, the pacesetter, shared by all.
    """

    name = "resrep"

    def __init__(
        self,
        *,
        strength: float = 1e-4,
        warmup_epochs: float = 5.0,
        interval: int = 200,
        per_selection: int = 4,
        momentum: float = 0.99,
        residual: bool = False,
    ) -> None:
        self.strength, self.warmup_epochs, self.interval = strength, warmup_epochs, interval
        self.per_selection, self.momentum, self.residual = per_selection, momentum, residual

    def attach(self) -> None:
        """Put the compactors in, once it is proven on a copy with random weights that they can be merged."""
        found, left_out = find_compactable(self.model, self.graph, self.task, residual=self.residual)
        if not found:
            why = "; ".join(f"`{name}`: {reason}" for name, reason in list(left_out.items())[:3])
            raise UnsupportedNetwork(
                f"resrep puts compactors behind convolutions with batch norms, and none of the {len(self.graph.prunable)} "
                f"prunable groups has a batch norm directly behind each of its convolutions ({why}): take another method "
                "(`prunus methods`), or prune by a criterion"
            )
        twin = randomise(self.model).double()
        self._prove_mergeable(twin, [compacted.on(twin) for compacted in found])
        if left_out:
            shown = "; ".join(f"`{name}`: {reason}" for name, reason in list(left_out.items())[:3])
            count = f"{len(left_out)} of {len(self.graph.prunable)}"
            warnings.warn(f"resrep: {count} groups stay whole: {shown}", PrunusWarning, stacklevel=4)
        self.compacted = [compacted.on(self.model) for compacted in found]
        self._choose({c.group: torch.zeros(c.width, dtype=torch.bool) for c in self.compacted})

    def _choose(self, selected: dict[str, Tensor]) -> None:
        self.selected = selected
        self._heard: dict[str, Tensor] = {}  # of each group a mask (D, 1) as its gradient needs it, made in the next step

    def _prove_mergeable(self, twin: nn.Module, compacted: list[Compacted]) -> None:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(self.task.seed)
            for one in compacted:
                noise = torch.randn(one.weight.shape, generator=generator, dtype=torch.float64)
                one.weight.add_(0.3 * noise.to(one.weight) / one.width**0.5)
        report = self._verify_merge(twin, compacted)
        if not report.passed:
            raise UnsupportedNetwork(
                f"resrep can't merge compactors into this network exactly (relative error {report.max_error:.1e}): something "
                "else than its batch norm uses the output of a convolution. Put the layer under `keep`, or take another method"
            )

    def _verify_merge(self, model: nn.Module, compacted: list[Compacted]) -> VerificationReport:
        """The merge of copies of ``model`` in float64, where rounding can't hide an error."""
        before, merged = (copy.deepcopy(model).double() for _ in range(2))
        for one in compacted:
            merge(one.found_in(merged))
        return verify(before, merged, self.task.example_inputs, forward_fn=self.task.forward_fn)

    def parameter_options(self) -> Mapping[str, Mapping[str, Any]]:
        """Momentum of the compactors."""
        own = {id(c.weight) for c in self.compacted}
        options = {"momentum": self.momentum, "nesterov": False, "weight_decay": 0.0}
        return {name: options for name, p in self.model.named_parameters() if id(p) in own}

    def before_step(self, step: int, lr: float) -> None:
        """Select anew where it is time."""
        super().before_step(step, lr)
        start = round(self.warmup_epochs * self.steps_per_epoch)
        if step >= start and (step - start) % self.interval == 0:
            self.select()

    def select(self) -> None:
        """The weakest rows, from scratch: until the budget is met, or `per_selection` more than now are selected."""
        already = sum(int(mask.sum()) for mask in self.selected.values())
        keep = weakest(self.graph, self.strengths(), self.task.budget, at_most=already + self.per_selection)
        self._choose({c.group: ~keep.get(c.group, torch.ones(c.width, dtype=torch.bool)) for c in self.compacted})

    def after_backward(self) -> None:
        """Reset the task's gradient on selected rows, and add the penalty's on all."""
        for one in self.compacted:
            weight = one.weight
            if weight.grad is not None:
                if one.group not in self._heard:
                    self._heard[one.group] = (~self.selected[one.group])[:, None].to(weight.grad)
                reset_gradient_(weight.grad, weight, self._heard[one.group], self.strength)

    def strengths(self) -> dict[str, Tensor]:
        """Norm of every compactor's rows."""
        return {c.group: c.weight.detach().norm(dim=1) for c in self.compacted}

    def left(self) -> dict[str, Tensor]:
        """Rows that aren't selected."""
        return {group: ~mask for group, mask in self.selected.items()}

    def plan(self, budget: Budget) -> PruningPlan:
        """The rows of smallest norm go; a warning if they haven't vanished."""
        plan, strengths = super().plan(budget), self.strengths()
        removed = torch.cat([strengths[name].cpu()[~keep] for name, keep in plan.keep.items()])
        alive = removed[removed >= VANISHED]
        if len(alive):
            warnings.warn(
                f"resrep: {len(alive)} of {len(removed)} rows that are removed haven't vanished (the largest norm is "
                f"{float(alive.max()):.2g}), so removing them costs accuracy: train longer, or raise strength (now "
                f"{self.strength:g})",
                PrunusWarning,
                stacklevel=2,
            )
        return plan

    def finish(self) -> nn.Module:
        """Convolution, batch norm and compactor become one convolution and a batch norm that only adds; checked in float64."""
        report = self._verify_merge(self.model, self.compacted)
        if not report.passed:
            raise VerificationFailed(
                f"the network with merged compactors differs from the trained one (relative error {report.max_error:.1e}, "
                f"tolerance {report.tolerance:.0e}): the merge isn't exact on these weights, please report it",
                report,
            )
        for one in self.compacted:
            merge(one)
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """The selected rows."""
        return {"selected": dict(self.selected)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up again."""
        self._choose({name: mask.bool() for name, mask in state["selected"].items()})
