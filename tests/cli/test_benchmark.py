"""`prunus benchmark`: what it lists, runs, prints and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prunus.cli import app

CLAIM = """
claim = "It works."
family = "-"
paper = "-"
where = "-"
network = "-"
data = "-"
budget = "-"
command = "python benchmarks/one.py --seeds {seeds}"
result = "one.json"
expected = "-"
time = "-"
[[comparisons]]
says = "it"
value = ["shares"]
at_least = 0.5
"""
FAR = CLAIM.partition("command")[0] + 'command = "accelerate launch -m prunus run big"\nexpected = "-"\ntime = "-"\n'
NEEDY = CLAIM.replace("one.py --seeds {seeds}", "two.py --images {images}").replace("one.json", "two.json")
SCRIPT = """
import json, pathlib
pathlib.Path("benchmarks/results/one.json").write_text(json.dumps({"shares": [0.7, 0.8, 0.9]}))
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("claims", "results"):
        (tmp_path / "benchmarks" / folder).mkdir(parents=True)
    for name, text in (("one", CLAIM), ("far", FAR), ("needy", NEEDY)):
        (tmp_path / "benchmarks" / "claims" / f"{name}.toml").write_text(text)
    (tmp_path / "benchmarks" / "data.toml").write_text('images = "pictures of things"\n')
    (tmp_path / "benchmarks" / "one.py").write_text(SCRIPT)
    (tmp_path / "benchmarks" / "two.py").write_text("raise SystemExit('not to be run')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def call(*args: str) -> Result:
    return CliRunner().invoke(app, ["benchmark", *args])


def rows(result: Result) -> dict[str, list[str]]:
    """Claim -> its cells."""
    lines = [line.split("  ") for line in result.stdout.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {line[0]: line[1:] for line in cells if line and line[0] in ("one", "far", "needy")}


def test_list_runs_nothing() -> None:
    result = call("list")
    assert result.exit_code == 0, result.stderr
    assert rows(result) == {
        "far": ["not run here", "for other machines"],
        "needy": ["not run here", "no result"],
        "one": ["not run here", "no result"],
    }
    refused = call("list", "--seeds", "3")
    assert refused.exit_code == 2 and "`prunus benchmark list` runs nothing: leave out --seeds" in refused.stderr


def test_names_and_verdicts_stay_whole_at_80_columns(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "smaller_norms_are_not_less_of_anything"
    (root / "benchmarks" / "claims" / "needy.toml").rename(root / "benchmarks" / "claims" / f"{name}.toml")
    monkeypatch.setenv("COLUMNS", "80")
    (line,) = [line for line in call("list").stdout.splitlines() if name in line]
    assert [cell.strip() for cell in line.split("  ") if cell.strip()] == [name, "not run here", "no result"]


def test_a_claim_is_run_and_judged_then_left(root: Path) -> None:
    result = call("one")
    assert result.exit_code == 0, result.stderr
    assert rows(result) == {"one": ["reproduced", "3", "up to date"]}
    assert "one: it: 0.8 ± 0.1 (at least 0.5)" in result.stdout.splitlines()
    (root / "benchmarks" / "results" / "one.json").write_text('{"shares": [0.4, 0.6, 0.7]}')
    noisy = "one: not reproduced: it holds in the mean, but not beyond the noise of the runs"
    assert noisy in call("one").stdout.splitlines()
    (root / "benchmarks" / "results" / "one.json").write_text('{"shares": [0.1, 0.2, 0.3]}')
    assert rows(call("one"))["one"][0] == "not reproduced"
    assert rows(call("one", "--again"))["one"][0] == "reproduced"


def test_all_takes_options_that_some_scripts_do_not(root: Path) -> None:
    (root / "benchmarks" / "two.py").write_text(SCRIPT.replace("one.json", "two.json"))
    result = call("all", "--seeds", "3")
    assert result.exit_code == 0, result.stderr
    assert "without --seeds" not in result.stderr  # two.py isn't run without its data
    result = call("all", "--seeds", "3", "--data", "images=benchmarks")
    assert rows(result)["needy"] == ["reproduced", "3", "up to date"]
    assert "without --seeds, as their claims say: two.py (no number of seeds)" in result.stderr


def test_all_runs_what_can_be_and_says_what_was_not() -> None:
    result = call("all")
    assert result.exit_code == 0, result.stderr
    assert rows(result)["one"][0] == "reproduced" and rows(result)["needy"][0] == "not run here"
    assert "needy was not tried: it needs --data images=PATH" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("needy",), 2, "needy needs data that weren't given: --data images=PATH (pictures of things)"),
        (("needy", "--data", "images"), 2, "can't read --data 'images': write NAME=PATH"),
        (("needy", "--data", "images=nowhere"), 2, "--data images=nowhere: there is nothing at nowhere"),
        (("needy", "--data", "images=benchmarks"), 1, "needy: its script ended with code 1; it said last: not to be run"),
        (("far",), 2, "far isn't run by this command: it is for other machines: accelerate launch -m prunus run big"),
        (("onw",), 2, "unknown claim 'onw': did you mean one"),
        (("one", "--device", "cuda"), 2, "--device: what was chosen (one) takes no device"),
        (("one", "--folder", "benchmarks"), 2, "they come with the repository, not with the installed package"),
    ],
)
def test_what_it_refuses(arguments: tuple[str, ...], code: int, told: str) -> None:
    result = call(*arguments)
    assert (result.exit_code, told in " ".join(result.stderr.split())) == (code, True), result.stderr
