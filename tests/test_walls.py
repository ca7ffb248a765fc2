"""Who may import whom: the parts of Prunus know only what stands in this table, wherever in a file the import is."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "prunus"
BASE = {"budgets", "costs", "errors", "files", "stopping", "tensor_files", "training_hooks", "types", "version", "wrapping"}
METHODS = {"importance", "allocation", "surgery"}
MAY_IMPORT = {
    "errors": set[str](),
    "files": set[str](),
    "version": set[str](),
    "stopping": set[str](),
    "tensor_files": {"files"},
    "budgets": {"errors"},
    "costs": set[str](),
    "types": {"budgets", "costs", "errors"},
    "training_hooks": {"types"},
    "wrapping": {"errors"},
    "config": BASE | {"config_prune", "recipe_text"},
    "config_prune": BASE,
    "recipe_text": {"errors", "files"},
    "ticket_recipe": BASE | {"recipe_text"},
    "claims": BASE | {"recipe_text"},
    "graph": BASE,
    "importance": BASE | {"graph"},
    "allocation": BASE | {"graph"},
    "surgery": BASE | {"graph"},
    "testing": BASE | {"graph", "surgery"},
    "reconstruction": BASE | {"graph"} | METHODS,
    "sparsity": BASE | {"graph"} | METHODS,
    "tickets": BASE | {"graph"} | METHODS,
    "training": BASE | {"config", "config_prune"},
    "export": BASE,
    "report": BASE,
    "sources": {"errors", "files", "tensor_files"},
    "integrations": BASE | METHODS | {"graph", "pipeline"},
}
SHELL = {"__init__", "__main__", "pipeline", "cli", "demo", "laboratory"}
TOP: dict[str, set[str]] = {"cli": {"__main__"}, "laboratory": {"cli"}, "integrations": set()}
"""Parts that stand on all others, and who may import them."""
CORE = BASE | {"graph"} | METHODS | {"reconstruction"}
CORE_PACKAGES = {"torch", "numpy", "scipy", "safetensors", "typing_extensions"}
ONLY_IN = {
    "accelerate": {"training"},
    "pydantic": {"config", "config_prune", "recipe_text", "ticket_recipe", "claims"},
    "plotly": {"report"},
    "timm": {"sources"},
    "sklearn": {"sources", "importance", "reconstruction"},
    "tensorly": {"reconstruction"},
    "optuna": {"allocation"},
    "lightning": {"integrations"},
    "transformers": {"integrations"},
}
EXTRAS = {("importance", "sklearn"), ("allocation", "optuna"), ("reconstruction", "sklearn"), ("reconstruction", "tensorly")}
"""Imports of the core that only one function makes, when it is called, and whose absence it reports."""


def imports(file: Path, package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that a file imports; ``package`` is the package it lies in."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*package[: len(package) - node.level + 1], node.module or "")) if node.level else node.module or ""
            names = (f"{base.rstrip('.')}.{alias.name}" for alias in node.names)
            yield from names if base.rstrip(".") == "prunus" else (base.rstrip("."),)


def violations(root: Path) -> list[str]:
    """Every import that breaks the table, as ``file: what``."""
    found: list[str] = []
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        part = inside.parts[0].removesuffix(".py")
        for name in imports(file, ("prunus", *inside.parent.parts)):
            top, _, rest = name.partition(".")
            other = rest.split(".")[0]
            below = part not in SHELL and other not in MAY_IMPORT.get(part, set())
            if top == "prunus" and other != part and (below or part not in TOP.get(other, {part})):
                found.append(f"{inside}: prunus.{other}")
            heavy = top != "prunus" and part in CORE and top not in CORE_PACKAGES | sys.stdlib_module_names
            heavy = heavy and (part, top) not in EXTRAS
            if heavy or part not in ONLY_IN.get(top, {part}):
                found.append(f"{inside}: {top}")
    return found


def test_nobody_imports_over_a_wall() -> None:
    assert violations(SOURCE) == []


def test_every_part_stands_in_the_table() -> None:
    parts = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))}
    assert parts <= set(MAY_IMPORT) | SHELL


@pytest.mark.parametrize(
    ("file", "line", "violation"),
    [
        ("importance/weights.py", "from prunus.surgery import remove", "prunus.surgery"),
        ("importance/weights.py", "def f():\n    import prunus.allocation.ranking", "prunus.allocation"),
        ("graph/trace.py", "from ..importance import weights", "prunus.importance"),
        ("graph/trace.py", "from .. import importance", "prunus.importance"),
        ("graph/trace.py", "from prunus import trace", "prunus.trace"),
        ("types.py", "from prunus.graph import trace", "prunus.graph"),
        ("sources/models.py", "from prunus.types import Budget", "prunus.types"),
        ("report/page.py", "from prunus.config import Recipe", "prunus.config"),
        ("sparsity/resrep.py", "import accelerate", "accelerate"),
        ("pipeline.py", "import accelerate.utils", "accelerate"),
        ("pipeline.py", "from prunus.cli import app", "prunus.cli"),
        ("pipeline.py", "from prunus.laboratory import compare", "prunus.laboratory"),
        ("laboratory/compare.py", "from prunus.cli import app", "prunus.cli"),
        ("surgery/remove.py", "import rich", "rich"),
        ("pipeline.py", "from prunus.integrations import pruner", "prunus.integrations"),
        ("integrations/lightning.py", "from prunus.training import train", "prunus.training"),
        ("training/loop.py", "import lightning", "lightning"),
        ("graph/trace.py", "from prunus.graph.labels import x\nfrom . import labels\nimport torch.nn, math", None),
        ("pipeline.py", "from prunus.graph import trace\nfrom prunus import sources", None),
        ("training/loop.py", "from prunus.config import OptimizerConfig\nimport accelerate", None),
        ("laboratory/compare.py", "from prunus import pipeline, report, sources, training\nimport scipy.stats", None),
        ("cli/laboratory.py", "from prunus.laboratory import compare", None),
    ],
)
def test_walls_can_fall(tmp_path: Path, file: str, line: str, violation: str | None) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert violations(tmp_path) == ([f"{file}: {violation}"] if violation else [])
