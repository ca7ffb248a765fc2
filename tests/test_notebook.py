"""The notebook runs from its first cell to its last, and what is committed in it is what it prints."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebook").glob("*.ipynb"))


@pytest.fixture(scope="module")
def runner() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("run_notebook", DOCS / "run_notebook.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["run_notebook"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["run_notebook"]


def printed(notebook: dict[str, Any]) -> list[str]:
    """What the cells print, without figures, which depend on the machine, and without the drawn widths."""
    outputs = ["".join(output["text"]) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [re.sub(r"[\d.,#e+%-]+", "0", text) for text in outputs]


@pytest.mark.pages
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_what_it_prints(
    path: Path, runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    done = runner.executed(notebook, path.name)
    assert printed(done) == printed(notebook)
    assert [c["source"] for c in done["cells"]] == [c["source"] for c in notebook["cells"]]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


def test_a_cell_that_fails_fails(runner: ModuleType) -> None:
    cell = {"cell_type": "code", "source": ["print(1)\n", "assert 1 == 2"], "outputs": []}
    with pytest.raises(AssertionError):
        runner.executed({"cells": [cell]}, "wrong.ipynb")
    good = runner.executed({"cells": [{**cell, "source": ["print(1)\n", "print(2)"]}]}, "right.ipynb")
    assert good["cells"][0]["outputs"] == [{"name": "stdout", "output_type": "stream", "text": ["1\n", "2\n"]}]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_a_notebook_whose_links_lead_somewhere(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and all((path.parent / link).is_file() for link in links)
