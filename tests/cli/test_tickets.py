"""`prunus ticket`: what it prints and writes, how it goes on, and one readable paragraph for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prunus.cli import app
from prunus.laboratory.tickets.lottery import Lottery

RECIPE = """
name = "small"
seeds = [0, 1]
[networks.dense]
model = "mlp:10"
epochs = 1
train_limit = 120
[lottery]
networks = ["dense"]
rounds = 1
rates = 0.9
"""
CALL = ("ticket", "small.toml", "--processes", "1")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")
    Path("small.toml").write_text(RECIPE)


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_a_laboratory_is_printed_and_written() -> None:
    result = call(*CALL)
    assert result.exit_code == 0, result.stderr
    assert "written to runs/small: tickets.json, tickets.html" in result.stdout
    tree = json.loads(Path("runs/small/tickets.json").read_text())
    mean = 100 * tree["claims"][0]["difference"]["mean"]
    assert f"{abs(mean):.1f} points" in result.stdout and tree["claims"][0]["verdict"] in result.stdout
    assert 'id="plot-lottery-0-accuracy"' in Path("runs/small/tickets.html").read_text()
    again = json.loads(call(*CALL, "--set", "lottery.rounds=1", "--json").stdout)
    assert again["lottery"] == tree["lottery"]


def test_a_stopped_one_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Lottery, "_round", stop)
    result = call(*CALL, "--out", "here")
    assert result.exit_code == 130 and "the same command continues the laboratory in here" in result.stderr


def test_recipes_are_shown_and_mistakes_told() -> None:
    shown = call("ticket", "--show").stdout
    assert shown.startswith("# The literature's debate") and "[rethinking]" in shown
    result = call("ticket", "digit")
    assert result.exit_code == 2 and "unknown recipe of tickets 'digit': did you mean digits?" in result.stderr
    result = call(*CALL, "--set", "lottery.rounds=0")
    assert result.exit_code == 2 and "lottery.rounds: Input should be greater than or equal to 1" in result.stderr
    Path("small.toml").write_text(RECIPE.replace("mlp:10", "mlp:x"))
    result = call(*CALL)
    assert result.exit_code == 2 and "can't read the network 'mlp:x'" in result.stderr
