"""``prunus search`` on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import prunus
from prunus.cli import app

pytest.importorskip("optuna")
pytest.importorskip("plotly")
MODEL = ["search", "--model", "cifar:resnet8-projection", "--data", "fake:3x8x8x4", "--images", "40", "--trials", "3"]


@pytest.fixture(autouse=True)
def small_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")


def call(*args: str) -> Result:
    return CliRunner().invoke(app, [*MODEL, *args])


def test_a_search_and_its_longer_one() -> None:
    first = call("--budget", "macs=0.6,parameters=0.8", "--limit", "layer1.*=0.25", "--tolerance", "0.03")
    assert first.exit_code == 0, first.stderr
    assert "3 trials by tpe: accuracy" in first.stdout and "written to search: search.json, search.html" in first.stdout
    result = json.loads(Path("search/search.json").read_text())
    assert [row["target"] for row in result["budget"]] == ["macs", "parameters"] and all(row["met"] for row in result["budget"])
    assert all(trial["kept"]["layer1.0.conv1"] >= 12 for trial in result["trials"])
    same = ("--budget", "macs=0.6,parameters=0.8", "--limit", "layer1.*=0.25", "--tolerance", "0.03", "--resume", "--json")
    longer = call(*same, "--trials", "5")
    assert len(json.loads(longer.stdout)["trials"]) == 5
    assert call(*same, "--seed", "1").exit_code == 2


def test_mistakes() -> None:
    for bad, code, text in (
        (("--resume",), 2, "there is no search in search to go on with"),
        (("--sampler", "best"), 2, "unknown sampler 'best'"),
        (("--budget", "macs=0.001"), 1, "can't be reached"),
        (("--limit", "layer9=0.5"), 2, "unknown group or layer in limits 'layer9'"),
        (("--storage", "sqlite:////no/such/folder/x.db"), 1, "can't open the storage sqlite:////no/such/folder/x.db"),
    ):
        result = call(*bad)
        assert result.exit_code == code and text in result.stderr.replace("\n", " ")


@pytest.mark.slow
def test_two_workers_share_the_trials() -> None:
    command = [sys.executable, "-c", "from prunus.cli import app; app()", *MODEL, "--trials", "9", "--workers", "2", "--baseline"]
    environment = {**os.environ, "PYTHONPATH": str(Path(prunus.__file__).parents[1])}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["trials"]) == len(result["baseline"]) == 9
    assert len({json.dumps(trial["fractions"]) for trial in result["trials"]}) == 9
