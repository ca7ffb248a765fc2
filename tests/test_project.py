"""What pyproject.toml promises holds in the sources."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import prunus

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
OWN = {"trackio", "mlflow", "executorch", "openvino", "lightning", "transformers"}
"""Extras that `all` leaves out."""
MODULE_OF = {"scikit-learn": "sklearn", "pillow": "PIL", "typing-extensions": "typing_extensions"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def packages(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s\[<>=;!~]", requirement, maxsplit=1)[0] for requirement in requirements}


def test_every_library_that_is_imported_is_declared(project: dict[str, Any]) -> None:
    declared = packages(project["dependencies"])
    for name, requirements in project["optional-dependencies"].items():
        if name not in ("dev", "bench"):
            declared |= packages(requirements)
    modules = {MODULE_OF.get(name, name) for name in declared} | {"prunus"} | set(sys.stdlib_module_names)
    undeclared = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            undeclared |= {f"{file.name}: {name}" for name in names if name.split(".")[0] not in modules}
    assert undeclared == set()


def test_extra_all_holds_every_other_extra(project: dict[str, Any]) -> None:
    """But those that bring much along or crash beside others (ADR 14, 20, 23), and the developers'."""
    extras = project["optional-dependencies"]
    inside = re.fullmatch(r"prunus\[(.*)\]", extras["all"][0])
    assert inside is not None
    assert set(inside[1].split(",")) == set(extras) - {"all", "dev", "docs", "bench", *OWN}


def test_version_is_the_same_everywhere(project: dict[str, Any]) -> None:
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert prunus.__version__ == project["version"]


def test_types_are_shipped() -> None:
    assert (ROOT / "src" / "prunus" / "py.typed").is_file()


def test_no_page_or_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {file.relative_to(ROOT).as_posix(): len(file.read_text().splitlines()) for file in (ROOT / "src").rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
