"""Every code block of the tutorials is run, in its order, each tutorial in a folder of its own."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunus.cli import app

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorial").glob("*.md"))


def blocks(path: Path, language: str) -> list[str]:
    found: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
    assert {kind for kind, _ in found} <= {"python", "toml", "sh"}
    return [text for kind, text in found if kind == language]


@pytest.mark.pages
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_blocks(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")
    namespace: dict[str, object] = {}
    for text in blocks(path, "python"):
        exec(compile(text, path.name, "exec"), namespace)
    for text in blocks(path, "toml"):
        (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
    lines = [line for text in blocks(path, "sh") for line in text.splitlines() if line.startswith("prunus ")]
    assert lines
    for line in lines:
        result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, f"{line}\n{result.stderr}"


def test_what_the_tutorial_of_tickets_promises() -> None:
    """The links lead somewhere, and the result that it shows holds every section."""
    path = ROOT / "docs" / "tutorial" / "tickets.md"
    links = re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    assert links and all((path.parent / link).is_file() for link in links)
    result = json.loads((ROOT / "benchmarks" / "results" / "tickets.json").read_text(encoding="utf-8"))
    assert all(result[section] for section in ("lottery", "deconstruction", "supermasks", "rethinking", "claims"))
    assert len(result["recipe"]["seeds"]) >= 3 and result["core_seconds"] < 2 * 20 * 60  # twenty minutes of two cores
