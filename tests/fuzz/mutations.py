"""Seeded damage to files: blind (bytes cut, flipped, inserted) and knowing (values in JSON, names in archives)."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

_DEEP = "@deep@"
NUMBERS: tuple[Any, ...] = (0, -1, 1, 2**31, 10**9, 2**63, -(2**63), 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf"))
TEXTS = ("", "../../escaped", "/tmp/escaped", "<script>alert(1)</script>", "\ud800", "a" * 100_000, "0.weight", "\x00", "1e999")
OTHERS: tuple[Any, ...] = (None, True, [], {}, [[]], {"a": {}}, [0] * 10_000, _DEEP)
EXTREMES = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def in_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to four blind changes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 8, 64, 1000))
        rng.choice(_BLIND)(data, at, length, rng)
    return bytes(data)


def _flip(data: bytearray, at: int, length: int, rng: random.Random) -> None:
    if at < len(data):
        data[at] ^= 1 << rng.randrange(8)


def _truncate(data: bytearray, at: int, length: int, rng: random.Random) -> None:
    del data[at:]


def _cut(data: bytearray, at: int, length: int, rng: random.Random) -> None:
    del data[at : at + length]


def _double(data: bytearray, at: int, length: int, rng: random.Random) -> None:
    data[at:at] = data[at : at + length]


def _insert(data: bytearray, at: int, length: int, rng: random.Random) -> None:
    data[at:at] = rng.randbytes(length)


def _overwrite(data: bytearray, at: int, length: int, rng: random.Random) -> None:
    data[at : at + length] = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))


def _number(data: bytearray, at: int, length: int, rng: random.Random) -> None:
    at, form = rng.choice((0, at)), rng.choice(("<Q", ">Q", "<I", ">I"))
    data[at : at + struct.calcsize(form)] = struct.pack(form, rng.choice(EXTREMES) % 256 ** struct.calcsize(form))


_BLIND: tuple[Callable[[bytearray, int, int, random.Random], None], ...] = (
    _flip,
    _flip,
    _truncate,
    _cut,
    _double,
    _insert,
    _overwrite,
    _number,
)


def in_tree(tree: Any, rng: random.Random) -> Any:
    """A JSON tree of which one value, or one key, is another."""
    places = list(_places(tree))
    if not places:
        return rng.choice(OTHERS)
    holder, key = rng.choice(places)
    what = rng.randrange(6)
    if what == 0 and isinstance(holder, dict):
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key)
    elif what == 2 and isinstance(holder, list):
        holder.extend(holder[:50])
    else:
        holder[key] = rng.choice(rng.choice((NUMBERS, TEXTS, OTHERS)))
    return tree


def _places(node: Any) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield node, key
        yield from _places(value)


def as_json(tree: Any, rng: random.Random) -> bytes:
    """The text of a tree; where it says so, nested without end."""
    depth = rng.choice((100, 2_000, 200_000))
    return json.dumps(tree).replace(f'"{_DEEP}"', "[" * depth + "]" * depth).encode()


def in_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON file with one wrong value."""
    return as_json(in_tree(json.loads(content), rng), rng)


def in_lines_of_json(content: bytes, rng: random.Random) -> bytes:
    """A file of JSON lines, one of them wrong or twice there."""
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at : at + 1] = [in_json(lines[at], rng)] if rng.random() < 0.8 else [lines[at], lines[at]]
    return b"\n".join(lines) + b"\n"


def in_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a wrong value in its header, or in the JSON within its metadata."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    inner = header.get("__metadata__")
    if inner and rng.random() < 0.6:
        key = rng.choice(list(inner))
        inner[key] = in_json(inner[key].encode(), rng).decode()
    else:
        header = in_tree(header, rng)
    text = as_json(header, rng)
    announced = len(text) if rng.random() < 0.9 else rng.choice(EXTREMES)
    return announced.to_bytes(8, "little") + text + content[8 + length :]


_TOML = (
    "nan",
    "0.5",
    "['a']",
    "-inf",
    "1e999",
    "9" * 5_000,
    "-1",
    "''",
    "'../../escaped'",
    "[" * 3_000,
    "[[[]]]",
    "{ a = 1 }",
    "true",
    "1979-05-27",
)


def in_toml(content: bytes, rng: random.Random) -> bytes:
    """A recipe with one line changed, doubled or missing."""
    lines = content.decode().splitlines()
    at = rng.choice([n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")])
    what = rng.randrange(4)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(at, lines[at])
    elif what == 2:
        lines[at] = re.sub(r"^(\[?)[\w.]+", lambda found: found[1] + rng.choice(("x", "model", "a.b.c", '"<script>"')), lines[at])
    else:
        lines[at] = lines[at].partition("=")[0] + "= " + rng.choice(_TOML)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


_NAMES = (
    "../../escaped.png",
    "/tmp/escaped.png",
    "train/../../escaped.png",
    "C:\\escaped.png",
    "train/a/" + "x" * 60_000 + ".png",
)


def in_zip(content: bytes, rng: random.Random) -> bytes:
    """An archive with a name that leads outside, a doubled member, a bomb, or another compression."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, data = members[at]
    what = rng.randrange(5)
    if what == 0:
        members[at] = rng.choice(_NAMES), data
    elif what == 1:
        members.append((name, in_bytes(data, rng)))
    elif what == 2:
        members[at] = name, bytes(rng.choice((10**6, 6 * 10**7)))
    elif what == 3:
        members[at] = name, in_bytes(data, rng)
    else:
        members[at] = rng.choice(TEXTS).encode("utf-8", "replace").decode() + "/" + name, data
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name.partition("\x00")[0][:60_000] or "x", data)
    made = buffer.getvalue()
    return made if rng.random() < 0.7 else in_bytes(made, rng)
