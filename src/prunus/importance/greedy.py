"""Greedy counting: kernels on inputs that are removed already don't count in the norm of a filter (Li et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.errors import EvidenceError
from prunus.types import ChannelGraph, ChannelGroup, PruningPlan


class RemainingWeights:
    """The weights of a network, those that read removed channels being zero; the network itself is left alone.

    ``greedy``: False, nothing is removed; True, what ``removed`` removes; a number, this share of every group that was scored,
    lowest scores first, so that groups are counted front to back.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], graph: ChannelGraph, greedy: float | bool, removed: PruningPlan | None
    ) -> None:
        self.tensors = dict(tensors)
        self._share = 0.0 if isinstance(greedy, bool) else greedy
        self._copied: set[str] = set()
        if (greedy is True) != (removed is not None):
            raise EvidenceError(
                "greedy=True counts no kernels on inputs that a plan removes, and removed=plan is for greedy=True: give both, or "
                "greedy=0.3 for the lowest 30 % of every earlier group"
            )
        for name, keep in removed.keep.items() if removed is not None else ():
            self._leave_out(graph[name], ~keep)

    def after(self, group: ChannelGroup, scores: Tensor) -> None:
        """Leave out the lowest scores of a group, if a share of each group counts as removed."""
        count = int(len(scores) * self._share + 1e-9)
        if count:
            lowest = torch.zeros(len(scores), dtype=torch.bool)
            lowest[scores.cpu().argsort(stable=True)[:count]] = True
            self._leave_out(group, lowest)

    def _leave_out(self, group: ChannelGroup, channels: Tensor) -> None:
        for member in group.with_role("reads"):
            name, axis = member.parameter_axis.parameter, member.parameter_axis.axis
            weight = self.tensors[name]
            if name not in self._copied:
                weight = self.tensors[name] = weight.detach().clone()
                self._copied.add(name)
            positions = member.positions[channels.cpu()].reshape(-1).to(weight.device)
            weight.index_fill_(axis, positions, 0)
