"""Files under a folder, or in a .zip as if it were one. Nothing is ever extracted to disk."""

from __future__ import annotations

import os
import threading
import zipfile
from pathlib import Path
from typing import Any

from prunus.errors import DataError
from prunus.files import DamagedFile, read_bounded

MOST_BYTES = 2**28
"""Of one file: images are far smaller, and what a .zip unfolds to can be of any size."""


class UnreadableFile(DataError):
    """One file that can't be read or decoded, while the others may be fine."""


class Folder:
    """Files under a folder, by their path relative to it, with forward slashes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Every file, sorted. A folder that links lead to several times is gone through once: links may go round in circles."""
        found: list[str] = []
        seen: set[tuple[int, int]] = set()
        for folder, inner, files in os.walk(self.path, followlinks=True):
            about = os.stat(folder)
            if (about.st_dev, about.st_ino) in seen:
                inner.clear()
                continue
            seen.add((about.st_dev, about.st_ino))
            found += ((Path(folder) / file).relative_to(self.path).as_posix() for file in files)
        return sorted(found)

    def read(self, name: str) -> bytes:
        """The contents of one file."""
        try:
            return read_bounded(self.path / name, MOST_BYTES)
        except (OSError, DamagedFile) as error:
            raise UnreadableFile(f"{self.path / name} can't be read: {error}") from error


class Zip:
    """Members of a .zip. Each process opens it once: a handle shared over a fork would share its position in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget_handle()

    def names(self) -> list[str]:
        """Every member that is a file, sorted."""
        with self._lock:
            return sorted(info.filename for info in self._open().infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        """The contents of one member; threads take turns."""
        with self._lock:
            handle = self._open()
            try:
                if handle.getinfo(name).file_size > MOST_BYTES:
                    raise DamagedFile(f"it has more than {MOST_BYTES} bytes")
                return handle.read(name)
            except Exception as error:  # zipfile and the decompressors fail in many ways on damaged files
                raise UnreadableFile(f"{name} in {self.path} can't be read: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._forget_handle()

    def _forget_handle(self) -> None:
        self._lock = threading.Lock()
        self._handle: zipfile.ZipFile | None = None
        self._process: int | None = None

    def _open(self) -> zipfile.ZipFile:
        if self._handle is None or self._process != os.getpid():
            try:
                self._handle, self._process = zipfile.ZipFile(self.path), os.getpid()
            except Exception as error:  # whatever a damaged directory makes zipfile raise
                raise DataError(f"{self.path} is not a whole .zip file ({error}): fetch or write it again") from error
        return self._handle


def open_archive(path: str | Path) -> Folder | Zip:
    """The folder or the .zip at ``path``; raises `DataError` where there is neither."""
    path = Path(path).expanduser()
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise DataError(f"there is no folder or .zip at {path}")
    if path.suffix.lower() != ".zip":
        raise DataError(f"{path} is neither a folder nor a .zip file")
    return Zip(path)
