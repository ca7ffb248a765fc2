"""Input selection for pre-activation networks: norms at the head of a branch become narrower than the stream that they read."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from prunus.errors import UnsupportedNetwork
from prunus.graph import trace
from prunus.graph.build import fingerprint
from prunus.graph.selecting_norms import SelectingNorm, selecting
from prunus.graph.trace import Keep
from prunus.surgery.record import SelectEdit, SurgeryRecord, current_versions
from prunus.types import ChannelGraph, ExampleInputs, ForwardFn


def select_streams(
    model: nn.Module,
    record: SurgeryRecord,
    example_inputs: ExampleInputs,
    *,
    keep: Keep = (),
    forward_fn: ForwardFn | None = None,
) -> SurgeryRecord:
    """Let every batch norm at the head of a branch choose which channels of its stream it reads, in place: all of them, at first.

    In pre-activation networks (stream -> norm -> activation -> convolution; He et al., ECCV 2016) and where features are
    concatenated (DenseNet), the stream that such a norm reads has other readers and can't be narrowed for this one. Network
    Slimming (Liu et al., ICCV 2017) puts an index behind the norm; here it stands in front, so that the norm gets narrower, too.
    From now on the norm's channels are a channel group of their own, named after the norm, for any criterion and method: removing
    one takes it from the selection, the norm and the layers behind it. The stream keeps its channels, which are counted.

    Args:
        record: the surgery that ``model`` has been through (`SurgeryRecord.nothing_removed` for none).
        keep: as in `prunus.trace`: norms that are kept read all channels.

    Returns:
        The record that has the selections, too, so that `prunus.load` makes them in a fresh network.

    Raises:
        UnsupportedNetwork: no batch norm reads a stream in front of layers of its own.
    """
    before = fingerprint(model)
    names = _of_shared_channels(model, trace(model, example_inputs, keep, forward_fn=forward_fn))
    while names:
        trial = copy.deepcopy(model)
        _select_all(trial, names)
        own = _with_own_channels(trace(trial, example_inputs, keep, forward_fn=forward_fn), names)
        if own == names:
            break
        names = own
    if not names:
        raise UnsupportedNetwork(
            "no batch norm of this network can select its inputs: none reads channels that other layers read, too, and hands "
            "them to convolutions or linear layers alone. Inputs are selected in pre-activation networks (a stream, then norm, "
            "activation and convolution); in others prune without (select_inputs = false)"
        )
    _select_all(model, names)
    edits = [SelectEdit(name, torch.arange(norm_width(model.get_submodule(name)))) for name in names]
    return record.compose(SurgeryRecord(before, tuple(edits), current_versions()))


def _of_shared_channels(model: nn.Module, graph: ChannelGraph) -> list[str]:
    """Batch norms on channels that other norms or writers act on as well, or that can't change."""
    modules = dict(model.named_modules())
    names = {norm.scale: norm.scale.removesuffix(".weight") for norm in graph.norms if norm.kind == "batch_norm" and norm.scale}
    found: dict[str, None] = {}
    for group in graph.groups:
        scales = {m.parameter_axis.parameter for m in group.with_role("scales")} & names.keys()
        writers = {m.parameter_axis.parameter.rpartition(".")[0] for m in group.with_role("writes")}
        if len(scales) > 1 or len(writers) > 1 or group.frozen_because is not None:
            found |= dict.fromkeys(names[scale] for scale in sorted(scales))
    return [name for name in modules if name in found and _may_select(modules[name])]


def _may_select(module: nn.Module) -> bool:
    return why_no_selection(module) is None and not isinstance(module, SelectingNorm)


def _with_own_channels(graph: ChannelGraph, names: Sequence[str]) -> list[str]:
    """Those selecting norms whose channels nothing else writes, and that may lose some."""
    own: set[str] = set()
    for group in graph.prunable:
        writers = {m.parameter_axis.parameter for m in group.with_role("writes")}
        own |= {name for name in names if writers == {f"{name}.selected"} and group.with_role("reads")}
    return [name for name in names if name in own]


def why_no_selection(layer: nn.Module) -> str | None:
    """Why a norm can't be made to select its channels, or None."""
    if not is_batch_norm(layer):
        return f"a {type(layer).__name__} isn't a batch norm"
    return None if layer.affine else "it has no scales"


def give_norm_selection(norm: nn.Module, selected: torch.Tensor) -> None:
    """Let the batch norm read these channels, in place; its own width is that of the selection already."""
    if not isinstance(norm, SelectingNorm):
        norm.__class__ = selecting(type(norm))
    norm.register_buffer("selected", selected.to(next(norm.parameters()).device).clone())


def _select_all(model: nn.Module, names: Sequence[str]) -> None:
    for norm in map(model.get_submodule, names):
        give_norm_selection(norm, torch.arange(norm_width(norm)))


def is_batch_norm(layer: object) -> TypeGuard[_BatchNorm]:
    """PyTorch's or one made from it, as timm's are."""
    return isinstance(layer, _BatchNorm)


def norm_width(norm: nn.Module) -> int:
    """The channels of a norm that has scales."""
    return len(next(norm.parameters()))
