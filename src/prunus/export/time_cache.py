"""Layer times on disk: measured once on a machine, with one set of versions and settings, and read ever after."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from prunus.errors import ArtifactError
from prunus.files import read_json_file, write_atomically

FORMAT = 1


def cache_folder(asked: Path | str | None) -> Path:
    """``asked``, else $PRUNUS_CACHE, else ``prunus`` in the user's cache folder."""
    if asked is not None:
        return Path(asked).expanduser()
    if os.environ.get("PRUNUS_CACHE"):
        return Path(os.environ["PRUNUS_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunus"


class TimeCache:
    """Milliseconds by layer shape and widths, in one file of ``folder`` for everything that times depend on (``about``).

    A file that can't be read is started anew: it holds nothing that can't be measured again.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.about = {"format": FORMAT, **about}
        digest = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"layer-times-{digest}.json"
        self._ms: dict[str, float] = self._read()

    def get(self, shape: str, reads: int, writes: int) -> float | None:
        """The time of this layer at these widths, if it is known."""
        return self._ms.get(_key(shape, reads, writes))

    def add(self, shape: str, times: Mapping[tuple[int, int], float]) -> None:
        """Note times and write the file, together with what another process has noted since.

        Raises:
            ArtifactError: the folder can't be written.
        """
        self._ms = {**self._read(), **self._ms, **{_key(shape, *widths): ms for widths, ms in times.items()}}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = {"about": self.about, "ms": dict(sorted(self._ms.items()))}
            write_atomically(self.path, json.dumps(content, indent=1).encode())
        except OSError as error:
            raise ArtifactError(
                f"layer times can't be kept in {self.path.parent}: {error}. Name another folder with Timing(cache=...) or in "
                "PRUNUS_CACHE"
            ) from error

    def _read(self) -> dict[str, float]:
        try:
            content = read_json_file(self.path)
            found = cast("dict[str, Any]", content["ms"]) if content["about"] == self.about else {}
            known = {str(key): float(ms) for key, ms in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return {}
        return {key: ms for key, ms in known.items() if math.isfinite(ms) and ms >= 0}


def _key(shape: str, reads: int, writes: int) -> str:
    return f"{shape} | {reads} -> {writes}"
