"""A layer that reads some of its input's channels only, while other layers go on to read them all: an index in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunus.errors import UnknownName, UnsupportedNetwork
from prunus.graph.build import fingerprint
from prunus.surgery.record import AttributeEdit, Edit, SelectEdit, SliceEdit, SurgeryRecord, current_versions
from prunus.surgery.selected_norms import give_norm_selection, is_batch_norm, norm_width, why_no_selection

_Layer = nn.Module if TYPE_CHECKING else object


class SelectedInputs(_Layer):
    """What a selecting layer adds to its PyTorch layer: a saved buffer ``selected`` of the channels that it reads (int64)."""

    selected: Tensor
    channel_axis = 1

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output for the selected channels of its input."""
        return super().forward(input.index_select(self.channel_axis, self.selected))


class SelectingConv1d(SelectedInputs, nn.Conv1d):
    """`nn.Conv1d` on selected channels of its input."""


class SelectingConv2d(SelectedInputs, nn.Conv2d):
    """`nn.Conv2d` on selected channels of its input."""


class SelectingConv3d(SelectedInputs, nn.Conv3d):
    """`nn.Conv3d` on selected channels of its input."""


class SelectingLinear(SelectedInputs, nn.Linear):
    """`nn.Linear` on selected features of its input."""

    channel_axis = -1


SELECTING: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: SelectingConv1d,
    nn.Conv2d: SelectingConv2d,
    nn.Conv3d: SelectingConv3d,
    nn.Linear: SelectingLinear,
}


@torch.no_grad()
def select_inputs(model: nn.Module, record: SurgeryRecord, kept: Mapping[str, Tensor]) -> SurgeryRecord:
    """Let layers of ``model`` read only some of their input channels, in place; what they read is computed as before.

    That is how a convolution at the head of a residual branch gets fewer inputs than the stream has channels (the sampler of He
    et al., ICCV 2017, section 3.3). Outputs are those of the layers with zeros in the weights of the channels left out. The
    layers keep their names and get a buffer ``selected``, which later pruning of the stream renumbers; their weights are new,
    smaller parameters, so that an optimizer has to be made anew.

    Args:
        record: the surgery that ``model`` has been through (`SurgeryRecord.nothing_removed` for none).
        kept: module name of a convolution without groups or a linear layer -> inputs that stay, counted among those that it
            reads now: int64, ascending.

    Returns:
        The record that has the selections, too, so that `prunus.load` makes them in a fresh network.

    Raises:
        UnknownName: the network has no such module.
        UnsupportedNetwork: a layer isn't of PyTorch's own, has groups, or the inputs aren't ascending numbers of some of its own.
            Nothing has been changed then.
    """
    modules = dict(model.named_modules())
    for name, inputs in kept.items():
        if name not in modules:
            raise UnknownName.among("layer", name, modules)
        if (why := why_not_selecting(modules[name])) is not None:
            raise UnsupportedNetwork(f"`{name}` can't select its inputs: {why}")
        _check_inputs(name, inputs, modules[name])
    edits: list[Edit] = []
    before = fingerprint(model)
    for name, inputs in kept.items():
        layer: Any = modules[name]
        inputs = inputs.to(torch.int64).cpu()
        width = "in_features" if layer.weight.ndim == 2 else "in_channels"
        channels = layer.selected.cpu()[inputs] if type(layer) in SELECTING.values() else inputs
        edits.append(SliceEdit(f"{name}.weight", 1, inputs, layer.weight.shape[1]))
        edits.append(AttributeEdit(name, width, len(inputs)))
        edits.append(SelectEdit(name, channels))
        layer.weight = nn.Parameter(layer.weight[:, inputs.to(layer.weight.device)].contiguous(), layer.weight.requires_grad)
        setattr(layer, width, len(inputs))
        give_selection(layer, channels)
    return record.compose(SurgeryRecord(before, tuple(edits), current_versions()))


def why_not_selecting(layer: nn.Module) -> str | None:
    """Why a layer can't be made to select its inputs, or None."""
    if type(layer) not in (*SELECTING, *SELECTING.values()):
        return f"a {type(layer).__name__} isn't one of PyTorch's own convolutions or linear layers"
    groups = getattr(layer, "groups", 1)
    return None if groups == 1 else f"it has {groups} groups, each with inputs of its own"


def why_not_selectable(layer: nn.Module, edit: SelectEdit, kept: Mapping[str, Mapping[int, Tensor]]) -> str | None:
    """Why a record's selection doesn't fit this layer of a fresh network, in words, or None. ``kept``: the record's."""
    is_norm = is_batch_norm(layer)
    if (why := (why_no_selection if is_norm else why_not_selecting)(layer)) is not None:
        return f"the inputs of `{edit.layer}`, but {why}"
    if is_norm:
        if not torch.equal(edit.values, torch.arange(norm_width(layer))):
            return f"{len(edit.values)} inputs of `{edit.layer}`, and a norm's selection starts from all {norm_width(layer)}"
        buffer, weight = (kept.get(f"{edit.layer}.{name}", {}).get(0) for name in ("selected", "weight"))
        same = buffer is weight or (buffer is not None and weight is not None and torch.equal(buffer, weight))
        return None if same else f"inputs of `{edit.layer}`, whose weight isn't cut along"
    if len(edit.values) != len(kept.get(f"{edit.layer}.weight", {}).get(1, ())):
        return f"{len(edit.values)} inputs of `{edit.layer}`, whose weight isn't cut to as many"
    return None


def _check_inputs(name: str, inputs: Tensor, layer: Any) -> None:
    numbers, size = [int(n) for n in inputs.tolist()], layer.weight.shape[1]
    if not 0 < len(numbers) < size or sorted(set(numbers)) != numbers or not (numbers[0] >= 0 and numbers[-1] < size):
        raise UnsupportedNetwork(
            f"`{name}` reads {size} channels: give ascending numbers of some of them, 0 to {size - 1}, not {str(numbers)[:80]}"
        )


def give_selection(layer: Any, selected: Tensor) -> None:
    """Let the layer read these channels, in place; its weight and width are those of the selection already."""
    if type(layer) not in (*SELECTING, *SELECTING.values()):
        give_norm_selection(layer, selected)
        return
    if type(layer) in SELECTING:
        layer.__class__ = SELECTING[type(layer)]
    layer.register_buffer("selected", selected.to(layer.weight.device).clone())
