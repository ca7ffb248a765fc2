"""Several runs on one page: who is best for its cost, seeds together, differences, and mistakes of the command."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunus.cli import app
from prunus.errors import ExportError
from prunus.report.ladder import controls
from prunus.report.plots import figures
from prunus.report.runs import compare_runs, render_runs
from prunus.report.trade_off import best, points_of, trade_off_figure
from report.sample import sample_result

CONTROL = {"row": "scratch-b", "what": "from random weights", "epochs": 9, "macs": 1035000, "accuracy": 0.97, "seconds": 3.0}


def run(accuracy: float, macs: int, seed: int = 0, criterion: str = "taylor") -> dict[str, Any]:
    result = copy.deepcopy(sample_result())
    result["stages"][-1]["accuracy"] = accuracy
    result["networks"]["after"]["macs"] = macs
    result["request"]["criterion"] = criterion
    result["recipe"] = {"name": "x", "seed": seed, "prune": {"criterion": criterion}}
    return result


RUNS = {
    "a-0": run(0.98, 1_300_000),
    "a-1": run(0.96, 1_300_000, seed=1),
    "b": run(0.95, 650_000, criterion="l1"),
    "c": run(0.94, 1_000_000, criterion="l2"),
}


def test_points_are_the_networks_of_a_run() -> None:
    result = {**run(0.98, 1_300_000), "controls": [CONTROL, {**CONTROL, "row": "longer", "accuracy": 0.995}]}
    found = [(p["kind"], p["name"], p["accuracy"], p["macs"], p["time"]) for p in points_of(result, "mine")]
    share = pytest.approx(2.02 / 4.21)
    assert found == [
        ("full", "mine, unpruned", 0.992, 2_600_000, 1.0),
        ("pruned", "mine", 0.98, 1_300_000, share),
        ("control", "mine: scratch-b", 0.97, 1_300_000, share),
        ("control", "mine: longer", 0.995, 2_600_000, 1.0),
    ]
    other_images = {**result, "ladder": [{"split": "validation"}]}
    assert {p["kind"] for p in points_of(other_images, "mine")} == {"full", "pruned"}, "judged on other images"


def test_the_best_are_those_that_none_beats() -> None:
    points = [point for name, result in RUNS.items() for point in points_of(result, name) if point["kind"] == "pruned"]
    assert [p["name"] for p in best(points, "macs")] == ["b", "a-0"]
    figure = trade_off_figure(points, "macs")
    assert figure is not None
    line, marks = figure["data"]
    assert (line["x"], line["y"]) == ([650_000, 1_300_000], [95.0, 98.0])
    assert len(marks["x"]) == 4 and marks["customdata"][2][0] == "b"
    assert trade_off_figure(points[:1], "macs") is None


def test_seeds_of_one_recipe_stand_together() -> None:
    compared = compare_runs(RUNS, "0.1.0")
    (together,) = compared["recipes"]
    assert together["runs"] == ["a-0", "a-1"] and together["seeds"] == [0, 1]
    assert together["accuracy"] == pytest.approx({"mean": 0.97, "std": 0.0141421356})
    assert together["change"]["mean"] == pytest.approx(0.97 - 0.992)
    assert compared["differences"] == {
        "prune.criterion": {"a-0": "taylor", "a-1": "taylor", "b": "l1", "c": "l2"},
        "seed": {"a-0": 0, "a-1": 1, "b": 0, "c": 0},
    }
    text = render_runs(compared)
    assert "97.00 ± 1.41 %" in text and "Best for their MACs: b, a-0." in text
    assert "<b>taylor</b>: a-0, a-1; <b>l1</b>: b; <b>l2</b>: c" in text


def test_what_does_not_compare_is_said() -> None:
    other = run(0.9, 1_000_000)
    other["request"]["data"], other["environment"] = "folder:x", {**other["environment"], "cpu": "another"}
    doubts = compare_runs({"a": RUNS["a-0"], "b": other}, "0.1.0")["doubts"]
    assert doubts == [
        "The runs are of different data: their accuracies don't compare.",
        "Latency was measured on 2 machines: don't compare milliseconds.",
    ]


def test_names_from_files_are_escaped() -> None:
    evil = run(0.9, 1_000_000, criterion="<script>alert(1)</script>")
    text = render_runs(compare_runs({"<img src=x>": evil, "b": RUNS["b"]}, "0.1.0"))
    assert "<script>alert" not in text and "<img src=x>" not in text


def test_a_result_of_another_kind_is_an_error() -> None:
    with pytest.raises(ExportError, match=r"can't be compared: KeyError 'networks'"):
        compare_runs({"a": {}}, "0.1.0")


def test_a_run_with_controls_shows_its_trade_off() -> None:
    result = {**run(0.98, 1_300_000), "controls": [CONTROL], "ladder": []}
    assert len(figures(result)["plot-trade-off"]["data"]) == 4  # the line, and three kinds of networks
    assert 'id="plot-trade-off"' in controls(result)
    assert "plot-trade-off" not in figures(sample_result())


def test_the_command_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    for name, result in RUNS.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "result.json").write_text(json.dumps(result))
    done = CliRunner().invoke(app, ["report", "runs", "--out", "page.html"])
    assert done.exit_code == 0, done.stderr
    assert "4 runs, last epoch" in done.stdout and (tmp_path / "page.html").stat().st_size > 1e6
    told = json.loads(CliRunner().invoke(app, ["report", "runs/a-0", "runs/b", "--json"]).stdout)
    assert [row["run"] for row in told["runs"]] == ["a-0", "b"]


@pytest.mark.parametrize(
    ("given", "code", "text"),
    [
        (["absent"], 1, "absent isn't there; give folders of finished runs"),
        (["empty"], 1, "empty holds no run"),
        (["begun"], 1, "begun holds a run that isn't finished: go on with `prunus run ... --resume`"),
        (["broken"], 1, "result.json is damaged"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], code: int, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "begun", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "begun" / "recipe.json").write_text("{}")
    (tmp_path / "broken" / "result.json").write_text('{"name": ')
    done = CliRunner().invoke(app, ["report", *given])
    assert done.exit_code == code and text in re.sub(r"\s+", " ", done.stderr)
    assert not (tmp_path / "runs.html").exists()
