"""Soft filter pruning: the weakest filters are set to zero at the end of every epoch, and may return in the next."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from prunus.allocation import allocate
from prunus.errors import PrunusWarning, UnsupportedNetwork
from prunus.graph.group_view import GroupView
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import Evidence
from prunus.importance.weights import fpgm, l2
from prunus.sparsity.base import BaseMethod
from prunus.sparsity.found_widths import plan_within
from prunus.types import Budget, ChannelGroup, PruningPlan, Scores

Zero = Literal["filters", "channels"]
GIANT = 1.5
"""Times the mean norm of the others from which on filters that were zero count as come back too large."""


class SoftFilterPruning(BaseMethod):
    """Set the filters of the smallest norm to zero at the end of every epoch; what the gradient brings back is a candidate again.

    He et al., Soft Filter Pruning, IJCAI 2018, after the released code. The same share of every layer goes, as much as the budget
    needs; the zeroing at the end of the last epoch decides for good. In the paper a network is trained so from scratch, for as
    long as without it.

    A filter of zeros isn't silent: its norm's shift and, in evaluation, the remembered mean go on, and are lost when the channel
    is removed (unless their mean is folded into what reads it, as runs do). With ``zero="channels"`` bias, shift and remembered
    mean become zero, too (the scale stays, so that the gradient finds its way back): the network that trains is then, behind an
    activation that maps zero to zero, the one that is cut. Departure: residual stages count as one layer, as their channels are
    added.

    Behind batch norm the gradient of a filter of zeros is divided by the square root of a variance near zero, so that at large
    learning rates it comes back far larger than the others, which then go in its place, until nothing of the trained network is
    left; a warning says so. The preset ``short`` therefore masks gradients.

    Args:
        every: epochs from one zeroing to the next; the last epoch always ends with one.
        mask_gradients: gradients of zeroed filters are zero until the next zeroing: only momentum brings them back.
        zero: filters (the weights only, as the paper does) or channels (all that they emit).
    """

    name = "sfp"

    def __init__(self, *, every: int = 1, mask_gradients: bool = False, zero: Zero = "filters") -> None:
        self.every, self.mask_gradients, self.zero = int(every), mask_gradients, zero

    def attach(self) -> None:
        """Find the groups that filters write; all channels are kept to begin with.

        Raises:
            UnsupportedNetwork: there is none.
        """
        tensors = dict(named_tensors(self.model))
        self.groups = [group for group in self.graph.prunable if GroupView(group, tensors).matrices("writes")]
        left_out = [group.name for group in self.graph.prunable if group not in self.groups]
        if not self.groups:
            raise UnsupportedNetwork(
                f"{self.name} zeroes filters, and none of the {len(left_out)} prunable groups is written by any: take another "
                "method (`prunus methods`), or prune by a criterion"
            )
        if left_out:
            shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
            text = f"{self.name}: {len(left_out)} groups stay whole, for no filters write them: {shown}"
            warnings.warn(text, PrunusWarning, stacklevel=4)
        self._kept = {g.name: torch.ones(g.num_channels, dtype=torch.bool) for g in self.groups}
        self._warned = False

    def rank(self, view: GroupView) -> Tensor:
        """What a group is ranked by: (num_channels,), the lowest goes."""
        scores = l2(view, Evidence())
        assert scores is not None
        return scores

    def strengths(self) -> dict[str, Tensor]:
        """The ranking's scores over their group's mean."""
        tensors = dict(named_tensors(self.model))
        found: dict[str, Tensor] = {}
        for group in self.groups:
            scores = self.rank(GroupView(group, tensors, self.graph.norms)).double().cpu()
            found[group.name] = scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)
        return found

    def left(self) -> dict[str, Tensor]:
        """What the last zeroing kept."""
        return dict(self._kept)

    def end_epoch(self, loss: float) -> None:
        """Rank, and set the lowest to zero."""
        epoch = self.step // self.steps_per_epoch + 1
        if epoch % self.every and self.step + 1 < self.steps:
            return
        self._warn_of_giants()
        scores = Scores(self.strengths(), self.name)
        self._kept |= allocate(self.graph, scores, self.task.budget, "uniform").keep
        with torch.no_grad():
            for values, gone in self._slices():
                values[gone] = 0

    def _warn_of_giants(self) -> None:
        """Filters that were zero must not outgrow the others: by the norm they then push out what was trained."""
        if self._warned:
            return
        tensors = dict(named_tensors(self.model))
        for group in self.groups:
            kept, norms = self._kept[group.name], l2(GroupView(group, tensors, self.graph.norms), Evidence())
            if norms is None or bool(kept.all()) or not bool(kept.any()):
                continue
            times = float(norms.cpu()[~kept].mean() / norms.cpu()[kept].mean().clamp_min(torch.finfo(norms.dtype).tiny))
            if times > GIANT:
                self._warned = True
                text = (
                    f"{self.name}: filters of `{group.name}` that were zero came back {times:.1f} times as large as the others "
                    "within an epoch, so that others go in their place and the network loses what it has learned. Lower the "
                    "learning rate, or set mask_gradients = true"
                )
                warnings.warn(text, PrunusWarning, stacklevel=4)
                return

    def after_backward(self) -> None:
        """Hold what is zero, if asked to."""
        if self.mask_gradients:
            for values, gone in self._slices(gradients=True):
                values[gone] = 0

    def _slices(self, gradients: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """What is zeroed (or its gradient), its channel axis first, and the positions of the zeroed channels."""
        tensors = dict(named_tensors(self.model))
        for group in self.groups:
            gone = ~self._kept[group.name]
            for name, axis, positions in self._emitting(group):
                tensor = tensors[name].grad if gradients else tensors[name]
                if tensor is not None and bool(gone.any()):
                    yield tensor.movedim(axis, 0), positions[gone].reshape(-1).to(tensor.device)

    def _emitting(self, group: ChannelGroup) -> Iterator[tuple[str, int, Tensor]]:
        """Name, axis and positions (num_channels, k) of the tensors that are zeroed."""
        shifts = {norm.shift for norm in self.graph.norms}
        scales = {norm.scale for norm in self.graph.norms}
        tensors = dict(named_tensors(self.model))
        for member in group.members:
            name, role = member.parameter_axis.parameter, member.parameter_axis.role
            filters = role == "writes" and tensors[name].ndim > 1
            rest = role == "writes" or name in shifts or (role == "statistics" and name.endswith("running_mean"))
            if filters or (self.zero == "channels" and rest and name not in scales):
                yield name, member.parameter_axis.axis, member.positions

    def plan(self, budget: Budget) -> PruningPlan:
        """What the last zeroing kept; for a smaller budget, fewer by the same ranking."""
        return plan_within(self.graph, self.left(), self.strengths(), budget, self.name, "uniform")

    def state_dict(self) -> dict[str, Any]:
        """What the last zeroing kept."""
        return {"kept": dict(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind that zeroing."""
        self._kept = {name: mask.bool() for name, mask in state["kept"].items()}


