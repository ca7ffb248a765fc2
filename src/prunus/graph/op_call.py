"""One ATen operation as it passes the tracer: what op rules (ours and the user's) read and say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prunus.graph.held import Held, held_widths, widths_of_arguments
from prunus.graph.labels import LabelField, LabelVector
from prunus.types import Role

if TYPE_CHECKING:
    from prunus.graph.tracer import Tracer

NO_LABELS = LabelField({}, True)


class OpCall:
    """An operation that has run, with its arguments and its result, and the vocabulary to say what it does to channels."""

    def __init__(self, tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self.tracer = tracer
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.out = out

    def argument(self, name: str) -> Any:
        """The argument called ``name`` in the operation's schema, or its default."""
        for i, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                return self.args[i] if i < len(self.args) else self.kwargs.get(name, argument.default_value)
        raise KeyError(f"{self.name} has no argument {name!r}")

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments, also those in lists."""
        found: list[Tensor] = []
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Tensor):
                found.append(value)
            elif isinstance(value, (list, tuple)):
                found += [v for v in value if isinstance(v, Tensor)]
        return found

    @property
    def outs(self) -> list[Tensor]:
        """Every tensor among the results."""
        several = self.out if isinstance(self.out, (tuple, list)) else (self.out,)
        return [out for out in several if isinstance(out, Tensor)]

    # -- reading and setting labels

    def field(self, tensor: Tensor) -> LabelField:
        """Labels of ``tensor`` (empty for constants)."""
        return self.tracer.field(tensor)

    def labels(self, tensor: Tensor, axis: int) -> LabelVector | None:
        """Labels along ``axis``, or None."""
        return self.field(tensor).axes.get(axis % max(tensor.ndim, 1))

    def set(
        self, tensor: Tensor, axes: dict[int, LabelVector], parametric: bool | None = None, fixed: Mapping[int, str] | None = None
    ) -> None:
        """Give ``tensor`` labels; axes of size 1 and unlabelled ones are left out. ``fixed``: why other axes can't change."""
        if parametric is None:
            parametric = all(self.field(t).parametric for t in self.tensors)
        self.tracer.set_field(tensor, LabelField({a: v for a, v in axes.items() if len(v) > 1}, parametric, fixed or {}))

    def set_free(self, tensor: Tensor, axes: frozenset[int]) -> None:
        """These axes repeat one value; see `LabelField.free`."""
        if axes:
            self.tracer.set_field(tensor, self.field(tensor)._replace(free=axes))

    def follow(self, source: Tensor, out: Tensor | None = None) -> None:
        """The result (each result) carries the labels of ``source``, axis for axis."""
        field = self.field(source)
        for target in [out] if out is not None else self.outs:
            axes = {a: v for a, v in field.axes.items() if a < target.ndim and target.shape[a] == len(v)}
            self.set(target, axes, fixed=field.fixed if target.shape == source.shape else None)
            if target.shape == source.shape:
                self.set_free(target, field.free)

    # -- saying what happens to channels

    def unify(self, a: LabelVector | None, b: LabelVector | None, what: str = "") -> LabelVector | None:
        """Channels a[i] and b[i] live and die together; a fixed width (None) on one side freezes the other."""
        if a is None or b is None:
            known = a if b is None else b
            if known is not None:
                self.freeze(known, what or "meets a width that is fixed")
            return None
        if a is b:
            return a
        if len(a) != len(b):
            self.freeze(a, "meets another number of channels")
            self.freeze(b, "meets another number of channels")
            return None
        for x, y in ((a, b), (b, a)):
            if (fixed := x[(x >= 0) & (y < 0)]).size:
                self.freeze(fixed, what or "meets a width that is fixed")
        self.tracer.pairs.append((a, b))
        return a

    def tie(self, labels: LabelVector, rows: int, across: int = 0) -> LabelVector:
        """View the labels as (rows, n / rows) and tie the entries along axis ``across`` together; returns one of each."""
        table = labels.reshape(rows, -1)
        first = table[:1] if across == 0 else table[:, :1]
        self.unify(np.ascontiguousarray(np.broadcast_to(first, table.shape)).reshape(-1), labels)
        return np.ascontiguousarray(first).reshape(-1)

    def balance(self, labels: LabelVector, parts: int) -> None:
        """The axis is divided into equal parts at run time: every part must keep the same number of channels."""
        if bool((labels < 0).any()):
            self.freeze(labels, "divided into equal parts, one of which holds entries of fixed width,")
            return
        self.tracer.splits.append((labels, parts))

    def mark(self, labels: LabelVector | None, role: Role) -> None:
        """State what a parameter's axis does with the channels."""
        if labels is not None:
            self.tracer.roles.append((labels, role))

    def number(self, tensor: Tensor, channels: Sequence[LabelVector]) -> None:
        """The values of ``tensor`` are numbers of these channels: they are frozen if anything makes use of it."""
        if channels:
            field = self.field(tensor)
            self.tracer.set_field(tensor, field._replace(numbers=tuple(channels)))

    def freeze(self, labels: LabelVector, why: str) -> str:
        """These channels can't be removed; returns the reason with the place, for `set`'s ``fixed``."""
        return self.tracer.freeze(labels, f"{why} in {self.place}")

    def freeze_all(self, why: str) -> None:
        """Freeze whatever touches this operation; its results carry no labels."""
        for tensor in self.tensors:
            for labels in self.field(tensor).axes.values():
                self.freeze(labels, why)
        for out in self.outs:
            self.set(out, {})

    def mix(
        self,
        slices: Sequence[tuple[int, int]],
        labels: LabelVector,
        out_axis: int | None = None,
        replace: Callable[[int], dict[int, Any]] | None = None,
    ) -> None:
        """The operation computes a statistic over these channels.

        ``slices``: (argument index, axis) pairs that hold them; ``out_axis``: their axis in the results, if they stay;
        ``replace(n)``: arguments to change when only n are left. `silence` evaluates the operation on the kept channels so.
        """
        self.tracer.mixed(self, slices, labels, out_axis, replace)

    def hold(self, *vectors: LabelVector, sizes: Sequence[int] = (), at: Sequence[int] = ()) -> list[list[Held]]:
        """Python may hold the sizes of these axes: note the attributes that do; returns them, vector by vector.

        ``sizes``: the list of sizes that the operation was given, of which vector i is entry ``at[i]``.
        """
        found = held_widths(self.tracer.paths, vectors, sizes, at)
        self.tracer.held += [held for several in found for held in several]
        return found

    def count_like_input(self, labels: LabelVector) -> None:
        """The size of this axis may be a number that the program read from the shape of what its module was given: then both
        axes must keep the same number of channels."""
        tracer = self.tracer
        places = widths_of_arguments(tracer.paths, len(labels)) if tracer.arguments else []
        given = [(tracer.arguments[-1][i], axis) for i, axis in places if i < len(tracer.arguments[-1])]
        others = [field.axes[axis] for field, axis in given if axis in field.axes]
        if others and not bool((others[0] < 0).any() or (labels < 0).any()):
            tracer.splits.append((np.concatenate([others[0], labels]), 2))
        elif given:
            self.freeze(labels, "as wide as what the module is given, whose width is fixed,")

    # -- words for messages

    @property
    def name(self) -> str:
        """E.g. ``aten.add.Tensor``."""
        return str(self.func)

    @property
    def place(self) -> str:
        """E.g. ``aten.bmm.default (layer2.0.attn)``."""
        return f"`{self.name}` (called in `{self.tracer.module_path or 'the network'}`)"


def is_mutating(func: Any) -> bool:
    """Whether the operation writes into its first argument."""
    return bool(func._schema.is_mutable)


def is_view(func: Any) -> bool:
    """Whether the result is a view of an argument, by the alias annotations of the schema."""
    return any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)


def is_pointwise(func: Any) -> bool:
    """Whether the operation (or the functional variant of an in-place one) works element by element."""
    if torch.Tag.pointwise in func.tags:
        return True
    name = func._schema.name
    if not name.endswith("_") or not is_mutating(func):
        return False
    namespace, _, base = name[:-1].partition("::")
    packet = getattr(getattr(torch.ops, namespace), base, None)
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())
