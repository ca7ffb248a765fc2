"""The page on images in large files: its code is run, its recipe and commands do what it says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunus.cli import app

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.mark.pages
def test_the_page_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in blocks("python"):
        exec(compile(text, "data.md", "exec"), {})
    for text in blocks("toml"):
        (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
    commands = [line for text in blocks("sh") for line in text.splitlines()]
    assert [command.split()[1] for command in commands] == ["run", "evaluate", "score"]
    said = []
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}\n{done.stderr}"
        said.append(done.stdout)
    result = json.loads((tmp_path / "runs" / "shards" / "result.json").read_text())
    assert all(stage["count"] == 40 for stage in result["stages"]) and result["stages"][-1]["accuracy"] > 0.6
    assert "green" in json.dumps(result["data"]) and "on 40 test images" in said[1]
    assert {path.name for path in (tmp_path / "shards").glob("*.index")} == {
        "test-00.tar.index",
        *(f"train-{number:02}.tar.index" for number in range(3)),
    }
