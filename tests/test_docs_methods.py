"""docs/methods/: the committed pages are those that the generator writes, and every criterion says what a reader needs."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import prunus
from prunus import CRITERIA
from prunus.importance import CriterionRow
from small_nets import Plain, batches, images

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("make_methods", ROOT / "docs" / "make_methods.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["make_methods"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_methods"]


def rows() -> list[tuple[str, CriterionRow]]:
    """Every criterion and every variant that has a function of its own."""
    found = list(CRITERIA.items())
    for name, row in CRITERIA.items():
        for option, values in row.variants.items():
            found += [(f"{name} {option}={value}", v) for value, v in values.items() if v.function is not row.function]
    return found


def test_the_committed_pages_are_up_to_date(generator: ModuleType) -> None:
    expected = generator.pages()
    found = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "docs" / "methods").glob("*.md")}
    stale = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    assert stale == [], "run `make docs-methods`"


@pytest.mark.parametrize(("name", "row"), rows(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_criterion_is_described(generator: ModuleType, name: str, row: CriterionRow) -> None:
    said = generator.described(row.function)
    assert "score[c]" in said.formula or "score" in " ".join((said.summary, *said.text))
    assert len(said.formula) > 10, "indent the formula in the docstring"
    assert len(said.when) > 30 and said.when.endswith("."), "end the docstring with a paragraph `When to use: ...`"
    assert len(row.paper) > 10
    page = generator.page(CRITERIA[row.name], {})
    assert said.formula in page and said.when in page and said.summary in page
    assert f"- paper: {CRITERIA[row.name].paper}" in page and f"- needs: {generator.needs(CRITERIA[row.name])}" in page
    for option, values in CRITERIA[row.name].options.items():
        assert f"| `{option}` | {values} | " in page
    assert generator.NOT_SAID not in page


@pytest.mark.filterwarnings("ignore:.*:prunus.PrunusWarning")
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_pages_tell_the_truth_about_what_is_needed(generator: ModuleType, criterion: str) -> None:
    """Images alone, a loss that can't be differentiated, or one that can: the least with which a criterion scores."""
    torch.manual_seed(0)
    model = Plain((4, 4, 4)).eval()
    graph = prunus.trace(model, images())
    some = batches(2)

    def works(data: Any, loss_fn: Any = None) -> bool:
        try:
            prunus.score(model, graph, criterion, data, loss_fn)
        except prunus.EvidenceError:
            return False
        return True

    def detached(output: Tensor, batch: Any) -> Tensor:
        return torch.nn.functional.cross_entropy(output.detach(), batch[1])

    least = [works(None), works([x for x, _ in some]), works(some, detached), works(some)].index(True)
    words = ["nothing but the network", generator.IMAGES, generator.LOSS, generator.GRADIENTS]
    assert generator.needs(CRITERIA[criterion]) == words[least]


def bare() -> None:
    """Only a first line.

    And text over
    two lines with ``code``.
    """


def full() -> None:
    """A first line.

        score[c] = 1
          + 2

    Text.

        and = more

    When to use: always, but
    not here.
    """


def test_docstrings_in_parts(generator: ModuleType) -> None:
    assert generator.described(bare) == generator.Described(
        "Only a first line.", ("And text over two lines with `code`.",), "", ""
    )
    formula = "score[c] = 1\n  + 2"
    assert generator.described(full) == generator.Described(
        "A first line.",
        (f"```text\n{formula}\n```", "Text.", "```text\nand = more\n```"),
        f"{formula}\n\nand = more",
        "Always, but not here.",
    )


def test_measured_rows(generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are found: of the criterion and its variants, with or without deviations; without any, a page says so."""
    monkeypatch.setattr(generator, "MEASURED", tmp_path / "figures.json")
    assert generator.measured() == {}
    assert "Not measured yet." in generator.pages()["taylor.md"]
    figures = {
        "taylor": {"spearman_global": {"mean": 0.894, "std": 0.012}, "spearman_within": {"mean": 0.85}, "seconds": 0.25},
        "taylor per_example": {"spearman_global": {"mean": 0.951, "std": None}},
        "taylor_2016": {"spearman_global": {"mean": 0.79, "std": 0.02}},
    }
    (tmp_path / "figures.json").write_text(json.dumps({"criteria": figures}))
    pages = generator.pages()
    assert "| taylor | 0.89 ± 0.01 | - | 0.85 | 0.25 |" in pages["taylor.md"].splitlines()
    assert "| taylor per_example | 0.95 | - | - | - |" in pages["taylor.md"].splitlines()
    assert "| taylor_2016 | 0.79 ± 0.02 | - | - | - |" in pages["taylor_2016.md"].splitlines()
    assert "| taylor_2016 |" not in pages["taylor.md"]
    assert next(line for line in pages["README.md"].splitlines() if line.startswith("| [`taylor`]")).endswith(
        "| yes | 0.89 ± 0.01, - |"
    )
    assert "Not measured yet." in pages["l1.md"]


def test_measured_rows_as_the_laboratory_writes_them(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "MEASURED", tmp_path / "figures.json")
    ranks = {"raw": {"mean": -0.5, "std": 0.04}, "l2": {"mean": 0.7, "std": 0.1}, "within": {"mean": 0.63, "std": 0.02}}
    rows = [
        {"name": "oracle", "seconds": {"mean": 1.2, "std": None}},
        {"name": "l1", "spearman": ranks, "seconds": {"mean": 0.00123, "std": 0.0002}},
    ]
    (tmp_path / "figures.json").write_text(json.dumps({"criteria": rows}))
    pages = generator.pages()
    assert "| l1 | -0.50 ± 0.04 | 0.70 ± 0.10 | 0.63 ± 0.02 | 0.0012 ± 0.0002 |" in pages["l1.md"].splitlines()
    assert "Not measured yet." in pages["oracle.md"], "what the others are measured by"


def test_pages_of_criteria_that_are_gone_are_taken_away(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generator, "FOLDER", tmp_path / "methods")
    generator.main()
    (tmp_path / "methods" / "gone.md").write_text("old")
    (tmp_path / "methods" / "l1.md").write_text("changed")
    generator.main()
    assert {file.name: file.read_text() for file in (tmp_path / "methods").iterdir()} == generator.pages()
    assert capsys.readouterr().out.count(f"{len(CRITERIA) + 1} pages in") == 2
