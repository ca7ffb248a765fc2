"""Which layers begin a residual branch, and how many of their inputs each of them keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn

from prunus.errors import InvalidBudget, UnknownName, UnsupportedNetwork
from prunus.surgery.selected_inputs import why_not_selecting
from prunus.types import ChannelGraph, Layer


def beginning_branches(graph: ChannelGraph) -> list[str]:
    """Layers that read what other layers read, too, and through other layers come back to a residual stream.

    A residual stream are channels that several layers write, because they are added. A layer that writes one itself (the
    projection of a shortcut, a branch of one layer) and depthwise convolutions begin no branch.
    """
    layers = {layer.name: layer for layer in graph.layers if layer.groups == 1}
    writers = Counter(channel for layer in layers.values() for channel in _channels(layer, "writes"))
    readers = Counter(channel for layer in layers.values() for channel in _channels(layer, "reads"))
    stream = {channel for channel, count in writers.items() if count > 1}
    found: list[str] = []
    for name, layer in layers.items():
        shared = any(c in writers and (readers[c] > 1 or c in stream) for c in _channels(layer, "reads"))
        if shared and not _channels(layer, "writes") & stream and _reaches(layer, list(layers.values()), stream):
            found.append(name)
    return found


def _channels(layer: Layer, axis: str) -> set[int]:
    return set(getattr(layer, axis).tolist()) - {-1}


def _reaches(start: Layer, layers: list[Layer], stream: set[int]) -> bool:
    """Whether what this layer gives comes to the stream through other layers."""
    reached, waiting = _channels(start, "writes"), [layer for layer in layers if layer is not start]
    while not reached & stream:
        following = [layer for layer in waiting if _channels(layer, "reads") & reached]
        if not following:
            return False
        waiting = [layer for layer in waiting if layer not in following]
        for layer in following:
            reached |= _channels(layer, "writes")
    return True


def inputs_kept(model: nn.Module, graph: ChannelGraph, shares: float | Mapping[str, float]) -> dict[str, float]:
    """Layer -> share of its inputs that it keeps, for the layers that select any.

    A number is for every layer of `beginning_branches` that can select its inputs; a table names layers, or globs over them.

    Raises:
        InvalidBudget: a share isn't in (0, 1].
        UnknownName: a glob fits no layer.
        UnsupportedNetwork: a named layer can't select its inputs, or no residual branch begins with one that can.
    """
    given = [shares] if isinstance(shares, (int, float)) else list(shares.values())
    if any(not 0 < share <= 1 for share in given):
        raise InvalidBudget(f"branch_inputs = {shares}: give shares of the inputs that stay, above 0 and up to 1")
    modules = dict(model.named_modules())
    if isinstance(shares, (int, float)):
        names = [name for name in beginning_branches(graph) if why_not_selecting(modules.get(name, model)) is None]
        if shares < 1 and not names:
            raise UnsupportedNetwork(
                "branch_inputs: no residual branch of this network begins with a plain convolution or linear layer; name layers "
                "in a table, or leave it at 1"
            )
        return {name: float(shares) for name in names if shares < 1}
    layers = [layer.name for layer in graph.layers]
    found: dict[str, float] = {}
    for glob, share in shares.items():
        names = [name for name in layers if fnmatchcase(name, glob)]
        if not names:
            raise UnknownName.among("layer in branch_inputs", glob, layers)
        for name in names:
            if (why := why_not_selecting(modules.get(name, model))) is not None:
                raise UnsupportedNetwork(f"`{name}` can't select its inputs: {why}")
            found.setdefault(name, share)
    return {name: share for name, share in found.items() if share < 1}
