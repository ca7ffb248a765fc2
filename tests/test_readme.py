"""Every code block of the README is run, in its order, in one folder; the two make commands as far as a test can."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from prunus.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def prunus_command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from prunus.cli import app; app(prog_name='prunus')", *args]


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {kind for kind, _ in BLOCKS} == {"sh", "python", "toml"}
    assert README.index("make demo") < README.index("make test") < README.index("import prunus")


@pytest.mark.pages
def test_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for text in blocks("python"):
        exec(compile(text, "README.md", "exec"), namespace)
    assert (tmp_path / "resnet18-small.prunus").exists()
    assert "removed == silenced: largest relative error" in capsys.readouterr().out


@pytest.mark.pages
def test_command_line_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a new one for every command would take longer than the commands."""
    monkeypatch.chdir(tmp_path)
    for text in blocks("toml"):
        (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
    _photos(tmp_path / "photos.zip")
    lines = [line for text in blocks("sh") for line in text.splitlines() if line.startswith("prunus ")]
    assert len(lines) >= 8
    for line in lines:
        quick = ["--processes", "1", "--seconds", "0.2", "--no-memory"] if line.startswith("prunus bench") else []
        done = CliRunner().invoke(app, [*shlex.split(line, comments=True)[1:], *quick])
        assert done.exit_code == 0, f"{line}\n{done.stderr}"
    assert (tmp_path / "resnet18.onnx").exists()
    assert all((tmp_path / "runs" / name / "report.html").exists() for name in ("mine", "photos"))


def _photos(path: Path) -> None:
    """Two classes that differ in colour."""
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in (("train", 24), ("test", 6)):
            for number, (name, colour) in enumerate((("cat", (200, 80, 40)), ("dog", (40, 80, 200))) * count):
                noise = Image.effect_noise((40, 36), 60).convert("RGB")
                picture = io.BytesIO()
                Image.blend(noise, Image.new("RGB", (40, 36), colour), 0.5).save(picture, "png")
                archive.writestr(f"{split}/{name}/{number}.png", picture.getvalue())


@pytest.mark.skipif(shutil.which("make") is None, reason="make isn't installed")
def test_make_commands_do_what_the_readme_says() -> None:
    lines = [line.split("#")[0].strip() for text in blocks("sh") for line in text.splitlines() if line.startswith("make ")]
    assert lines == ["make demo", "make test"]
    for line, last in (("make demo", "prunus demo"), ("make test", "pytest")):
        done = subprocess.run(
            [*line.split(), "-n", "--no-print-directory", "VENV=absent"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "-m venv" in done.stdout and "pip" in done.stdout, "a fresh machine is set up"
        assert last in done.stdout.splitlines()[-1]


@pytest.mark.pages
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    done = subprocess.run(
        prunus_command("demo"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "prunus-demo"
    result = json.loads((out / "result.json").read_text())
    assert all((out / name).stat().st_size > 0 for name in ("result.json", "report.html", "small.prunus", "small.onnx"))
    before, after = result["networks"]["before"], result["networks"]["after"]
    assert after["macs"] <= 0.4 * before["macs"]
    assert result["stages"][-1]["accuracy"] >= result["stages"][0]["accuracy"] - 0.01
    assert result["seconds"] < 120
    assert "MACs" in done.stdout and "report.html" in done.stdout
