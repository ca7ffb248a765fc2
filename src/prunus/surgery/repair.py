"""Attributes that repeat a width: those of PyTorch's own layers, and those that a network's Python code was seen to use."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.graph.labels import named_tensors
from prunus.surgery.record import AttributeEdit, IndexEdit, SliceEdit
from prunus.types import ChannelGraph, HeldWidth, PruningPlan

Shape = tuple[int, ...]
Value: TypeAlias = "int | tuple[int, ...]"
_LARGEST = 2**20


def attribute_edits(
    model: nn.Module, slices: Sequence[SliceEdit], held: Sequence[HeldWidth], plan: PruningPlan
) -> list[AttributeEdit]:
    """New values of the attributes that repeat a width which ``plan`` changes.

    PyTorch's layers follow their parameters. An attribute that the trace saw in use as a width (``held``) gets the number of
    channels left; one that would have to be two numbers at once stays as it is, and verification finds that out.
    """
    values = _held_values(model, held, plan)
    with _evaluating(model):
        standard = _standard_edits(model, slices, values)
    known = {(edit.module, edit.attribute) for edit in standard}
    layers = {path for path, module in model.named_modules() if _rule(module) is not None}
    repaired = [
        AttributeEdit(path, attribute, value, repaired=path not in layers)
        for (path, attribute), value in values.items()
        if (path, attribute) not in known
    ]
    return [*standard, *repaired]


def _held_values(model: nn.Module, held: Sequence[HeldWidth], plan: PruningPlan) -> dict[tuple[str, str], Value]:
    wanted: dict[tuple[str, str], dict[int | None, set[int]]] = {}
    named = {(width.module, width.attribute, width.item) for width in held if width.named}
    for width in held:
        if width.named or (width.module, width.attribute, width.item) not in named:
            wanted.setdefault((width.module, width.attribute), {}).setdefault(width.item, set()).add(width.width(plan.keep))
    values: dict[tuple[str, str], Value] = {}
    for (path, attribute), items in wanted.items():
        old = getattr(model.get_submodule(path), attribute)
        if any(len(several) > 1 for several in items.values()):
            continue
        new = {item: several.pop() for item, several in items.items()}
        value: Value = new[None] if isinstance(old, int) else tuple(new.get(i, int(number)) for i, number in enumerate(old))
        if value != (old if isinstance(old, int) else tuple(old)):
            values[path, attribute] = value
    return values


def index_edits(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> list[IndexEdit]:
    """New contents of the buffers of channel numbers; one that would have to hold two things stays as it is."""
    keep = [plan.keep.get(group.name) for group in graph.groups]
    buffers = dict(model.named_buffers())
    found: dict[str, list[Tensor]] = {}
    for held in graph.indices:
        found.setdefault(held.buffer, []).append(held.renumbered(buffers[held.buffer], keep))
    return [
        IndexEdit(name, several[0])
        for name, several in found.items()
        if not torch.equal(several[0], buffers[name].cpu().long()) and all(torch.equal(v, several[0]) for v in several)
    ]


def set_attribute(module: nn.Module, attribute: str, value: Value) -> None:
    """Set it, a sequence as the type of sequence that it was."""
    old = getattr(module, attribute)
    setattr(module, attribute, list(value) if isinstance(old, list) and isinstance(value, tuple) else value)


def fits(old: Any, value: Value) -> bool:
    """Whether an attribute that is ``old`` may be replaced by ``value``."""
    if isinstance(value, tuple):
        if not isinstance(old, (list, tuple)) or len(cast("Sequence[Any]", old)) != len(value):
            return False
        return all(_sane(before, now) for before, now in zip(cast("Sequence[Any]", old), value, strict=True))
    return type(old) is int and _sane(old, value)


def _sane(old: Any, new: int) -> bool:
    """Widths shrink; one that grows beyond any network's comes from a damaged or hostile file, and memory would follow it."""
    return new <= _LARGEST or (type(old) is int and new <= old)


_AttributeRule: TypeAlias = "Callable[[Any, Mapping[str, Shape], int | None], dict[str, Value]]"


