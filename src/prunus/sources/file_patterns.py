"""Which files of a folder or a pattern belong to which split."""

from __future__ import annotations

import glob
import re
from itertools import islice
from pathlib import Path

from prunus.errors import DataError

_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
_NAMED = re.compile(r"(?:^|[/_.-])(train|validation|valid|val|test)(?=[/_.\-0-9]|$)")
_MOST_FILES = 100_000
_REMOTE = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")  # two letters at least: c:\ is a drive


def split_files(text: str, source: str, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Files by split: ``train``, and ``validation`` and ``test`` where there are such.

    Args:
        text: a folder, a file, or a pattern with ``{000..009}``, ``{a,b}``, ``*``; or several, as
            ``train=PATTERN;validation=PATTERN;test=PATTERN``. Otherwise a file's split is the one that its folder or its name
            tells (``val/0.tar``, ``data/test-000.tar``), and training where none does.
        source: how the user named it, for messages.
        suffixes: of the files that are taken from folders and by ``*``.

    Raises:
        DataError: no files for training, a file that is missing, in two splits, or not on this machine.
    """
    named = [part.partition("=") for part in text.split(";")]
    given = {_SPLITS.get(name.strip()): pattern.strip() for name, _, pattern in named}
    if all(equals for _, equals, _ in named) and None not in given and len(given) == len(named):
        files = {split: _expand(pattern, source, suffixes) for split, pattern in given.items() if split}
        _check_apart(files, source)
    else:
        files = _by_name(text, _expand(text, source, suffixes), source)
    if not files.get("train"):
        raise DataError(
            f"{source} has no files for training, only {', '.join(files)}: "
            "name them as train=PATTERN;validation=PATTERN;test=PATTERN"
        )
    return files


def _by_name(text: str, files: list[Path], source: str) -> dict[str, list[Path]]:
    base = Path(text).expanduser()
    base = base if base.is_dir() else Path(*_fixed_parts(base))
    found: dict[str, list[Path]] = {}
    for file in files:
        inside = (file.relative_to(base) if file.is_relative_to(base) else Path(file.name)).as_posix()
        splits = {_SPLITS[name] for name in _NAMED.findall(inside)}
        if len(splits) > 1:
            raise DataError(
                f"{source}: {file} names two splits: say which files are which, as train=PATTERN;validation=PATTERN;test=PATTERN"
            )
        found.setdefault(*splits or {"train"}, []).append(file)
    return found


def _fixed_parts(pattern: Path) -> list[str]:
    """The folders in front of the first part that is a pattern, or of the file."""
    parts = list(pattern.parts)
    first = next((i for i, part in enumerate(parts) if any(sign in part for sign in "{*?[")), len(parts) - 1)
    return parts[:first]


def _expand(pattern: str, source: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of one pattern, in its order; those of ``*`` and of folders sorted."""
    if _REMOTE.match(pattern):
        raise DataError(f"{source}: {pattern} isn't a path: files are read from this machine, so fetch them first")
    if not pattern:
        raise DataError(f"{source}: a pattern is empty: give a folder, a file or a pattern of files")
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and not _hidden(file, path))
        if not found:
            raise DataError(f"{source}: there are no {' or '.join(suffixes)} files in the folder {path}")
        return found
    files: list[Path] = []
    for name in _braces(str(path), source):
        matches = sorted(map(Path, glob.glob(name))) if glob.has_magic(name) else [Path(name)]
        files += [file for file in matches if file.suffix.lower() in suffixes or not glob.has_magic(name)]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        what = f"{len(missing)} of {len(files)} files are missing, e.g. {missing[0]}" if missing else "no file has such a name"
        raise DataError(f"{source}: {what}: look at the pattern {pattern}")
    return files


def _hidden(file: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(base).parts)


def _braces(pattern: str, source: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        names = list(islice(braceexpand(pattern), _MOST_FILES + 1))
    except ValueError:
        raise DataError(f"{source}: the braces of {pattern} aren't closed: write {{000..009}}") from None
    if len(names) > _MOST_FILES:
        raise DataError(f"{source}: {pattern} stands for more than {_MOST_FILES} files")
    return names


def _check_apart(files: dict[str, list[Path]], source: str) -> None:
    seen: dict[Path, str] = {}
    for split, paths in files.items():
        for path in paths:
            if path in seen:
                raise DataError(f"{source}: {path} is in {seen[path]} and in {split}: an image may be in one split only")
            seen[path] = split
