"""`prunus score` and `prunus compare`: what they print and write, and one readable paragraph for every mistake."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import prunus
from prunus.cli import app
from prunus.sources import load_model

NETWORK = """
from torch import nn
from prunus.surgery import randomise

def small(num_classes=3, norms=False):
    norm = nn.BatchNorm2d if norms else nn.Identity
    body = [nn.Conv2d(3, 6, 3), norm(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, num_classes))

def frozen(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
DATA = ("--data", "fake:3x10x10x3")
QUICK = ("--images", "16", "--batch-size", "8", "--test-images", "20", "--seeds", "2")


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")
    (tmp_path / "nets.py").write_text(NETWORK)
    return tmp_path


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_score_prints_a_table_of_the_groups(nets: Path) -> None:
    result = call("score", "--model", "nets.py:small", "--input", "3x10x10", "--criterion", "l1")
    assert result.exit_code == 0, result.stderr
    model = load_model("nets.py:small")
    scores = prunus.score(model, prunus.trace(model, torch.randn(1, 3, 10, 10)), "l1").by_group
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("│ 3 ")]
    _, name, channels, lowest, mean, highest, lowest_channels, _ = (part.strip() for part in line.split("│"))
    assert (name, channels) == ("3", "8")
    assert (lowest, mean, highest) == tuple(f"{float(v):.4g}" for v in (scores["3"].min(), scores["3"].mean(), scores["3"].max()))
    assert lowest_channels == ", ".join(map(str, scores["3"].argsort()[:5].tolist()))


def test_score_writes_csv_json_and_a_plot(nets: Path) -> None:
    args = ("score", "--model", "nets.py:small", *DATA, "--images", "16", "--criterion", "taylor", "--option", "per_example=true")
    for suffix in ("csv", "json", "html"):
        result = call(*args, "--out", f"scores/found.{suffix}")
        assert result.exit_code == 0 and f"written: scores/found.{suffix}" in result.stdout, result.stderr
    tree = json.loads(Path("scores/found.json").read_text())
    assert (tree["criterion"], tree["options"], tree["comparable"]) == ("taylor", {"per_example": True}, True)
    with Path("scores/found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["group"], int(r["channel"])) for r in rows] == [("0", c) for c in range(6)] + [("3", c) for c in range(8)]
    assert [float(r["score"]) for r in rows] == tree["scores"]["0"] + tree["scores"]["3"]
    assert len(set(tree["scores"]["3"])) > 1
    page = Path("scores/found.html").read_text()
    assert '<div class="plot" id="plot-scores"' in page and "Scores of nets.py:small" in page
    again = json.loads(call(*args, "--json").stdout)
    assert again["scores"] == tree["scores"]
    other = json.loads(call(*args, "--seed", "1", "--json").stdout)
    assert other["scores"] != tree["scores"]


def test_compare_writes_json_and_a_page_and_goes_on(nets: Path) -> None:
    args = ("compare", "--model", "nets.py:small", *DATA, *QUICK, "--shares", "50", "--steps", "2", "--out", "lab")
    result = call(*args, "--criteria", "l1,taylor,bn_scale")
    assert result.exit_code == 0, result.stderr
    tree = json.loads(Path("lab/comparison.json").read_text())
    assert [r["name"] for r in tree["criteria"]] == ["oracle", "l1", "taylor", "bn_scale"] and tree["seeds"] == [0, 1]
    text = " ".join(result.stdout.split())
    assert "bn_scale: not applicable: criterion bn_scale can score none of the 2 groups" in text
    mean = tree["criteria"][1]["spearman"]["raw"]["mean"]
    (line,) = [line for line in result.stdout.splitlines() if line.startswith(" l1 ")]
    assert line.split()[1] == f"{mean:.2f}".replace("-", "\u2212")
    assert "test accuracy with 50% of the channels removed" in text and "written to lab: comparison.json" in text
    page = Path("lab/comparison.html").read_text()
    assert all(f'id="plot-{name}"' in page for name in ("agreement", "layers", "correlations-l2", "removal-fine-tuned"))
    before = {file: file.stat().st_mtime_ns for file in Path("lab/stages").iterdir()}
    again = json.loads(call(*args, "--criteria", "l1,taylor,bn_scale,l2", "--json").stdout)
    assert [r["name"] for r in again["criteria"]] == ["oracle", "l1", "taylor", "bn_scale", "l2"]
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())


