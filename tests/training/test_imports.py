"""The wall around `training`: who may import Accelerate, and what training may know."""

from __future__ import annotations

import ast
from pathlib import Path


def test_only_training_imports_accelerate():
    source = Path(__file__).parents[2] / "src" / "prunus"
    importers = set()
    for file in source.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "accelerate" for name in names):
                importers.add(file.relative_to(source).parts[0])
    assert importers == {"training"}


def test_training_imports_nothing_of_pruning():
    allowed = {"errors", "files", "stopping", "tensor_files", "types", "config", "training", "training_hooks", "wrapping"}
    for file in (Path(__file__).parents[2] / "src" / "prunus" / "training").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunus"):
                assert node.module.split(".")[1] in allowed, f"{file.name} imports {node.module}"
