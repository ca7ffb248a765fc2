"""Functions of the user's own files, named as ``path/to/file.py:function``."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunus.errors import RecipeError, UnknownName


def names_user_file(source: str) -> bool:
    """Whether ``source`` has the form ``path/to/file.py:function`` (or lacks only the function)."""
    return source.endswith(".py") or ".py:" in source


def call_user_function(source: str, arguments: Mapping[str, Any], offers: Mapping[str, Any] | None = None) -> Any:
    """Import the file and return ``function(**arguments)``.

    ``offers`` are values that the function gets as well, but only where it has a parameter of that name. The file's folder can
    be imported from while the file runs.

    Raises:
        UnknownName: there is no such file or no such function.
        RecipeError: no function is named, or the file or the function raised.
    """
    path, name = _split(source)
    with _importable(path.resolve().parent):
        function = _find(source, path, name)
        accepted = _accepted(function, offers or {})
        return _run(f"{name}()", source, path, lambda: function(**{**accepted, **arguments}))


def load_function(source: str) -> Callable[..., Any]:
    """The function itself, not called; raises like `call_user_function`."""
    path, name = _split(source)
    with _importable(path.resolve().parent):
        return _find(source, path, name)


def _split(source: str) -> tuple[Path, str]:
    file, _, name = source.rpartition(":")
    if not file.endswith(".py"):
        raise RecipeError(f"{source!r} names no function: write path/to/file.py:function")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UnknownName(f"there is no file {path} (looked in {Path.cwd()}), named by {source!r}")
    return path, name


def _find(source: str, path: Path, name: str) -> Callable[..., Any]:
    module = _run("importing it", source, path, lambda: _import(path))
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UnknownName.among(f"function in {path}", name, known or ["(none)"])
    return function


def _import(path: Path) -> Any:
    # A private name: a user's `resnet.py` or `data.py` must not shadow an installed module.
    name = f"_prunus_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _accepted(function: Callable[..., Any], offers: Mapping[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}
    return {name: value for name, value in offers.items() if name in parameters}


@contextmanager
def _importable(folder: Path) -> Generator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _run(what: str, source: str, path: Path, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) in (path, path.resolve())]
        where = f"line {lines[-1]} of {path}" if lines else str(path)
        line = error.lineno if isinstance(error, SyntaxError) else None
        where = f"line {line} of {path}" if line else where
        raise RecipeError(f"{source!r} failed: {what} raised {type(error).__name__}: {error} ({where})") from error