def test_compare_without_removal_on_a_sample(nets: Path) -> None:
    args = ("--no-removal", "--channels", "9", "--criteria", "l1,random", "--argument", "norms=true", "--json")
    tree = json.loads(call("compare", "--model", "nets.py:small", *DATA, *QUICK, *args).stdout)
    assert tree["removal"] is None and tree["network"]["sampled"] == 9 and Path("comparison/comparison.html").exists()


def test_a_stopped_comparison_says_how_to_go_on(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunus.laboratory.parts.score_by", stop)
    result = call("compare", "--model", "nets.py:small", *DATA, *QUICK, "--criteria", "l1", "--out", "lab")
    assert result.exit_code == 130 and "stopped; the same command continues the comparison in lab" in result.stderr
    assert sorted(file.name for file in Path("lab/stages").iterdir()) == ["seed-0-network.json", "seed-0-oracle.json"]


def test_untrained_weights_are_told(nets: Path) -> None:
    text = (
        "cifar:resnet20 has random weights, so its scores say nothing about a trained network: give trained ones with --weights"
    )
    result = call("score", "--model", "cifar:resnet20", "--criterion", "l1")
    assert result.exit_code == 0 and text in " ".join(result.stderr.split())
    assert "random weights" not in call("score", "--model", "nets.py:small", "--input", "3x10x10", "--criterion", "l1").stderr


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["score", "--criterion", "l7"], 2, "unknown criterion 'l7': did you mean"),
        (["score", "--criterion", "taylor"], 1, "criterion taylor needs data: give --data, one of digits, folder:PATH"),
        (
            ["score", "--criterion", "l1", "--out", "x.txt"],
            2,
            "can't tell what to write to x.txt: its name must end in .csv, .json",
        ),
        (["score", "--criterion", "l1", "--option", "members"], 2, "can't read the option 'members': write NAME=VALUE"),
        (
            ["score", "--criterion", "l1", "--option", "member=max"],
            2,
            "unknown option of criterion l1 'member': did you mean members",
        ),
        (["score", "--criterion", "l1", *DATA, "--input", "3x8x8"], 2, "leave out --data"),
        (["compare", *DATA, "--criteria", "l1,tailor"], 2, "unknown criterion 'tailor': did you mean taylor"),
        (["compare", *DATA, "--criteria", "l1(members=max"], 2, "a bracket is missing"),
        (["compare", *DATA, "--shares", "0,50"], 2, "write percent between 0 and 100 by comma"),
        (["compare", *DATA, "--shares", "half"], 2, "write percent between 0 and 100 by comma"),
        (["compare", *DATA, *QUICK, "--channels", "1", "--criteria", "l1"], 2, "can't hold one of each of the 2 groups"),
        (["compare", "--data", "digit"], 2, "unknown data source 'digit': did you mean digits"),
        (["compare"], 2, "--data"),
    ],
)
def test_mistakes_end_in_one_paragraph(nets: Path, args: list[str], code: int, text: str) -> None:
    result = call(args[0], "--model", "nets.py:small", *args[1:])
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert text in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("args", [["score", "--criterion", "l1"], ["compare", "--criteria", "l1"]])
def test_a_frozen_network_is_refused(nets: Path, args: list[str]) -> None:
    result = call(args[0], "--model", "nets.py:frozen", *DATA, *args[1:])
    assert result.exit_code == 1 and "groups are frozen, so there is nothing to" in " ".join(result.stderr.split())
