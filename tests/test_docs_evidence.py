"""docs/evidence.md is what the claims' files and the figures make of it; docs/choose.md has its figures from the results."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from prunus.cli import app
from prunus.recipe_text import read_toml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evidence.md"


@pytest.fixture
def generator() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("make_evidence", ROOT / "docs" / "make_evidence.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["make_evidence"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_evidence"]


def test_the_committed_page_is_up_to_date(generator: ModuleType) -> None:
    assert PAGE.read_text(encoding="utf-8") == generator.page(), "run `make docs-evidence`"


def test_the_committed_advice_has_the_figures_of_today() -> None:
    spec = importlib.util.spec_from_file_location("make_choose", ROOT / "docs" / "make_choose.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "choose.md").read_text(encoding="utf-8") == module.page(), "run `make docs-evidence`"


def test_another_figure_is_another_verdict(generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResRep's accuracy right after conversion, made worse in a copy of the result."""
    for folder in ("claims", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data.toml").write_text("")
    claim = "resrep_lossless.toml"
    (tmp_path / "claims" / claim).write_text((ROOT / "benchmarks" / "claims" / claim).read_text())
    tree = json.loads((ROOT / "benchmarks" / "results" / "resrep.json").read_text())
    (tmp_path / "results" / "resrep.json").write_text(json.dumps(tree))
    monkeypatch.setattr(generator, "BENCHMARKS", tmp_path)
    assert "So far, of 1 claims: 1 reproduced." in generator.page()
    after = tree["rows"]["gradient resetting"]["after"]
    after["values"] = [0.9] * len(after["values"])
    (tmp_path / "results" / "resrep.json").write_text(json.dumps(tree))
    assert "So far, of 1 claims: 1 not reproduced." in generator.page()


def test_every_claim_stands_on_the_page_with_its_result_and_command() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks" / "claims").glob("*.toml"):
        assert len(re.findall(rf"\| `{path.stem}`<br>", text)) == 1
    for link in re.findall(r"\]\(\.\./(benchmarks/results/[^)]+)\)", text):
        assert (ROOT / link).is_file(), link


def test_commands_of_the_page_name_what_there_is() -> None:
    (block,) = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    claims = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks" / "claims").glob("*.toml")}
    data = read_toml(ROOT / "benchmarks" / "data.toml")
    told = CliRunner().invoke(app, ["benchmark", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    for line in block.splitlines():
        _, command, name, *options = shlex.split(line)
        assert command == "benchmark" and name in {*claims, "all", "list"}
        assert all(option in told for option in options if option.startswith("--"))
        assert all(option.partition("=")[0] in data for option in options if "=" in option)
        assert "--seeds" not in options or "{seeds}" in claims[name]
