"""Files of exporters that write by themselves: into a folder beside the target, and from there under their names."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def draft_of(path: Path) -> Generator[Path, None, None]:
    """A file of the same name in an empty folder beside ``path``; the folder goes in the end.

    Its name is fixed, so that a kill leaves at most one, which the next write of the same file removes.
    """
    folder = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(folder)
    folder.mkdir()
    try:
        yield folder / path.name
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def publish(draft: Path, path: Path) -> int:
    """Move what lies in the draft's folder beside ``path``, the file itself last; return the bytes of all.

    Where several files belong together the old one goes first: a kill in between leaves no file rather than one with the
    weights of another.
    """
    pieces = sorted(draft.parent.iterdir(), key=lambda piece: piece == draft)
    size = 0
    for piece in pieces:
        size += piece.stat().st_size
        with piece.open("rb") as stream:
            os.fsync(stream.fileno())
    if len(pieces) > 1:
        path.unlink(missing_ok=True)
    for piece in pieces:
        os.replace(piece, path.with_name(piece.name))
    return size


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """Hold back progress lines, log records and third-party warnings of an exporter; exceptions pass."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
