"""Masks of `torch.nn.utils.prune`: taken off a network, put on one, and whole filters that they mask as a plan for removal."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from prunus.errors import NothingPruned, UnknownName
from prunus.tickets.masks import Masks
from prunus.types import ChannelGraph, PruningPlan


def from_torch_masks(model: nn.Module) -> tuple[nn.Module, Masks]:
    """A copy of a network that `torch.nn.utils.prune` has masked, as an ordinary one, and its masks by parameter name.

    The copy has zeros where weights were masked and parameters of their own names, as after ``prune.remove``; ``model`` stays as
    it is. The masks serve `plan_of_filters`, `plan_of_masks` and `apply_masks`.

    Raises:
        NothingPruned: the network has no such masks.
    """
    masks = {_path(path, name): getattr(module, f"{name}_mask").detach().bool() for path, module, name in _masked(model)}
    if not masks:
        raise NothingPruned(f"{type(model).__name__} has no masks of torch.nn.utils.prune: mask it first, or call prunus.prune")
    # What the hooks compute isn't a leaf of the graph, which can't be copied; they compute it anew.
    computed = (getattr(module, name) for _, module, name in _masked(model))
    twin = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    for _, module, name in list(_masked(twin)):
        prune.remove(module, name)
    return twin, Masks(masks)


def to_torch_masks(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of the network with these masks as `torch.nn.utils.prune` has them: ``weight_orig``, ``weight_mask`` and a hook.

    With `masks_of_plan`, a pruning plan as masks. Parameters whose mask keeps everything get none.

    Raises:
        UnknownName: a mask is of no parameter of the network.
    """
    twin = copy.deepcopy(model)
    known = dict(twin.named_parameters(remove_duplicate=False))
    for name, mask in masks.by_name.items():
        if name not in known:
            raise UnknownName.among("parameter", name, known)
        path, _, own = name.rpartition(".")
        if not bool(mask.all()):
            prune.custom_from_mask(twin.get_submodule(path), own, mask.to(known[name].device))
    return twin


def plan_of_filters(model: nn.Module, graph: ChannelGraph, masks: Masks) -> PruningPlan:
    """The channels whose filters are masked as a whole (``prune.ln_structured`` with ``dim=0``) in every layer that writes them.

    A plan for `prunus.remove`. What such a channel still emits, the bias of its filter or the shift of a norm behind it, goes
    as well: that changes the outputs, unlike `plan_of_masks`; ``remove(..., compensate="mean")`` makes up for it. Every group
    keeps one channel at least; layers of a group that are masked differently (residual streams) lose the channels masked in all.

    Raises:
        NothingPruned: no channel is masked in all layers that write it, or only those of frozen groups.
    """
    weights, keep = dict(model.named_parameters(remove_duplicate=False)), dict[str, Tensor]()
    for group in graph.prunable:
        stays = torch.zeros(group.num_channels, dtype=torch.bool)
        for member in group.with_role("writes"):
            where = member.parameter_axis
            if weights[where.parameter].ndim < 2:  # a bias goes with its filter
                continue
            mask = masks.by_name.get(where.parameter)
            if mask is None:
                stays[:] = True
            else:
                stays |= mask.cpu().movedim(where.axis, 0).flatten(1).any(1)[member.positions].any(1)
        if not bool(stays.all()):
            stays[0] |= not bool(stays.any())
            keep[group.name] = stays
    if not any(bool((~mask).any()) for mask in keep.values()):
        raise NothingPruned(
            "no channel is masked in every layer that writes it, so that none can be removed as a whole: mask whole filters "
            "(dim=0), in all layers that a residual connection adds up"
        )
    counts = {name: int(mask.sum()) for name, mask in keep.items()}
    return PruningPlan(keep, graph.cost_model.cost(counts), {"masks": masks.density})


def _masked(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Path, module and parameter name of everything that is masked."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():  # pyright: ignore[reportPrivateUsage]
            if isinstance(hook, prune.BasePruningMethod):
                yield path, module, hook._tensor_name  # pyright: ignore[reportPrivateUsage]


def _path(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
