"""A bias for a layer that was built without one: what stands in for removed channels must have a place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import UnknownName, UnsupportedNetwork
from prunus.graph.branches import CONVOLUTIONS
from prunus.surgery.emptied import EmptiedConvolution
from prunus.surgery.record import BiasEdit, SurgeryRecord
from prunus.surgery.selected_inputs import SELECTING

_LAYERS: tuple[type[nn.Module], ...] = (*SELECTING.values(), *CONVOLUTIONS, nn.Linear, EmptiedConvolution)


def add_bias(model: nn.Module, record: SurgeryRecord, layers: str | Iterable[str]) -> SurgeryRecord:
    """Give convolutions and linear layers of ``model`` that have no bias one of zeros, in place.

    The outputs stay the same. ``layers`` are module names; ``record`` is the surgery that ``model`` has been through
    (`SurgeryRecord.nothing_removed` for none). The bias is the last thing that replaying adds, at the width that is left then.

    Returns:
        The record that has these biases, too, so that `prunus.load` gives them to a fresh network.

    Raises:
        UnknownName: the network has no such module.
        UnsupportedNetwork: a layer has a bias, or isn't a layer that would add one. Nothing has been changed then.
    """
    modules = dict(model.named_modules())
    first = {name: next(n for n, m in modules.items() if m is module) for name, module in _all_names(model).items()}
    wanted = [layers] if isinstance(layers, str) else list(layers)
    for name in wanted:
        if name not in first:
            raise UnknownName.among("layer", name, modules)
        if (why := why_no_bias(modules[first[name]])) is not None:
            raise UnsupportedNetwork(f"`{name}` can't be given a bias: {why}")
    names = tuple(dict.fromkeys(first[name] for name in wanted))
    for name in names:
        give_bias(modules[name])
    return SurgeryRecord(record.fingerprint, (*record.edits, *map(BiasEdit, names)), record.versions)


def why_no_bias(layer: nn.Module) -> str | None:
    """Why a bias can't be added, or None where it can."""
    kind = next((kind for kind in _LAYERS if isinstance(layer, kind)), None)
    if kind is None or type(layer).forward is not kind.forward:
        return f"a {type(layer).__name__} isn't a convolution or linear layer of PyTorch's own, which would add it"
    if getattr(layer, "bias", None) is not None:
        return "it has one"
    return None


def give_bias(layer: Any) -> None:
    """Give ``layer`` a bias of zeros, one for each output, in place."""
    weight: Tensor = layer.weight
    transposed = getattr(layer, "transposed", False)
    outputs = weight.shape[1] * layer.groups if transposed else weight.shape[0]
    layer.bias = nn.Parameter(torch.zeros(outputs, dtype=weight.dtype, device=weight.device), weight.requires_grad)


def _all_names(model: nn.Module) -> dict[str, nn.Module]:
    """Every name of every module; a shared one has several."""
    return dict(model.named_modules(remove_duplicate=False))