def _convolution(module: Any, shapes: Mapping[str, Shape], groups_left: int | None) -> dict[str, Value]:
    weight, old = shapes["weight"], tuple(module.weight.shape)
    transposed = bool(module.transposed)
    written, read = (1, 0) if transposed else (0, 1)
    groups = module.groups if groups_left is None else groups_left
    if groups_left is None and groups > 1 and module.in_channels == groups:  # depthwise: a group a channel
        groups = groups * weight[0] // old[0]
    if transposed:
        return {"in_channels": weight[read], "out_channels": weight[written] * groups, "groups": groups}
    return {"in_channels": weight[read] * groups, "out_channels": weight[written], "groups": groups}


def _norm(module: Any, shapes: Mapping[str, Shape], _: int | None) -> dict[str, Value]:
    return {"num_features": next(shapes[n][0] for n in ("weight", "running_mean", "bias") if n in shapes)}


_ATTRIBUTES: tuple[tuple[type[nn.Module], _AttributeRule], ...] = (
    (nn.modules.conv._ConvNd, _convolution),  # pyright: ignore[reportPrivateUsage]
    (nn.Linear, lambda _, s, __: {"in_features": s["weight"][1], "out_features": s["weight"][0]}),
    (nn.modules.batchnorm._NormBase, _norm),  # pyright: ignore[reportPrivateUsage]
    (nn.GroupNorm, lambda _, s, __: {"num_channels": s["weight"][0]}),
    (nn.LayerNorm, lambda _, s, __: {"normalized_shape": s["weight"]}),
    (nn.RMSNorm, lambda _, s, __: {"normalized_shape": s["weight"]}),
    (nn.PReLU, lambda _, s, __: {"num_parameters": s["weight"][0]}),
    (nn.Embedding, lambda _, s, __: {"embedding_dim": s["weight"][1]}),
    (nn.EmbeddingBag, lambda _, s, __: {"embedding_dim": s["weight"][1]}),
    (nn.Bilinear, lambda _, s, __: dict(zip(("out_features", "in1_features", "in2_features"), s["weight"], strict=True))),
    (nn.RNNBase, lambda _, s, __: {"input_size": s["weight_ih_l0"][1]}),
    (nn.RNNCellBase, lambda _, s, __: {"input_size": s["weight_ih"][1]}),
)


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Evaluation mode for a while: in training mode, to look at a weight with a spectral norm is to change it."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _rule(module: nn.Module) -> _AttributeRule | None:
    return next((rule for kind, rule in _ATTRIBUTES if isinstance(module, kind)), None)


def _standard_edits(model: nn.Module, slices: Sequence[SliceEdit], held: Mapping[tuple[str, str], Value]) -> list[AttributeEdit]:
    """What PyTorch's own layers say about the shapes of their parameters."""
    changed: dict[str, dict[int, int]] = {}
    for edit in slices:
        changed.setdefault(edit.parameter, {})[edit.axis] = len(edit.kept)
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    edits: list[AttributeEdit] = []
    for path, module in model.named_modules():
        rule = _rule(module)
        own = _own_tensors(module)
        if rule is None or not any(names[id(t)] in changed for t in own.values()):
            continue
        shapes = {n: _new_shape(t, changed.get(names[id(t)], {})) for n, t in own.items()}
        if isinstance(getattr(module, "weight", None), Tensor) and "weight" not in shapes:
            continue  # computed from parameters of other shapes: attributes can't be told, and verification decides
        groups = held.get((path, "groups"))
        for attribute, value in rule(module, shapes, groups if isinstance(groups, int) else None).items():
            if getattr(module, attribute) != value:
                edits.append(AttributeEdit(path, attribute, value))
    return edits


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the module itself; a parametrised one is represented by an original of the same shape."""
    own = {n: t for n, t in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
    if parametrize.is_parametrized(module):
        for name, originals in module.parametrizations.items():  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            shape = getattr(module, name).shape
            alike = [t for t in (*originals.parameters(recurse=False), *originals.buffers(recurse=False)) if t.shape == shape]
            if alike:
                own[name] = alike[0]
    return own


def _new_shape(tensor: Tensor, changed: Mapping[int, int]) -> Shape:
    return tuple(changed.get(axis, size) for axis, size in enumerate(tensor.shape))
