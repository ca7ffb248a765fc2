"""Bytes of the file that `prunus.save` writes: its tensors in closed form, its header with the surgery record from above."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import nn

from prunus.graph.cost import StoredFile, WidthTable
from prunus.graph.labels import LabelSpace, named_tensors
from prunus.types import HeldIndex, HeldWidth

_RECORD = 350
"""Fingerprint, versions, checksum and punctuation of a record, the length of the header and its padding."""
_ATTRIBUTES = ("normalized_shape", "out_channels", "in_channels", "groups")


def stored_file(
    model: nn.Module, space: LabelSpace, widths: WidthTable, held: Sequence[HeldWidth], indices: Sequence[HeldIndex]
) -> StoredFile:
    """What the closed form needs to know of the file. Numbers of several digits count at their longest, so that the file that is
    written is never larger than the cost says, and smaller by at most 1 % and 1 kB.

    A later round's record also tells of earlier surgery: `prunus.pipeline` takes the bytes of that off the budget.
    """
    saved = model.state_dict(keep_vars=True).keys()
    tensors: list[tuple[float, list[int]]] = []
    slices: list[tuple[int, float, float]] = []
    fixed = float(_RECORD + _repairs(model, held, indices))
    told: set[tuple[str, int]] = set()
    total = sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(model))
    for name, tensor in named_tensors(model):
        if name not in saved:
            continue
        size = float(tensor.numel() * tensor.element_size())
        axes = space.fields[id(tensor)].axes
        for axis, labels in axes.items():
            size /= len(labels)
            slices.append(_slice(model, name, tensor, axis, widths.row(labels), told))
        tensors.append((size, [widths.row(labels) for labels in axes.values()]))
        fixed += _entry(name, tensor, total)
    return StoredFile(tensors, fixed, slices)


def _entry(name: str, tensor: torch.Tensor, total: int) -> int:
    """A tensor in the header of a file of ``total`` bytes of tensors."""
    shape = ",".join(map(str, tensor.shape))
    return len(f'{json.dumps(name)}:{{"dtype":"BF16","shape":[{shape}],"data_offsets":[{total},{total}]}},')


def _slice(
    model: nn.Module, name: str, tensor: torch.Tensor, axis: int, row: int, told: set[tuple[str, int]]
) -> tuple[int, float, float]:
    """An axis in the record, with the attributes of its module that follow it where no axis before told of them."""
    path, size = name.rpartition(".")[0], tensor.shape[axis]
    text = _escaped({"slice": name, "axis": axis, "kept": [], "size": size})
    if (path, axis) not in told:
        told.add((path, axis))
        module = model.get_submodule(path)
        owned = [attribute for attribute in _ATTRIBUTES if hasattr(module, attribute)] or ["num_features"]
        grouped = getattr(module, "groups", 1) != 1
        following = owned if grouped else owned[:1]
        text += sum(_escaped({"attribute": attribute, "module": path, "value": [size]}) for attribute in following)
    return row, float(text), float(len(str(size - 1)) + 2)


def _repairs(model: nn.Module, held: Sequence[HeldWidth], indices: Sequence[HeldIndex]) -> int:
    """Attributes and buffers of the network's own code, as long as they may become."""
    buffers = dict(model.named_buffers())
    attributes = {(width.module, width.attribute): 0 for width in held}
    for path, attribute in attributes:
        value = getattr(model.get_submodule(path), attribute)
        value = value if isinstance(value, int) else list(value)
        attributes[path, attribute] = _escaped({"attribute": attribute, "module": path, "value": value, "repaired": True})
    numbers = {index.buffer: _escaped({"index": index.buffer, "values": buffers[index.buffer].tolist()}) for index in indices}
    return sum(attributes.values()) + sum(numbers.values())


def _escaped(edit: dict[str, object]) -> int:
    """Length of an edit as JSON within the JSON of the header, with the comma behind it."""
    return len(json.dumps(json.dumps(edit))) - 2 + len(", ")
