"""Removal: a new network in which the planned channels no longer exist."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ArtifactError, NothingPruned, UnknownName, UnsupportedNetwork
from prunus.graph.build import fingerprint
from prunus.graph.labels import named_tensors
from prunus.surgery.added_bias import give_bias, why_no_bias
from prunus.surgery.emptied import replace_emptied
from prunus.surgery.record import AttributeEdit, BiasEdit, IndexEdit, SelectEdit, SliceEdit, SurgeryRecord, current_versions
from prunus.surgery.repair import attribute_edits, fits, index_edits, set_attribute
from prunus.surgery.replaced import ReplaceEdit, replace_layers, why_not_replaceable
from prunus.surgery.selected_inputs import give_selection, why_not_selectable
from prunus.surgery.selected_norms import is_batch_norm
from prunus.types import ChannelGraph, PruningPlan
from prunus.wrapping import refuse_wrapped


def remove(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    optimizer: torch.optim.Optimizer | None = None,
    ema: nn.Module | None = None,
) -> tuple[nn.Module, SurgeryRecord]:
    """Build the small network that ``plan`` leaves; ``model`` is untouched.

    Module classes, hooks, flags and shared parameters survive; attributes such as ``out_channels`` follow the new shapes.

    Args:
        optimizer: an optimizer over ``model``'s parameters; it is moved in place to the small network's, its state sliced along.
        ema: a module that holds averaged copies under the same names (a plain copy or `torch.optim.swa_utils.AveragedModel`);
            sliced in place.

    Raises:
        NothingPruned: the plan removes no channel.
        UnknownName: the plan names a group that the graph doesn't have, or one that is frozen.
        UnsupportedNetwork: the model isn't the one that was traced, is wrapped or divided (DDP, FSDP), or the
            optimizer isn't over its parameters.
    """
    record = plan_to_record(model, graph, plan)
    return _rebuild(model, record, optimizer, ema), record


def plan_to_record(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> SurgeryRecord:
    """The edits that carry out ``plan``; see `remove` for what is raised."""
    refuse_wrapped(model)
    if fingerprint(model) != graph.fingerprint:
        raise UnsupportedNetwork("the model's parameters don't have the names and shapes of the traced one: trace it again")
    if plan.num_removed == 0:
        raise NothingPruned("the plan removes no channel: lower the budget, or see `graph.frozen` for what can't be pruned")
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    slices: list[SliceEdit] = []
    for (name, axis), gone in removed_positions(graph, plan).items():
        kept = torch.ones(shapes[name][axis], dtype=torch.bool)
        kept[gone] = False
        slices.append(SliceEdit(name, axis, kept.nonzero().squeeze(1), len(kept)))
    attributes = attribute_edits(model, slices, graph.held, plan)
    return SurgeryRecord(graph.fingerprint, (*slices, *attributes, *index_edits(model, graph, plan)), current_versions())


def removed_positions(graph: ChannelGraph, plan: PruningPlan, roles: tuple[str, ...] = ()) -> dict[tuple[str, int], Tensor]:
    """(parameter, axis) -> indices that the plan removes, over members with one of ``roles`` (none: all)."""
    groups = {group.name: group for group in graph.groups}
    found: dict[tuple[str, int], list[Tensor]] = {}
    for name, keep in plan.keep.items():
        if name not in groups:
            raise UnknownName.among("group in the plan", name, groups)
        group = groups[name]
        if bool(keep.all()):
            continue
        if group.frozen_because is not None:
            raise UnknownName(f"the plan prunes group `{name}`, which is frozen: {group.frozen_because}")
        if len(keep) != group.num_channels or not (bool(keep.any()) or name in graph.emptiable):
            raise UnsupportedNetwork(
                f"the plan for group `{name}` must keep at least one of its {group.num_channels} channels: "
                "no other way leads around it"
            )
        for member in group.members:
            where = member.parameter_axis
            if not roles or where.role in roles:
                found.setdefault((where.parameter, where.axis), []).append(member.positions[~keep.cpu()].reshape(-1))
    return {key: torch.unique(torch.cat(parts)) for key, parts in found.items()}


def apply_record(model: nn.Module, record: SurgeryRecord) -> nn.Module:
    """Repeat a surgery on a network of the same architecture; ``model`` is untouched.

    Layers that were put in the place of others have weights of zero: `load` fills them.

    Raises:
        ArtifactError: the architecture is another one.
        UnsupportedNetwork: the network is wrapped or divided (DDP, FSDP).
    """
    refuse_wrapped(model)
    try:
        return _replay(model, record)
    except ArtifactError:
        raise
    except Exception as error:  # a record that somebody made up can go wrong anywhere in a network's own code
        raise ArtifactError(f"the record can't be carried out on this network: {type(error).__name__}: {error}") from error


def _replay(model: nn.Module, record: SurgeryRecord) -> nn.Module:
    first, *later = record.stages()
    problem = _misfit(model, first)
    if problem is None and fingerprint(model) != record.fingerprint:
        problem = "names or shapes of parameters differ; build the full-size network it was made from"
    if problem is not None:
        raise ArtifactError(f"the record is of another architecture: {problem}")
    small = _rebuild(model, first, None, None)
    for stage in later:
        problem = next((why for edit in stage.replacements if (why := why_not_replaceable(small, edit)) is not None), None)
        if problem is None:
            small = replace_layers(small, stage.replacements)
            problem = _misfit(small, stage)
        if problem is not None:
            raise ArtifactError(f"the record is of another architecture: {problem}")
        small = _rebuild(small, stage, None, None)
    return small


def _misfit(model: nn.Module, record: SurgeryRecord) -> str | None:
    """The first edit that this network can't take, in words."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    modules = dict(model.named_modules(remove_duplicate=False))
    shapes |= {f"{name}.selected": (len(v),) for name, v in record.selections.items() if is_batch_norm(modules.get(name))}
    sliced: set[tuple[str, int]] = set()
    for edit in record.edits:
        if isinstance(edit, AttributeEdit):
            old = getattr(modules.get(edit.module), edit.attribute, None)
            if not fits(old, edit.value):
                return f"it sets `{edit.module}.{edit.attribute}` to {edit.value}, here it is {str(old)[:80]}"
        elif isinstance(edit, IndexEdit):
            shape = shapes.get(edit.buffer, ())
            if len(shape) != 1 or shape[0] < len(edit.values):
                return f"it sets the buffer `{edit.buffer}` to {len(edit.values)} channel numbers, here its shape is {shape}"
        elif isinstance(edit, BiasEdit):
            if edit.layer not in modules:
                return f"it gives the layer `{edit.layer}` a bias, and there is none of that name"
            if (why := why_no_bias(modules[edit.layer])) is not None:
                return f"it gives the layer `{edit.layer}` a bias, but {why}"
        elif isinstance(edit, SelectEdit):
            if edit.layer not in modules:
                return f"it selects the inputs of the layer `{edit.layer}`, and there is none of that name"
            if (why := why_not_selectable(modules[edit.layer], edit, record.kept)) is not None:
                return f"it selects {why}"
        elif isinstance(edit, ReplaceEdit):
            continue
        elif edit.parameter not in shapes:
            return f"this network has no `{edit.parameter}`"
        elif edit.axis >= len(shapes[edit.parameter]) or shapes[edit.parameter][edit.axis] != edit.size:
            return f"`{edit.parameter}` should have {edit.size} entries on axis {edit.axis}, here it is {shapes[edit.parameter]}"
        elif (edit.parameter, edit.axis) in sliced:
            return f"it slices axis {edit.axis} of `{edit.parameter}` twice"
        else:
            sliced.add((edit.parameter, edit.axis))
    return None


