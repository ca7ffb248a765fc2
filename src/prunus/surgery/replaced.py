"""Layers that stand in a row for one layer: the edit that puts them there, and the layers themselves."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

Kind: TypeAlias = Literal["conv1d", "conv2d", "conv3d"]
_CONVOLUTIONS: dict[str, type[nn.Module]] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_MOST_WEIGHTS = 2**31  # a file that asks for more is damaged or hostile
_MOST_GROWTH = 16  # likewise: layers of more weights than so many times those of the layer that they stand for


@dataclass(frozen=True)
class LayerShape:
    """One ordinary layer: a convolution padded with zeros."""

    kind: Kind
    inputs: int
    outputs: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    bias: bool = False
    groups: int = 1

    @property
    def num_weights(self) -> int:
        """Weights without the bias; multiply-adds at one position of the output."""
        return self.inputs // self.groups * self.outputs * math.prod(self.kernel_size)

    def build(self, like: Tensor) -> nn.Module:
        """The layer, its weights zero, of the type and on the device of ``like``."""
        extents = (self.kernel_size, self.stride, self.padding, self.dilation)
        made: Any = cast("Any", _CONVOLUTIONS[self.kind])(
            self.inputs, self.outputs, *extents, groups=self.groups, bias=self.bias, device="meta"
        )
        for name, parameter in list(made.named_parameters()):
            zeros = torch.zeros(parameter.shape, dtype=like.dtype, device=like.device)
            setattr(made, name, nn.Parameter(zeros, like.requires_grad))
        return made


@dataclass(frozen=True)
class ReplaceEdit:
    """Put these layers, as an `nn.Sequential`, in the place of the layer at this dotted path."""

    module: str
    layers: tuple[LayerShape, ...]


def replace_layers(model: nn.Module, edits: Sequence[ReplaceEdit]) -> nn.Module:
    """A copy of ``model`` with the edits carried out, all new weights zero."""
    changed = copy.deepcopy(model)
    for edit in edits:
        old = changed.get_submodule(edit.module)
        row = nn.Sequential(*(layer.build(cast("Tensor", old.weight)) for layer in edit.layers)).train(old.training)
        parent, _, name = edit.module.rpartition(".")
        setattr(changed.get_submodule(parent), name, row)
    return changed


def why_not_replaceable(model: nn.Module, edit: ReplaceEdit) -> str | None:
    """Why the layer can't be replaced in this network, in words, or None."""
    modules = dict(model.named_modules())
    old = modules.get(edit.module)
    weight = getattr(old, "weight", None)
    if not edit.module or not isinstance(weight, Tensor):
        return f"it replaces the layer `{edit.module}`, and there is none of that name with a weight"
    inputs, outputs = edit.layers[0].inputs, edit.layers[-1].outputs
    if weight.ndim < 2 or (outputs, inputs) != tuple(weight.shape[:2]):
        return (
            f"it replaces `{edit.module}` by layers from {inputs} to {outputs} channels, here its weight is {tuple(weight.shape)}"
        )
    if sum(layer.num_weights for layer in edit.layers) > _MOST_GROWTH * weight.numel():
        return f"it replaces `{edit.module}` by layers of more than {_MOST_GROWTH} times its weights"
    return None


def to_tree(edit: ReplaceEdit) -> dict[str, Any]:
    """The edit as what JSON can hold."""
    return {"replace": edit.module, "layers": [asdict(layer) for layer in edit.layers]}


def from_tree(item: Mapping[str, Any]) -> ReplaceEdit:
    """Read what `to_tree` made; `ValueError`, `KeyError` or `TypeError` where it is malformed."""
    layers = tuple(_read_layer(layer) for layer in item["layers"])
    if not layers or any(a.outputs != b.inputs for a, b in pairwise(layers)):
        raise ValueError(f"the layers in place of {str(item['replace'])!r} don't fit together")
    return ReplaceEdit(str(item["replace"]), layers)


def _read_layer(item: Mapping[str, Any]) -> LayerShape:
    kind = item["kind"]
    if kind not in get_args(Kind):
        raise ValueError(f"unknown kind of layer {str(kind)[:40]!r}")
    extents = {name: tuple(item[name]) for name in ("kernel_size", "stride", "padding", "dilation")}
    rank = int(kind[4])
    least = {"padding": 0}
    sizes, groups = [item["inputs"], item["outputs"]], item.get("groups", 1)
    fine = all(type(n) is int and 0 < n < 2**24 for n in sizes) and type(item["bias"]) is bool
    fine = fine and all(len(values) == rank for values in extents.values())
    fine = fine and all(type(n) is int and least.get(name, 1) <= n < 2**16 for name, ns in extents.items() for n in ns)
    fine = fine and type(groups) is int and groups > 0 and not any(n % groups for n in sizes)
    layer = LayerShape(kind, *sizes, **extents, bias=item["bias"], groups=groups)
    if not fine or layer.num_weights > _MOST_WEIGHTS:
        raise ValueError(f"a layer of kind {kind!r} is malformed")
    return layer
