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
    for depth, (module, names, statement) in enumerate(_running_modules(paths)):
        path = paths[id(module)]
        attributes = _integers(module, names if depth == 0 else frozenset(statement))
        for i, vector in enumerate(vectors):
            if not found[i]:
                place = at[i] if at else -1
                items = [(name, _matches(value, len(vector), sizes, place)) for name, value in attributes.items()]
                candidates = [Held(path, name, item, vector, name in statement) for name, many in items for item in many]
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


def _integers(module: nn.Module, names: frozenset[str]) -> dict[str, int | list[int]]:
    """Attributes among ``names`` that are whole numbers or sequences of them."""
    found: dict[str, int | list[int]] = {}
    own = vars(module)
    for name in names:
        value: Any = own.get(name)
        if type(value) is int:
            found[name] = value
        elif isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):  # pyright: ignore[reportUnknownVariableType]
            found[name] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    return found


def _running_modules(paths: Mapping[int, str]) -> Iterator[tuple[nn.Module, frozenset[str], tuple[str, ...]]]:
    """Innermost first: a module of the network, the names its running functions use, and those of the running statements."""
    current: nn.Module | None = None
    names: set[str] = set()
    statement: tuple[str, ...] = ()
    left = _OUTER_MODULES
    inner: list[FrameType] = []
    for frame in _frames():
        owner = _owner(frame, paths)
        if owner is None:
            if frame.f_code.co_name.startswith("<"):  # a comprehension or lambda speaks for the function around it
                inner.append(frame)
            continue
        if owner is not current:
            if current is not None:
                yield current, frozenset(names), statement
                left -= 1
                if not left:
                    return
            current, names, statement = owner, set(), ()
        for running in (*inner, frame):
            names |= set(running.f_code.co_names)
            statement += _named_in_statement(running.f_code, running.f_lasti)
        inner = []
    if current is not None:
        yield current, frozenset(names), statement


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


@lru_cache(maxsize=4096)
def _named_in_statement(code: CodeType, last: int) -> tuple[str, ...]:
    """Attributes, in order, read by the statement around the instruction at offset ``last``; on Python 3.10 by its line."""
    instructions = list(dis.get_instructions(code))
    loads = [i for i in instructions if i.opname in ("LOAD_ATTR", "LOAD_METHOD")]
    if sys.version_info >= (3, 11):
        running = [i.positions for i in instructions if i.offset <= last]  # ``last`` may lie in the cache behind an instruction
        here = running[-1] if running else None
        if here is None or here.lineno is None or here.end_lineno is None:
            return ()
        lines = range(here.lineno, here.end_lineno + 1)
        return tuple(i.argval for i in loads if i.positions is not None and i.positions.lineno in lines)
    line_of: dict[int, int] = {}
    line = code.co_firstlineno
    for instruction in instructions:
        line = instruction.starts_line or line
        line_of[instruction.offset] = line
    return tuple(i.argval for i in loads if line_of[i.offset] == line_of.get(last))
