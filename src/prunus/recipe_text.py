"""Recipes as text: what a command line puts over their values, and mistakes in words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel

from prunus.errors import RecipeError, UnknownName
from prunus.files import DamagedFile, read_bounded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

_MOST_BYTES = 2**20


def read_toml(path: Path) -> dict[str, Any]:
    """The file as a nested dict; `RecipeError` if it is missing or isn't TOML."""
    try:
        return _parse(read_bounded(path, _MOST_BYTES).decode("utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}") from None
    except (ValueError, OSError) as error:
        raise RecipeError(f"{path} can't be read as TOML: {error}") from None


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise DamagedFile("it is nested too deeply") from None


def problem(error: dict[str, Any], recipe: type[BaseModel]) -> str:
    """What pydantic found in a recipe, with the nearest names for a field that there isn't."""
    if not error["loc"]:  # of the whole recipe
        return str(error["msg"])
    *parents, leaf = (str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{'.'.join([*parents, leaf])}: {error['msg']}"
    section = recipe
    for part in parents:
        annotation: Any = section.model_fields[part].annotation
        section = next(a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel))
    return str(UnknownName.among("field", ".".join([*parents, leaf]), (".".join([*parents, f]) for f in section.model_fields)))


def override(tree: dict[str, Any], item: str) -> None:
    """Set what ``section.field=value`` says in ``tree``, the value in TOML syntax or bare text."""
    dotted, sep, raw = item.partition("=")
    if not sep or not dotted.strip():
        raise RecipeError(f"can't read --set {item!r}: write section.field=value, e.g. --set prune.criterion=l1")
    try:
        value = _parse(f"value = {raw}")["value"]
    except ValueError:
        value = raw
    *parents, leaf = dotted.strip().split(".")
    node = tree
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {item!r}: {part} is a value, not a section")
        node = cast("dict[str, Any]", child)
    node[leaf] = value
