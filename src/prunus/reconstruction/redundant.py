"""Which channels a network doesn't need: constants, channels that nothing reads, and repetitions of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prunus.errors import NothingPruned, VerificationFailed
from prunus.graph.group_view import GroupView
from prunus.graph.labels import named_tensors
from prunus.reconstruction.reading_layers import ReadingLayer
from prunus.types import ChannelGraph, ChannelGroup, GroupMember, PruningPlan

Kind = Literal["constants", "unread", "duplicates"]


@dataclass(frozen=True, eq=False)
class _Found:
    """Of one group: which channels are constant or unread and can go, and for every channel the one that it repeats (or itself);
    ``reads``: what the constants are, by reading weight and index of its input."""

    constants: Tensor
    unread: Tensor
    repeats: Tensor
    reads: tuple[tuple[str, Tensor, Tensor], ...]
    members: tuple[GroupMember, ...]

    @property
    def duplicates(self) -> Tensor:
        return self.repeats != torch.arange(len(self.repeats))

    @property
    def gone(self) -> Tensor:
        return self.constants | self.unread | self.duplicates


@dataclass(frozen=True, eq=False)
class Redundant:
    """Redundant channels by group, and ``not_lossless``: group -> how many more there are, and why they stay."""

    by_group: Mapping[str, _Found]
    not_lossless: Mapping[str, str]
    widths: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def plan(self, graph: ChannelGraph) -> PruningPlan:
        """The plan that removes them from the groups that ``graph`` lets be pruned.

        Raises:
            NothingPruned: there are none.
            VerificationFailed: there are, but none that could be proven.
        """
        prunable = {group.name for group in graph.prunable}
        keep = {name: ~found.gone for name, found in self.by_group.items() if name in prunable}
        if not keep and self.by_group:
            found = "; ".join(f"`{group.name}`: {group.frozen_because}" for group in graph.frozen if group.name in self.by_group)
            raise VerificationFailed(f"none of the redundant channels could be removed with proof: {found}")
        if not keep:
            stay = "; ".join(f"`{name}`: {why}" for name, why in self.not_lossless.items())
            text = f"channels stay that could only go with a loss: {stay}" if stay else "no channel is redundant"
            text = "; ".join([text, *self.notes])
            raise NothingPruned(f"nothing can be pruned without loss: {text}. Prune to a budget with `prunus.prune` instead")
        plan = PruningPlan(keep, graph.cost(), {"criterion": "lossless"})
        return PruningPlan(keep, graph.cost(plan), plan.provenance)

    def counts(self, kind: Kind, plan: PruningPlan) -> dict[str, int]:
        """Channels of this kind that the plan removes, by group."""
        found = {name: int(getattr(self.by_group[name], kind).sum()) for name in plan.keep}
        return {name: number for name, number in found.items() if number}

    def constants_read(self, plan: PruningPlan) -> dict[str, Tensor]:
        """Reading weight -> (its inputs,): the constants that the plan removes, zero elsewhere."""
        reads = {name: torch.zeros(width, dtype=torch.float64) for name, width in self.widths.items()}
        for group in plan.keep:
            for weight, along, values in self.by_group[group].reads:
                reads[weight][along] = values
        return reads

    @torch.no_grad()
    def merge(self, tensors: Mapping[str, Tensor], plan: PruningPlan) -> list[str]:
        """Add, in place, the reading slices of duplicates to those of the channels they repeat; names of what changed."""
        changed: dict[str, None] = {}
        for group in plan.keep:
            found = self.by_group[group]
            twice = found.duplicates.nonzero().squeeze(1)
            for member in found.members if len(twice) else ():
                where = member.parameter_axis
                weight = tensors[where.parameter]
                source, target = (member.positions[c].reshape(-1).to(weight.device) for c in (twice, found.repeats[twice]))
                weight.index_add_(where.axis, target, weight.index_select(where.axis, source))
                changed[where.parameter] = None
        return list(changed)


def find_redundant(
    model: nn.Module, graph: ChannelGraph, known: Mapping[str, Tensor], layers: Mapping[str, ReadingLayer]
) -> Redundant:
    """Look through all prunable groups. ``known``: what `known_values` found; ``layers``: what reads, see `ReadingLayers`.

    Groups over which statistics are computed (mixing), and those that something else than plain convolutions and linear layers
    reads, are passed over, with a remark if they would have had duplicates.
    """
    tensors = dict(named_tensors(model))
    by_group: dict[str, _Found] = {}
    not_lossless: dict[str, str] = {}
    for group in graph.prunable:
        members = tuple(group.with_role("reads"))
        if not members:
            continue
        repeats = _repeats(group, tensors)
        unknown = [m.parameter_axis.parameter for m in members if not _is_plain(m, layers, known)]
        if group.mixing or unknown:
            number = int((repeats != torch.arange(len(repeats))).sum())
            why = "statistics are computed over the channels" if group.mixing else f"`{unknown[0]}` reads them in another way"
            if number:
                not_lossless[group.name] = f"{number} duplicates: {why}"
            continue
        found, why = _of_group(group, members, tensors, known, layers, repeats)
        if why:
            not_lossless[group.name] = why
        if bool(found.gone.all()) and group.name not in graph.emptiable:
            found = _with_one_left(found)
        if bool(found.gone.any()):
            by_group[group.name] = found
    return Redundant(by_group, not_lossless, {name: layer.width for name, layer in layers.items()})


def _is_plain(member: GroupMember, layers: Mapping[str, ReadingLayer], known: Mapping[str, Tensor]) -> bool:
    where = member.parameter_axis
    return where.parameter in layers and where.parameter in known and layers[where.parameter].axis == where.axis


def _of_group(
    group: ChannelGroup,
    members: tuple[GroupMember, ...],
    tensors: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
    layers: Mapping[str, ReadingLayer],
    repeats: Tensor,
) -> tuple[_Found, str]:
    """What is redundant in one group, and in words what is and has to stay."""
    constant, free, unread = (torch.ones(group.num_channels, dtype=torch.bool) for _ in range(3))
    itself = torch.arange(group.num_channels)
    reads: list[tuple[str, Tensor, Tensor]] = []
    blocking: dict[str, str] = {}
    for member in members:
        name = member.parameter_axis.parameter
        layer, weight = layers[name], tensors[name]
        along = _along(member, layer, weight)
        silent = _unread(weight, layer)[along]
        values = torch.where(silent, 0.0, known[name].double().cpu()[along])
        foldable = (values == 0) | (values.isfinite() & bool(layer.outlets and layer.uniform))
        constant &= values.isfinite().all(1)
        free &= foldable.all(1)
        unread &= silent.all(1)
        reads.append((name, along, values))
        if not bool(foldable[values.isfinite().all(1)].all()):
            blocking[name] = layer.why or "pads with zeros (or is transposed), so that what it makes of a constant varies"
    gone = constant & free
    repeats = torch.where(gone | gone[repeats], itself, repeats)  # constants go as such, not as duplicates
    stays = int((constant & ~free & (repeats == itself)).sum())
    why = "; ".join(f"`{name}` {why}" for name, why in blocking.items())
    kept = tuple((name, along[gone], values[gone]) for name, along, values in reads)
    return _Found(gone & ~unread, unread, repeats, kept, members), f"{stays} constant channels: {why}" if stays else ""


def _along(member: GroupMember, layer: ReadingLayer, weight: Tensor) -> Tensor:
    """Indices of the layer's inputs that belong to each channel, in every group of a convolution: int64 (num_channels, n)."""
    length = weight.shape[layer.axis]
    starts = torch.arange(0, layer.width, length).view(1, -1, 1)
    return (starts + member.positions.unsqueeze(1)).flatten(1)


