"""How Prunus writes files, whole or not at all, and reads those that it can't trust: within bounds, and checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast


def write_atomically(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write ``content`` beside ``path``, flush it to the disk, then rename; what was there before is renamed to ``keep``.

    Whatever happens, ``path`` holds either what it held before or all of ``content``; only with ``keep`` there is an instant in
    which it doesn't exist, and ``keep`` holds what it held. The temporary name is fixed, so that a kill
    leaves at most one such file, which the next write replaces.

    Raises:
        OSError: the file can't be written; what was there before is intact.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the rename itself reaches the disk; not every system can open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


MOST_JSON = 32 * 2**20
"""Bytes of a JSON or TOML file: parsed, it takes up to thirty times as much memory."""


class DamagedFile(ValueError):
    """The contents of a file are not what they claim to be; the message is the reason, without the path."""


def read_bounded(path: Path, most: int) -> bytes:
    """The contents of a regular file of at most ``most`` bytes.

    Raises:
        OSError: the file can't be read, or is a folder.
        DamagedFile: it is larger, or is a pipe or a device, which may never end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DamagedFile("it is a pipe or a device, not a file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DamagedFile(f"it has more than {most} bytes")
    return content


def parse_json(text: str | bytes) -> Any:
    """What ``text`` says; `DamagedFile` for everything that isn't JSON, is nested too deeply, or has numbers without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise DamagedFile("it is nested too deeply") from None
    except ValueError as error:
        raise DamagedFile(f"it isn't JSON: {error}") from None


def read_json_file(path: Path) -> Any:
    """What a JSON file says. Raises like `read_bounded` and `parse_json`."""
    return parse_json(read_bounded(path, MOST_JSON))


SEAL = "sha256"


def sealed(tree: Mapping[str, Any], digest: Callable[[], str] = str) -> dict[str, Any]:
    """``tree`` with a checksum of its JSON form, and of what ``digest`` returns, under the key ``sha256``."""
    return {**tree, SEAL: _checksum(tree, digest())}


def unsealed(tree: Any, digest: Callable[[], str] = str) -> dict[str, Any]:
    """The tree without its checksum; one that has none was written before there were any.

    Raises:
        DamagedFile: the checksum doesn't match: something has changed since it was written; or it isn't a JSON object.
    """
    if not isinstance(tree, dict):
        raise DamagedFile(f"it holds a {type(tree).__name__}, not an object")
    content = dict(cast("dict[str, Any]", tree))
    seal = content.pop(SEAL, None)
    if seal is not None and seal != _checksum(content, digest()):
        raise DamagedFile("its checksum doesn't match its contents")
    return content


def _checksum(tree: Mapping[str, Any], digest: str) -> str:
    return hashlib.sha256(f"{json.dumps(tree)}{digest}".encode()).hexdigest()
