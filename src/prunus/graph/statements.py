"""What a running function's code says: the names that a statement reads, the locals that come from the shape of an argument.

Code is disassembled once, when it first runs; what was found is kept by the identity of the code object, whose hash is slow.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import CodeType

from torch import nn

_OURS = str(Path(__file__).parent)
_WRAPPER = nn.Module._wrapped_call_impl.__code__  # pyright: ignore[reportPrivateUsage]
"""Outside `_call_impl`, which says the same."""
_MANY = 4096
"""So many functions are remembered; then all are forgotten."""
_known: dict[int, Statements] = {}


class Statements:
    """The statements of one function; ``last`` is the offset of the instruction that runs (``frame.f_lasti``)."""

    def __init__(self, code: CodeType) -> None:
        self.code = code  # keeps it alive, and so its identity
        self.names = frozenset(code.co_names)
        self._attributes: dict[int, tuple[str, ...]] = {}
        self._locals: dict[int, tuple[str, ...]] = {}

    @cached_property
    def first_argument(self) -> str | None:
        """Name of the argument that may be the module whose method (or function over it) this is."""
        code = self.code
        if (
            not code.co_argcount
            or code.co_varnames[0] in ("cls", "mcs")
            or code is _WRAPPER
            or code.co_filename.startswith(_OURS)
        ):
            return None
        return code.co_varnames[0]

    def attributes_at(self, last: int) -> tuple[str, ...]:
        """Names of attributes, in order, that the running statement reads."""
        if last not in self._attributes:
            self._attributes[last] = self._read(last, ("LOAD_ATTR", "LOAD_METHOD"))
        return self._attributes[last]

    def locals_at(self, last: int) -> tuple[str, ...]:
        """Names of local variables, in order, that the running statement reads."""
        if last not in self._locals:
            self._locals[last] = self._read(last, ("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_DEREF"))
        return self._locals[last]

    @cached_property
    def _instructions(self) -> list[dis.Instruction]:
        return list(dis.get_instructions(self.code))

    def _read(self, last: int, loads: Sequence[str]) -> tuple[str, ...]:
        """Names that these instructions read in the statement around the one at offset ``last``; on 3.10 in its line."""
        reading = [i for i in self._instructions if i.opname in loads]
        if sys.version_info >= (3, 11):
            running = [i.positions for i in self._instructions if i.offset <= last]  # it may be the cache behind an instruction
            here = running[-1] if running else None
            if here is None or here.lineno is None or here.end_lineno is None:
                return ()
            lines = range(here.lineno, here.end_lineno + 1)
            return tuple(i.argval for i in reading if i.positions is not None and i.positions.lineno in lines)
        line_of: dict[int, int] = {}
        line = self.code.co_firstlineno
        for instruction in self._instructions:
            line = instruction.starts_line or line
            line_of[instruction.offset] = line
        return tuple(i.argval for i in reading if line_of[i.offset] == line_of.get(last))

    @cached_property
    def shapes_read(self) -> dict[str, tuple[int, int]]:
        """Local names that are assigned once, by unpacking the shape of an argument that was not assigned before: the argument's
        place and the axis."""
        instructions = [i for i in self._instructions if i.opname not in ("CACHE", "PRECALL", "NOP")]
        arguments = self.code.co_varnames[1 : self.code.co_argcount]
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


def statements_of(code: CodeType) -> Statements:
    """The statements of a function, remembered."""
    found = _known.get(id(code))
    if found is None:
        if len(_known) >= _MANY:
            _known.clear()
        found = _known[id(code)] = Statements(code)
    return found
