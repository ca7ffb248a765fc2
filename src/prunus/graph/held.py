"""Widths that Python holds: attributes of the running modules whose value is the size of a labelled axis.

`torch.split(x, self.width)`, `x.view(n, self.heads, self.head_dim, -1)`: the operation sees a number, and the number is wrong
once channels are gone. The frames of the call tell which module runs and which of its attributes the statement names; where one
has the value in question, surgery sets it to the number of channels left, and verification decides whether that was right.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, NamedTuple

from torch import nn

from prunus.graph.labels import LabelVector
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
        statement = [name for frame in running.frames for name in _named_in_statement(frame.f_code, frame.f_lasti)]
        names = {name for frame in running.frames for name in frame.f_code.co_names} if depth == 0 else set(statement)
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
    return found


def _in_order(named: list[Held], statement: Sequence[str], places: Sequence[int], place: int) -> list[Held]:
    """Where a statement names as many attributes of this value as its sizes hold (8 heads of width 8), the order tells which."""
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
    for part in (module, *(child for name, child in module.named_children() if name in names)):
        own = vars(part)
        for name in names & own.keys():
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
            code = frame.f_code
            if code.co_name != "forward":
                continue
            sources = _shapes_read(code)
            used = dict.fromkeys(_locals_in_statement(code, frame.f_lasti))
            return [sources[name] for name in used if name in sources and frame.f_locals.get(name) == size]
        return []
    return []


@lru_cache(maxsize=4096)
def _shapes_read(code: CodeType) -> dict[str, tuple[int, int]]:
    """Local names that are assigned once, by unpacking the shape of an argument that was not assigned before."""
    instructions = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "PRECALL", "NOP")]
    arguments = code.co_varnames[1 : code.co_argcount]
    stored = [str(i.argval) for i in instructions if i.opname == "STORE_FAST"]
    found: dict[str, tuple[int, int]] = {}
    for at, instruction in enumerate(instructions):
        if instruction.opname != "UNPACK_SEQUENCE":
            continue
        before = [i for i in instructions[max(0, at - 3) : at] if not i.opname.startswith(("CALL", "PUSH_NULL"))][-2:]
        if len(before) < 2 or before[1].argval not in ("shape", "size") or before[0].argval not in arguments:
            continue
        name = str(before[0].argval)
        if any(i.opname == "STORE_FAST" and i.argval == name for i in instructions[:at]):
            continue
        for axis, target in enumerate(instructions[at + 1 : at + 1 + int(instruction.argval)]):
            if target.opname == "STORE_FAST" and stored.count(str(target.argval)) == 1:
                found[str(target.argval)] = arguments.index(name), axis
    return found


@lru_cache(maxsize=4096)
def _locals_in_statement(code: CodeType, last: int) -> tuple[str, ...]:
    return _read_in_statement(code, last, ("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_DEREF"))


@lru_cache(maxsize=4096)
def _named_in_statement(code: CodeType, last: int) -> tuple[str, ...]:
    return _read_in_statement(code, last, ("LOAD_ATTR", "LOAD_METHOD"))


def _read_in_statement(code: CodeType, last: int, loads: Sequence[str]) -> tuple[str, ...]:
    """Names, in order, that these instructions read in the statement around the one at offset ``last``; on 3.10 in its line."""
    instructions = list(dis.get_instructions(code))
    reading = [i for i in instructions if i.opname in loads]
    if sys.version_info >= (3, 11):
        running = [i.positions for i in instructions if i.offset <= last]  # ``last`` may lie in the cache behind an instruction
        here = running[-1] if running else None
        if here is None or here.lineno is None or here.end_lineno is None:
            return ()
        lines = range(here.lineno, here.end_lineno + 1)
        return tuple(i.argval for i in reading if i.positions is not None and i.positions.lineno in lines)
    line_of: dict[int, int] = {}
    line = code.co_firstlineno
    for instruction in instructions:
        line = instruction.starts_line or line
        line_of[instruction.offset] = line
    return tuple(i.argval for i in reading if line_of[i.offset] == line_of.get(last))


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(3)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code is not call_model.__code__:
        yield frame
        frame = frame.f_back


def _owner(frame: FrameType, paths: Mapping[int, str]) -> nn.Module | None:
    """The module of the network whose method (or function over it) runs in this frame."""
    code = frame.f_code
    if not code.co_argcount or code.co_varnames[0] in ("cls", "mcs"):
        return None
    first = frame.f_locals.get(code.co_varnames[0])
    if not isinstance(first, nn.Module) or id(first) not in paths:
        return None
    return first
