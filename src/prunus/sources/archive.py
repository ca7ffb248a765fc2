"""Files under a folder, or in a .zip as if it were one. Nothing is ever extracted to disk."""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any

from prunus.errors import DataError


class UnreadableFile(DataError):
    """One file that can't be read or decoded, while the others may be fine."""


class Folder:
    """Files under a folder, by their path relative to it, with forward slashes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Every file, sorted."""
        return sorted(
            (Path(folder) / file).relative_to(self.path).as_posix()
            for folder, _, files in os.walk(self.path, followlinks=True)
            for file in files
        )

    def read(self, name: str) -> bytes:
        """The contents of one file."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
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
                return handle.read(name)
            except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError) as error:
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
            except (zipfile.BadZipFile, OSError) as error:
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
