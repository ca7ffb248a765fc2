"""`prunus sensitivity`: what it prints and writes, how it goes on, and one readable paragraph for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prunus.cli import app

NETWORK = """
from torch import nn

def small(num_classes=3):
    body = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, num_classes))

def frozen(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
SCAN = ("sensitivity", "--model", "nets.py:small", "--data", "fake:3x10x10x3", "--images", "40", "--shares", "20,50")


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")
    (tmp_path / "nets.py").write_text(NETWORK)


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_a_scan_is_printed_and_written() -> None:
    result = call(*SCAN, "--out", "scan")
    assert result.exit_code == 0, result.stderr
    tree = json.loads(Path("scan/sensitivity.json").read_text())
    assert [(p["group"], p["removed"]) for p in tree["points"]] == [("", 0), ("0", 1), ("0", 3), ("2", 1), ("2", 4)]
    assert tree["network"]["images"] == 40 and tree["settings"]["shares"] == [0.2, 0.5]
    text = " ".join(result.stdout.split())
    assert f"accuracy of the whole network {tree['network']['accuracy']:.1%} on 40 validation images" in text
    assert "written to scan: sensitivity.json, sensitivity.html" in text
    for group in tree["groups"][:2]:
        (line,) = [line for line in result.stdout.splitlines() if line.split()[:1] == [group["name"]]]
        share = "none" if group["largest"] is None else f"{group['largest']['share']:.0%}"
        assert line.split()[:3] == [group["name"], str(group["channels"]), share]
    assert any(group["largest"] for group in tree["groups"])
    assert 'id="plot-sensitivity"' in Path("scan/sensitivity.html").read_text()
    before = {file: file.stat().st_mtime_ns for file in Path("scan/stages").glob("point-*")}
    assert len(before) == 5 and json.loads(call(*SCAN, "--out", "scan", "--json").stdout) == tree
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())


def test_a_stopped_scan_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = call(*SCAN, "--out", "whole", "--json").stdout

    def stop(text: str) -> None:
        if text.startswith("3 of 5"):
            raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr("prunus.cli.sensitivity.announcer", lambda: stop)
        result = call(*SCAN, "--out", "scan")
    assert result.exit_code == 130 and "stopped; the same command continues the scan in scan" in result.stderr
    assert len(list(Path("scan/stages").glob("point-*.json"))) == 2
    assert call(*SCAN, "--out", "scan", "--json").stdout == whole
    assert Path("scan/sensitivity.json").read_bytes() == Path("whole/sensitivity.json").read_bytes()


def test_another_criterion_with_its_options_on_training_images() -> None:
    args = ("--criterion", "taylor", "--option", "per_example=true", "--scoring-images", "16", "--split", "training", "--json")
    tree = json.loads(call(*SCAN, *args).stdout)
    assert (tree["criterion"], tree["settings"]["options"]) == ("taylor", {"per_example": True})
    assert tree["network"]["split"] == "training" and Path("sensitivity/sensitivity.json").exists()


def test_untrained_weights_are_told() -> None:
    result = call("sensitivity", "--model", "cifar:resnet20", "--data", "fake:3x8x8x3", "--keep", "*")
    assert result.exit_code == 1 and "cifar:resnet20 has random weights" in " ".join(result.stderr.split())
    assert "groups are frozen, so there is nothing to scan" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["--shares", "0,50"], 2, "write percent between 0 and 100 by comma"),
        (["--criterion", "l7"], 2, "unknown criterion 'l7': did you mean"),
        (["--option", "member=max"], 2, "unknown option of criterion l1 'member': did you mean members"),
        (["--split", "test"], 2, "split 'test' is none of validation and training: a scan never looks at test images"),
        (["--data", "digit"], 2, "unknown data source 'digit': did you mean digits"),
        (["--shares", "1"], 1, "there is nothing to scan: none of the 2 groups that may be pruned can lose one of these shares"),
        (["--model", "nets.py:frozen"], 1, "groups are frozen, so there is nothing to scan"),
    ],
)
def test_mistakes_end_in_one_paragraph(args: list[str], code: int, text: str) -> None:
    result = call(*SCAN, *args)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert text in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
