"""Masks of whole channels: from a pruning plan, and back to one, so that masked channels can really be removed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.errors import NothingPruned, UnsupportedNetwork
from prunus.tickets.masks import Masks, dense_masks
from prunus.types import ChannelGraph, ChannelGroup, PruningPlan


def masks_of_plan(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> Masks:
    """Masks of everything that writes or reads a channel which ``plan`` removes: the network computes as without it.

    Parameters of one dimension (biases, norms) have no mask: a masked channel may still hold a constant, which nobody reads.
    """
    masks = {name: mask.clone() for name, mask in dense_masks(model).by_name.items()}
    for name, keep in plan.keep.items():
        for member in graph[name].with_role("writes", "reads"):
            mask = masks.get(member.parameter_axis.parameter)
            if mask is not None:
                gone = member.positions[~keep.cpu()].reshape(-1).to(mask.device)
                mask.index_fill_(member.parameter_axis.axis, gone, False)
    return Masks(masks)


def plan_of_masks(model: nn.Module, graph: ChannelGraph, masks: Masks) -> PruningPlan:
    """The channels that no weight reads any more, as a plan for `prunus.remove`, which then changes no output.

    A channel goes where all weights that *read* it are masked and zero: with its own filter masked only, a norm behind it
    still emits its shift. Every group keeps one channel at least.

    Raises:
        NothingPruned: every channel is still read by some weight (unstructured masks), or belongs to a frozen group.
        UnsupportedNetwork: a masked weight isn't zero, so that removal would change the network.
    """
    weights = dict(model.named_parameters())
    moved = [name for name, mask in masks.by_name.items() if bool(weights[name].detach()[~mask].any())]
    if moved:
        raise UnsupportedNetwork(f"masked weights of `{moved[0]}` aren't zero: take masks off with remove_masks, held at zero")
    keep: dict[str, Tensor] = {}
    for group in graph.prunable:
        read = _read(group, masks)
        if not group.mixing and read is not None and not bool(read.all()):
            read[0] |= not bool(read.any())
            keep[group.name] = read
    if not any(bool((~mask).any()) for mask in keep.values()):
        raise NothingPruned("the masks leave no channel unread, so that none can be removed as a whole: mask whole channels")
    counts = {name: int(mask.sum()) for name, mask in keep.items()}
    return PruningPlan(keep, graph.cost_model.cost(counts), {"masks": masks.density})


def _read(group: ChannelGroup, masks: Masks) -> Tensor | None:
    """Whether each channel is read by a weight that stays: bool (num_channels,); None where nothing reads the group."""
    readers = group.with_role("reads")
    if not readers:
        return None
    read = torch.zeros(group.num_channels, dtype=torch.bool)
    for member in readers:
        where = member.parameter_axis
        mask = masks.by_name.get(where.parameter)
        if mask is None:
            return torch.ones_like(read)
        along = mask.cpu().movedim(where.axis, 0).flatten(1).any(1)
        read |= along[member.positions].any(1)
    return read
