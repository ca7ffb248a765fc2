"""A network on its way: channels removed and layers refitted from front to back, at full size and as what is left of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from prunus.graph.labels import named_tensors
from prunus.importance.evidence import to_device
from prunus.importance.readers import Reading, reading_members, readings
from prunus.reconstruction.lasso_selection import LassoProblem, alternate
from prunus.reconstruction.layer_fit import gather
from prunus.reconstruction.layer_sites import Site, find_sites
from prunus.reconstruction.normal_equations import NormalEquations
from prunus.reconstruction.original import Original
from prunus.reconstruction.regression import fittable
from prunus.surgery import SurgeryRecord, remove, select_inputs
from prunus.types import ChannelGraph, PruningPlan, Scores

Problem: TypeAlias = "tuple[NormalEquations, Tensor, Tensor, Tensor]"
"""What `alternate` takes of a layer: its normal equations, weight, bias and the channels' positions."""
Selection: TypeAlias = "Literal['lasso', 'lasso_alternating'] | str | Scores"


def _lasso(problems: list[Problem], channels: int, count: int, selection: Selection, slack: float) -> Tensor:
    """The Lasso's choice, once or alternating with re-fits: bool (channels,)."""
    if selection == "lasso_alternating":
        return alternate(problems, channels, count, slack)
    problem = LassoProblem(channels)
    for given in problems:
        problem.add(*given)
    return problem.select(count, slack)


class PartlyPruned:
    """The network at full size with the weights as they are refitted, and what is left of it so far."""

    def __init__(self, original: Original, graph: ChannelGraph, plan: PruningPlan) -> None:
        self.original, self.graph, self._plan = original, graph, plan
        self._run, model = original.run, original.model
        self.model = copy.deepcopy(model)
        self.keep: dict[str, Tensor] = {}
        self.sampled: dict[str, Tensor] = {}
        """Weight -> indices of its inputs at full size, for layers that read some channels only."""
        self.small, self.record = self.model, SurgeryRecord.nothing_removed(model)
        self.example: Any = self._run.inputs(to_device(next(iter(self._run)), model))
        names = {id(tensor): name for name, tensor in named_tensors(model)}
        self._reads: dict[str, dict[str, Reading]] = {}
        for group, members in reading_members(model, graph).items():
            along_inputs = [member for member in members if member.parameter_axis.axis == 1]
            self._reads[group] = {names[weight]: reading for weight, reading in readings(model, along_inputs).items()}

    def count(self, group: str) -> int:
        """Channels of a group that stay."""
        return int(self._plan.keep[group].sum())

    def first_read_by(self, weight: str) -> list[str]:
        """Groups that lose channels, aren't selected yet, and are read through this weight."""
        waiting = [name for name, keep in self._plan.keep.items() if name not in self.keep and not bool(keep.all())]
        return [name for name in waiting if weight in self._reads.get(name, {})]

    def plan(self) -> PruningPlan:
        """What has been selected so far."""
        counts = {name: int(keep.sum()) for name, keep in self.keep.items()}
        return PruningPlan(self.keep, self.graph.cost_model.cost(counts), self._plan.provenance)

    def remove(self, group: str, keep: Tensor) -> None:
        """Take channels of one more group out of the small network."""
        self.keep = {**self.keep, group: keep}
        self._rebuild()

    def _rebuild(self) -> None:
        if self.keep:
            self.small, self.record = remove(self.model, self.graph, self.plan())
        else:
            self.small, self.record = copy.deepcopy(self.model), SurgeryRecord.nothing_removed(self.model)
        whole = {name: torch.arange(tensor.shape[1]) for name, tensor in named_tensors(self.model) if name in self.sampled}
        left = {name: self.record.kept.get(name, {}).get(1, inputs) for name, inputs in whole.items()}
        kept = {
            name.removesuffix(".weight"): torch.isin(left[name], inputs).nonzero().squeeze(1)
            for name, inputs in self.sampled.items()
        }
        self.record = select_inputs(self.small, self.record, kept)

    def site(self, weight: str) -> Site:
        """The layer of this weight as it is now."""
        return find_sites(self.small, self.example, self._run.forward_fn)[weight]

    @torch.no_grad()
    def select(self, group: str, selection: Selection, slack: float) -> Tensor:
        """The Lasso's choice: bool (num_channels,)."""
        sites = find_sites(self.small, self.example, self._run.forward_fn)
        chosen, _ = fittable(self.small, sites)
        reads = self._reads[group]
        problems = [
            self._problem(site, self._now_at(site.weight, reads[site.weight].positions))
            for site in chosen
            if site.weight in reads
        ]
        return _lasso(problems, len(self._plan.keep[group]), self.count(group), selection, slack)

    def _problem(self, site: Site, positions: Tensor) -> Problem:
        tensors = dict(named_tensors(self.small))
        fitting, held = gather(self.small, self.original, site, self.record)
        groups = fitting.xx.shape[0]
        weight = tensors[site.weight].detach()
        weight = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        bias = tensors[site.bias] if site.bias is not None else weight.new_zeros(weight.shape[:2])
        return fitting.plus(held), weight, bias.detach().reshape(weight.shape[:2]), positions

    @torch.no_grad()
    def sample(self, weight: str, share: float, selection: Selection, slack: float) -> None:
        """Let the layer read that share of its inputs, by a Lasso for it alone."""
        inputs = dict(named_tensors(self.small))[weight].shape[1]
        count = max(1, round(share * inputs))
        if count == inputs:
            return
        problem = self._problem(self.site(weight), torch.arange(inputs).unsqueeze(1))
        keep = _lasso([problem], inputs, count, "lasso" if isinstance(selection, Scores) else selection, slack)
        left = self.record.kept.get(weight, {}).get(1, torch.arange(inputs))
        self.sampled[weight] = left[keep]
        self._rebuild()

    @torch.no_grad()
    def without_unsampled(self) -> nn.Module:
        """The full-size network with zeros in the weights of inputs that a layer doesn't read any more."""
        silent = copy.deepcopy(self.model)
        for name, tensor in named_tensors(silent):
            if name in self.sampled:
                gone = torch.ones(tensor.shape[1], dtype=torch.bool)
                gone[self.sampled[name]] = False
                tensor[:, gone.to(tensor.device)] = 0
        return silent

    def _now_at(self, weight: str, positions: Tensor) -> Tensor:
        """Where these inputs of the full-size weight are in the small network's."""
        kept = self.record.kept.get(weight, {}).get(1)
        if kept is None:
            return positions
        return torch.searchsorted(kept, positions)  # none of them is removed yet

    @torch.no_grad()
    def write_back(self, weight: str) -> None:
        """Put a layer of the small network, as it is now, into the full-size one."""
        now, full = dict(named_tensors(self.small)), dict(named_tensors(self.model))
        site = self.site(weight)
        for name in dict.fromkeys((weight, *(outlet.parameter for outlet in site.layer.outlets))):
            put_at(full[name], now[name], self.record.kept.get(name, {}))


def put_at(tensor: Tensor, values: Tensor, axes: Mapping[int, Tensor]) -> None:
    """Write ``values`` into the entries of ``tensor`` that ``axes`` (axis -> indices kept) left of it, in place."""
    if values is tensor:
        return
    index = [axes.get(axis, torch.arange(size)).to(tensor.device) for axis, size in enumerate(tensor.shape)]
    tensor[torch.meshgrid(*index, indexing="ij")] = values