class GeometricMedianPruning(SoftFilterPruning):
    """Set the filters nearest to their layer's geometric median to zero at the end of every epoch: what others can replace.

        G(j) = sum over k of ||F_j - F_k||_2,   the lowest go

    He et al., Filter Pruning via Geometric Median, CVPR 2019. The released code masks the gradients of zeroed filters (the
    default here), which leaves little that is soft; filters that are zero coincide, which makes them sticky. Its options for
    other distances have no effect and aren't here. The rest is as in `SoftFilterPruning`.

    Args:
        norm_share: so large a share of a layer goes by the norm first ("mix 40 %" of the paper: 0.1, and 30 % by the distance
            among the others).
        every: epochs from one zeroing to the next; the last epoch always ends with one.
        mask_gradients: gradients of zeroed filters are zero until the next zeroing: only momentum brings them back.
        zero: filters (the weights only, as the paper does) or channels (all that they emit).
    """

    name = "fpgm"

    def __init__(self, *, norm_share: float = 0.0, every: int = 1, mask_gradients: bool = True, zero: Zero = "filters") -> None:
        super().__init__(every=every, mask_gradients=mask_gradients, zero=zero)
        self.norm_share = norm_share

    def rank(self, view: GroupView) -> Tensor:
        """Distances, below them the norms of what goes by the norm."""
        scores = fpgm(view, Evidence(), norm_share=self.norm_share)
        assert scores is not None
        return scores
