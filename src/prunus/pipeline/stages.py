"""Stages of a run: each leaves its result in a file, and is skipped on resume if that file is there."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from prunus.errors import ArtifactError, ProcessError, PrunusWarning, RecipeError
from prunus.files import DamagedFile, read_json_file, sealed, unsealed, write_atomically
from prunus.training.processes import Processes

_RECIPE = "recipe.json"
_LATE_SECONDS = 10.0


class Stages:
    """Results of stages under ``folder/stages``; ``announce`` is called with the name of every stage that really runs.

    Of several ``processes`` the main one writes, and all go on with what it found.
    """

    def __init__(
        self,
        folder: Path,
        recipe: dict[str, Any],
        resume: bool,
        announce: Callable[[str], None],
        processes: Processes | None = None,
    ) -> None:
        """Start a run in ``folder``, or take up the one that is there.

        Raises:
            RecipeError: the folder holds a run and ``resume`` is off, or it was made with another recipe.
            ArtifactError: the folder can't be made or written.
            ProcessError: it isn't one folder for all processes, but each machine's own.
        """
        self.folder = folder
        self.announce = announce
        self.processes = processes or Processes()
        self.processes.by_main(lambda: self._start(recipe, resume))
        blind = self.processes.lacking(lambda: _appears(folder / _RECIPE))
        if blind:
            raise ProcessError(
                f"{folder} isn't one folder for all machines: process {blind[0]} of {self.processes.count} doesn't find there "
                "what the first one wrote, and needs to, for networks and checkpoints are read from it. Give one on a file "
                "system that all share with --out (a path that is relative starts where each process was started)"
            )

    def _start(self, recipe: dict[str, Any], resume: bool) -> None:
        folder = self.folder
        stored = folder / _RECIPE
        if stored.exists() and any((folder / "stages").glob("*.json")):  # a run that finished no stage is no run
            if not resume:
                raise RecipeError(f"{folder} already holds a run: continue it with --resume, or choose another folder with --out")
            self._check_same(read_json(stored), recipe)
        try:
            (folder / "stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"can't make the folder {folder}: {error.strerror or error}") from error
        if not stored.exists() or read_json(stored) != recipe:  # several processes may share a folder
            write_checked(stored, recipe)

    def file(self, name: str) -> Path:
        """Path of a file that stages leave for one another."""
        return self.folder / "stages" / name

    def _check_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        old, new = flatten(before), flatten(now)
        changed = [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        if changed:
            raise RecipeError(
                f"{self.folder} holds a run of another recipe ({'; '.join(changed[:5])}): choose another folder with --out"
            )

    def run(
        self, name: str, work: Callable[[], dict[str, Any]], leaves: Sequence[str] = (), *, alone: bool = False
    ) -> dict[str, Any]:
        """The result of ``work``, or of the earlier run that finished it and whose files (``leaves``) are still there.

        Warnings are shown, and kept with the result. Several processes do ``work`` together, unless it is for one ``alone``.
        """
        path = self.file(f"{name}.json")

        def finished() -> dict[str, Any] | None:
            return read_json(path) if path.exists() and all(self.file(file).exists() for file in leaves) else None

        found = self.processes.by_main(finished)
        if found is not None:
            return found
        if self.processes.main:
            self.announce(name)
        if alone:
            return self.processes.by_main(lambda: _kept(path, self._carried_out(work)))
        result = self._carried_out(work)
        return self.processes.by_main(lambda: _kept(path, result))

    def _carried_out(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", PrunusWarning)
            result = work()
        for warning in caught if self.processes.main else ():
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        result["warnings"] = [str(w.message) for w in caught if issubclass(w.category, PrunusWarning)]
        return result


def _appears(path: Path) -> bool:
    """Whether a file that another machine just wrote is there: network file systems may be seconds late."""
    end = time.monotonic() + _LATE_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _kept(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    write_checked(path, result)
    return result


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_checked` wrote; `ArtifactError` if it is damaged, or was changed since."""
    try:
        return unsealed(read_json_file(path))
    except (OSError, DamagedFile) as error:
        raise ArtifactError(f"{path} is damaged ({error}): delete it to repeat its stage, or start in another folder") from None


def write_checked(path: Path, tree: dict[str, Any]) -> None:
    """Write JSON with a checksum in it, for `read_json`; `ArtifactError` if it can't be."""
    write_json(path, sealed(tree))


def write_json(path: Path, tree: Any) -> None:
    """Write JSON atomically; `ArtifactError` if it can't be."""
    try:
        write_atomically(path, (json.dumps(tree, indent=2) + "\n").encode())
    except OSError as error:
        raise ArtifactError(
            f"can't write {path}: {error.strerror or error}; continue with --resume when there is room"
        ) from error


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            flatten(cast("dict[str, Any]", value), f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return flat