def _rebuild(
    model: nn.Module, record: SurgeryRecord, optimizer: torch.optim.Optimizer | None, ema: nn.Module | None
) -> nn.Module:
    kept, indices = record.kept, record.indices
    averaged = None if ema is None else _averaged(ema, model)  # refused before anything has moved
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            memo[id(tensor)] = _copy_tensor(tensor, kept.get(name, {}))
            if name in indices:
                memo[id(tensor)] = indices[name].to(tensor)
    moved = {id(tensor): memo[id(tensor)] for _, tensor in named_tensors(model)}
    small = copy.deepcopy(model, memo)  # deepcopy meets the new tensors in its memo, so that nothing is copied at full size
    for path, values in record.attributes.items():
        module = small.get_submodule(path)
        for attribute, value in values.items():
            set_attribute(module, attribute, value)
    for layer in record.biases:
        give_bias(small.get_submodule(layer))
    for layer, values in record.selections.items():
        left = kept.get(f"{layer}.selected", {}).get(0)
        give_selection(small.get_submodule(layer), values if left is None else values[left])
    replace_emptied(small)
    if optimizer is not None:
        _move_optimizer(optimizer, model, moved, kept)
    if averaged is not None:
        _slice_ema(averaged, record)
    return small


def _slice(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    layout = (
        torch.channels_last
        if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
    result = tensor.detach()
    for axis, index in axes.items():
        result = result.index_select(axis, index.to(tensor.device))
    return result.contiguous(memory_format=layout) if axes else result.clone()


def _copy_tensor(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    values = _slice(tensor, axes)
    if not isinstance(tensor, nn.Parameter):
        return values.requires_grad_(tensor.requires_grad)
    parameter = type(tensor)(values, tensor.requires_grad)
    vars(parameter).update(vars(tensor))
    parameter.requires_grad_(tensor.is_floating_point() or tensor.is_complex())  # hooks can't be added to a frozen parameter
    for hook in (getattr(tensor, "_backward_hooks", None) or {}).values():
        parameter.register_hook(hook)
    for hook in (getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values():
        parameter.register_post_accumulate_grad_hook(hook)
    return parameter.requires_grad_(tensor.requires_grad)


# -- training state that goes along


def _move_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, moved: Mapping[int, Tensor], kept: Mapping[str, Mapping[int, Tensor]]
) -> None:
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if any(id(p) not in moved for p in held):
        raise UnsupportedNetwork(
            "the optimizer holds parameters that aren't the model's: give the optimizer that trains this model"
        )
    states: dict[int, dict[str, Any]] = {}
    for parameter in held:
        axes = kept.get(names[id(parameter)], {})
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if axes and isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise UnsupportedNetwork(
                    f"optimizer state {key!r} of `{names[id(parameter)]}` isn't shaped like it and can't be sliced: "
                    "make a new optimizer"
                )
        states[id(parameter)] = {
            k: _slice(v, axes) if isinstance(v, Tensor) and v.shape == parameter.shape else v for k, v in state.items()
        }
    for group in optimizer.param_groups:
        group["params"] = [moved[id(p)] for p in group["params"]]
    optimizer.state.clear()
    for parameter in held:
        if states[id(parameter)]:
            optimizer.state[moved[id(parameter)]] = states[id(parameter)]


def averaged_copy(ema: nn.Module) -> nn.Module:
    """The module that holds the averages."""
    return ema.module if isinstance(ema, torch.optim.swa_utils.AveragedModel) else ema


def _averaged(ema: nn.Module, model: nn.Module) -> nn.Module:
    """`averaged_copy`, once it is known to match ``model``."""
    inner = averaged_copy(ema)
    if fingerprint(inner) != fingerprint(model):
        raise UnsupportedNetwork("the averaged model (ema) doesn't have the names and shapes of the model's parameters")
    return inner


def _slice_ema(averaged: nn.Module, record: SurgeryRecord) -> None:
    tensors = dict(named_tensors(averaged))
    with torch.no_grad():
        for name, axes in record.kept.items():
            tensors[name].data = _slice(tensors[name], axes)
        for name, values in record.indices.items():
            tensors[name].data = values.to(tensors[name])
    for path, values in record.attributes.items():
        for attribute, value in values.items():
            set_attribute(averaged.get_submodule(path), attribute, value)
    replace_emptied(averaged)
