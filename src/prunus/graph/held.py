"""Widths that Python holds: attributes of the running modules whose value is the size of a labelled axis.

`torch.split(x, self.width)`, `x.view(n, self.heads, self.head_dim, -1)`: the operation sees a number, and the number is wrong
once channels are gone. The frames of the call tell which module runs and which of its attributes the statement names; where one
has the value in question, surgery sets it to the number of channels left, and verification decides whether that was right.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

from prunus.graph.labels import LabelVector
from prunus.graph.statements import statements_of
from prunus.types import call_model

_OUTER_MODULES = 3  # how many modules up the call stack a width may be held


class Held(NamedTuple):
    """An attribute of a module (of a sequence: one item of it) that repeats the number of these labels."""

    module: str
    attribute: str
    item: int | None
    labels: LabelVector
    named: bool
    """Whether the very statement names the attribute, not just the function around it."""
    rivals: frozenset[tuple[str, str, int | None]] = frozenset()
    """Other attributes that could be meant as well: the statement names several of this value."""

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What is edited."""
        return self.module, self.attribute, self.item


def held_widths(
    paths: Mapping[int, str], vectors: Sequence[LabelVector], sizes: Sequence[int] = (), at: Sequence[int] = ()
) -> list[list[Held]]:
    """For each vector the attributes that hold its size, from the innermost module whose running code names one.

    ``sizes``: the operation's list of sizes, if it has one; vector i is entry ``at[i]`` of it. An attribute that is a sequence
    counts where it lies in that list.
    """
    found: list[list[Held]] = [[] for _ in vectors]
    for depth, running in enumerate(_running_modules(paths)):
        functions = [(statements_of(frame.f_code), frame.f_lasti) for frame in running.frames]
        statement = [name for function, last in functions for name in function.attributes_at(last)]
        names = set[str]().union(*(function.names for function, _ in functions)) if depth == 0 else set(statement)
        attributes = _integers(running.module, names, paths)
        for i, vector in enumerate(vectors):
            if not found[i]:
                place = at[i] if at else -1
                items = [(key, _matches(value, len(vector), sizes, place)) for key, value in attributes.items()]
                candidates = [Held(*key, item, vector, key[1] in statement) for key, many in items for item in many]
                named = [c for c in candidates if c.named]
                found[i] = (
                    _in_order(named, statement, [p for p, size in enumerate(sizes) if size == len(vector)], place) or candidates
                )
                keys = frozenset(held.key for held in found[i])
                found[i] = [held._replace(rivals=keys - {held.key}) for held in found[i]]
        if all(found):
            break
    return found


def _in_order(named: list[Held], statement: Sequence[str], places: Sequence[int], place: int) -> list[Held]:
    """Where a statement names as many attributes of this value as its sizes hold (8 heads of width 8), the order tells which."""
    places = places[-len(named) :]  # one more of this size is the batch, which comes first
    if place in places and len(named) == len(places) and all(held.item is None for held in named):
        return [sorted(named, key=lambda held: statement.index(held.attribute))[places.index(place)]]
    return named


def _matches(value: int | list[int], size: int, sizes: Sequence[int], place: int) -> list[int | None]:
    """``[None]`` if the attribute is the size; the items of a sequence that stand for the entry ``place`` of ``sizes``."""
    if isinstance(value, int):
        return [None] if value == size else []
    found: list[int | None] = []
    for start in range(max(0, place - len(value) + 1), min(place, len(sizes) - len(value)) + 1):
        if value[place - start] == size and all(
            own in (-1, there) for own, there in zip(value, sizes[start : start + len(value)], strict=True)
        ):
            found.append(place - start)
    return found[:1]


def _integers(module: nn.Module, names: set[str], paths: Mapping[int, str]) -> dict[tuple[str, str], int | list[int]]:
    """Attributes among ``names``, of the module and of its parts that are named, too: whole numbers and sequences of them."""
    found: dict[tuple[str, str], int | list[int]] = {}
    children = module._modules  # pyright: ignore[reportPrivateUsage]
    for part in (module, *(children[name] for name in children if name in names)):
        if part is None or id(part) not in paths:
            continue  # made while running
        own = vars(part)
        for name in [name for name in own if name in names]:  # in an order that doesn't change from run to run
            value: Any = own[name]
            if type(value) is int:
                found[paths[id(part)], name] = value
            elif isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):  # pyright: ignore[reportUnknownVariableType]
                found[paths[id(part)], name] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    return found


class _Running(NamedTuple):
    """A module of the network and the frames of its functions that run, innermost first."""

    module: nn.Module
    frames: list[FrameType]


def _running_modules(paths: Mapping[int, str]) -> Iterator[_Running]:
    """Innermost first, up to `_OUTER_MODULES`."""
    current: _Running | None = None
    left = _OUTER_MODULES
    inner: list[FrameType] = []
    for frame in _frames():
        owner = _owner(frame, paths)
        if owner is None:
            if frame.f_code.co_name.startswith("<"):  # a comprehension or lambda speaks for the function around it
                inner.append(frame)
            continue
        if current is None or owner is not current.module:
            if current is not None:
                yield current
                left -= 1
                if not left:
                    return
            current = _Running(owner, [])
        current.frames.extend((*inner, frame))
        inner = []
    if current is not None:
        yield current


def widths_of_arguments(paths: Mapping[int, str], size: int) -> list[tuple[int, int]]:
    """Where the running statement uses local numbers of this value that were read from the shape of an argument of the running
    forward pass (``b, c, h, w = x.shape``): the argument's place and the axis.
    """
    for running in _running_modules(paths):
        for frame in running.frames:
            if frame.f_code.co_name != "forward":
                continue
            function = statements_of(frame.f_code)
            sources = function.shapes_read
            used = dict.fromkeys(function.locals_at(frame.f_lasti))
            return [sources[name] for name in used if name in sources and frame.f_locals.get(name) == size]
        return []
    return []


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(3)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code is not call_model.__code__:
        yield frame
        frame = frame.f_back


def _owner(frame: FrameType, paths: Mapping[int, str]) -> nn.Module | None:
    """The module of the network whose method (or function over it) runs in this frame."""
    name = statements_of(frame.f_code).first_argument
    if name is None:
        return None
    first = frame.f_locals.get(name)
    if not isinstance(first, nn.Module) or id(first) not in paths:
        return None
    return first