def _unread(weight: Tensor, layer: ReadingLayer) -> Tensor:
    """Which inputs of the layer meet only zeros: bool (inputs,)."""
    length = weight.shape[layer.axis]
    zeros = (weight.detach() == 0).movedim(layer.axis, 0)  # of a grouped convolution, each group has its own rows
    return zeros.reshape(length, layer.width // length, -1).all(2).t().reshape(-1).cpu()


def _repeats(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    """For every channel the first one with exactly the same slices in all members but the reading ones: int64 (num_channels,)."""
    view = GroupView(group, tensors)
    members = group.with_role("writes", "scales", "statistics")
    rows = torch.cat([view.matrix(member).double().cpu() for member in members], dim=1)
    _, inverse = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(rows),), len(rows), dtype=torch.int64)
    first.scatter_reduce_(0, inverse, torch.arange(len(rows)), "amin")
    return first[inverse]


def _with_one_left(found: _Found) -> _Found:
    """The same, with the first channel kept: no way leads around the group."""
    constants, unread = found.constants.clone(), found.unread.clone()
    constants[0] = unread[0] = False
    gone = constants | unread
    removed = (found.constants | found.unread).nonzero().squeeze(1)
    left = gone[removed]
    reads = tuple((name, along[left], values[left]) for name, along, values in found.reads)
    return _Found(constants, unread, found.repeats, reads, found.members)
