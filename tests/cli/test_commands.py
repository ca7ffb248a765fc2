"""The command line: output, exit codes, and one readable paragraph for every mistake."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import prunus
from prunus.cli import app
from prunus.sources import load_model

NETWORK = """
import torch
from torch import nn

class Outputs(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, num_classes, 1)
    def forward(self, x):
        return self.head(self.conv(x).flip(1)[:, torch.arange(8)]).mean((2, 3))

def frozen(num_classes=3):
    return Outputs(num_classes)

def small(num_classes=3, width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(16, num_classes))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "nets.py").write_text(NETWORK)
    return tmp_path


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_inspect_shows_groups_reasons_and_costs(nets: Path) -> None:
    result = call("inspect", "cifar:resnet20")
    assert result.exit_code == 0
    assert "per input: 40,551,040 MACs" in result.stdout and "269,722 parameters" in result.stdout
    assert "padded with constant channels" in result.stdout and "cifar.py:" in result.stdout
    assert "9 of 17 groups are prunable" in result.stdout


def test_inspect_says_what_divided_channels_are(nets: Path) -> None:
    layers = "nn.Conv2d(3, 24, 1), nn.GroupNorm(4, 24), nn.Conv2d(24, 2, 1)"
    (nets / "divided.py").write_text(f"from torch import nn\n\ndef net():\n    return nn.Sequential({layers})\n")
    shown = call("inspect", "divided.py:net", "--input", "3x8x8").stdout
    assert "6 x 4" in shown and "6 x 4: each of 6 goes as 4 channels, one in every group or head" in shown


def test_inspect_json(nets: Path) -> None:
    tree = json.loads(call("inspect", "nets.py:small", "--input", "3x8x8", "--json").stdout)
    assert [(g["name"], g["channels"], g["frozen_because"]) for g in tree["groups"]] == [
        ("0", 8, None),
        ("2", 16, None),
        ("6", 3, "it is the network's output"),
    ]
    assert tree["macs"] == 6 * 6 * 8 * 27 + 4 * 4 * 16 * 72 + 48
    assert {"parameter": "2.weight", "axis": 1, "role": "reads"} in tree["groups"][0]["members"]


def test_prune_writes_a_network_that_loads(nets: Path) -> None:
    result = call(
        "prune",
        "nets.py:small",
        "--argument",
        "width=32",
        "--input",
        "3x8x8",
        "--budget",
        "macs=0.5",
        "--tolerance",
        "0.05",
        "--out",
        "small.prunus",
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    tree = json.loads(result.stdout)
    assert tree["files"] == ["small.prunus"] and tree["max_error"] < 1e-9
    (row,) = tree["budget"]
    assert row["met"] and row["achieved"] <= row["requested"]
    small = prunus.load("small.prunus", load_model("nets.py:small", arguments={"width": 32}))
    assert prunus.trace(small, torch.randn(1, 3, 8, 8)).cost().macs == row["achieved"]
    assert tree["kept"] == {"0": small.get_submodule("0").out_channels, "2": small.get_submodule("2").out_channels}


def test_prune_with_data_and_onnx(nets: Path) -> None:
    args = ["--data", "fake:3x10x10x3", "--criterion", "taylor", "--batches", "2", "--tolerance", "0.1", "--onnx", "small.onnx"]
    result = call("prune", "nets.py:small", "--budget", "parameters=0.6", *args)
    assert result.exit_code == 0, result.stderr
    assert "removed == silenced: largest relative error" in result.stdout
    assert "written: small.prunus, small.onnx" in result.stdout and (nets / "small.onnx").stat().st_size > 0


def test_prune_with_limits_and_options_of_the_allocator(nets: Path) -> None:
    """Of the first layer's 8 channels at most a quarter goes, of the second's 16 eight stay."""
    args = ("prune", "nets.py:small", "--input", "3x8x8", "--tolerance", "0.3", "--json")
    limits = ("--limit", "0=0.25", "--limit", "2 = 8")
    found = json.loads(call(*args, "--budget", "macs=0.5", *limits).stdout)
    assert found["kept"]["0"] >= 6 and found["kept"]["2"] >= 8
    (row,) = json.loads(call(*args, "--budget", "macs=0.5", *limits, "--dry-run").stdout)
    assert row["smallest"] == 6 * 3 * 9 * 36 + 8 * 6 * 9 * 16 + 3 * 8
    one = call(*args, "--budget", "macs=0.6", "--allocator", "per_layer", "--allocator-option", 'ratios={"2": 1.0}')
    assert json.loads(one.stdout)["kept"] == {"2": json.loads(one.stdout)["kept"]["2"]}
    for bad, text in (
        (("--limit", "9=0.5"), "unknown group or layer in limits '9'"),
        (("--limit", "0=most"), "can't read limit '0=most'"),
        (("--allocator-option", "ratios"), "can't read the option 'ratios': write NAME=VALUE"),
        (("--allocator-option", "shares=3"), "unknown option of allocator auto 'shares': it takes none"),
    ):
        result = call(*args, "--budget", "macs=0.5", *bad)
        assert result.exit_code == 2 and text in result.stderr


def test_prune_with_compensation(nets: Path) -> None:
    args = ("prune", "nets.py:small", "--budget", "macs=0.5", "--data", "fake:3x10x10x3", "--tolerance", "0.2")
    assert call(*args, "--out", "plain.prunus").exit_code == 0
    result = call(*args, "--compensate", "mean", "--out", "filled.prunus")
    assert result.exit_code == 0, result.stderr
    assert "exactly compensated: 2 layers" in result.stdout
    plain, filled = (prunus.load(name, load_model("nets.py:small", num_classes=3)) for name in ("plain.prunus", "filled.prunus"))
    assert torch.equal(plain[2].weight, filled[2].weight) and not torch.equal(plain[2].bias, filled[2].bias)
    bad = call("prune", "nets.py:small", "--budget", "macs=0.5", "--input", "3x8x8", "--compensate", "mean")
    assert bad.exit_code == 1 and 'compensate="mean" measures mean activations: give batches' in bad.stderr


def test_evaluate_full_and_pruned(nets: Path) -> None:
    call("prune", "nets.py:small", "--input", "3x10x10", "--budget", "macs=0.5", "--tolerance", "0.2")
    full = json.loads(call("evaluate", "nets.py:small", "--data", "fake:3x10x10x3", "--json").stdout)
    assert full["count"] > 0 and 0 <= full["accuracy"] <= 1
    pruned = call("evaluate", "nets.py:small", "--data", "fake:3x10x10x3", "--pruned", "small.prunus")
    assert pruned.exit_code == 0 and f"on {full['count']} test images" in pruned.stdout


def test_methods_lists_the_table(nets: Path) -> None:
    rows = {row["name"]: row for row in json.loads(call("methods", "--json").stdout)}
    assert {"slimming", "ista", "resrep", "taylor"} <= rows.keys()
    assert rows["resrep"]["needs"] == "batch norms directly behind convolutions"
    assert rows["resrep"]["options"]["interval"] == "a whole number from 1 up"
    assert rows["resrep"]["presets"]["short"]["strength"] == 1e-3
    assert "paper_2016" in rows["taylor"]["presets"]
    assert "Slimming" in call("methods").stdout


def test_criteria_lists_the_table(nets: Path) -> None:
    rows = json.loads(call("criteria", "--json").stdout)
    assert [row["name"] for row in rows] == list(prunus.CRITERIA)
    assert next(row for row in rows if row["name"] == "taylor")["options"] == [
        "division",
        "macs_penalty",
        "normalisation",
        "on",
        "per_example",
    ]
    for command in ("criteria", "methods"):
        shown = call(command).stdout
        assert "Molchanov" in shown and "``" not in shown


def test_the_package_runs_as_a_program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["prunus", "recipes"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("prunus", run_name="__main__")
    assert ended.value.code == 0
    assert "cats_dogs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["inspect", "torchvision:resnet19"], 2, "unknown model 'torchvision:resnet19': did you mean torchvision:resnet18"),
        (["inspect", "nets.py:smal"], 2, "small"),
        (["inspect", "nets.py:small", "--input", "3xax8"], 2, "write the shape of one input, e.g. 3x224x224"),
        (["inspect", "nets.py:small", "--keep", "conv*"], 2, "selector in keep 'conv*'"),
        (["inspect", "nets.py:small", "--mixing", "maybe"], 2, "value of mixing 'maybe'"),
        (["inspect", "nets.py:small", "--argument", "width"], 2, "write NAME=VALUE"),
        (["inspect", "nets.py:small", "--input", "1x8x8"], 1, "the forward pass in evaluation mode fails in `0`"),
        (["prune", "nets.py:small", "--budget", "macs=0"], 2, "budget macs=0 must be above zero"),
        (["prune", "nets.py:small", "--budget", "macs=-0.5"], 2, "fraction to keep, in (0, 1]"),
        (["prune", "nets.py:small", "--budget", "half"], 2, "write TARGET=AMOUNT"),
        (["prune", "nets.py:small", "--budget", "macs=1.0"], 1, "already meets the budget"),
        (["prune", "nets.py:small", "--budget", "macs=0.001"], 1, "can't be reached"),
        (["prune", "nets.py:small", "--budget", "macs=0.5", "--criterion", "l7"], 2, "unknown criterion 'l7': did you mean"),
        (
            ["prune", "nets.py:small", "--budget", "macs=0.5", "--allocator", "globl"],
            2,
            "unknown allocator 'globl': did you mean global or global_per_cost?",
        ),
        (["prune", "nets.py:small", "--budget", "macs=0.5", "--criterion", "taylor"], 1, "criterion taylor needs data"),
        (["prune", "nets.py:frozen", "--budget", "macs=0.5"], 1, "nothing can be pruned"),
        (["prune", "nets.py:small"], 2, "--budget"),
        (["run", "absent.toml"], 2, "there is no recipe at absent.toml"),
        (["evaluate", "nets.py:small", "--data", "digit"], 2, "digits"),
        (
            ["evaluate", "nets.py:small", "--data", "fake:3x8x8x3", "--pruned", "absent.prunus"],
            1,
            "there is no file absent.prunus",
        ),
        (["evaluate", "nets.py:small", "--data", "fake:3x8x8x3", "--weights", "nets.py"], 1, "nets.py"),
        (["prune", "nets.py:small", "--budget", "macs=0.5", "--data", "digits", "--input", "3x8x8"], 2, "leave out --data"),
        (["prune", "nets.py:small", "--budget", "macs=0.5", "--image-size", "8"], 2, "give the shape with --input"),
        (["evaluate", "nets.py:small", "--data", "digits"], 1, "do the network and the data fit each other?"),
        (["evaluate", "nets.py:small", "--data", "digits", "--batch-size", "0"], 2, "--batch-size"),
        (["prun"], 2, "prun"),
    ],
)
def test_mistakes_end_in_one_paragraph(nets: Path, args: list[str], code: int, text: str) -> None:
    result = call(*args)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert text in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_pruned_file_of_another_network_is_refused(nets: Path) -> None:
    call("prune", "nets.py:small", "--input", "3x10x10", "--budget", "macs=0.5", "--tolerance", "0.2")
    result = call("evaluate", "cifar:resnet20", "--data", "fake:3x10x10x3", "--pruned", "small.prunus")
    assert result.exit_code == 1 and "of another architecture" in result.stderr
    Path("small.prunus").write_bytes(Path("small.prunus").read_bytes()[:200])
    result = call("evaluate", "nets.py:small", "--data", "fake:3x10x10x3", "--pruned", "small.prunus")
    assert result.exit_code == 1 and "truncated or not a file that prunus.save wrote" in result.stderr


def test_run_prints_a_summary_and_takes_settings(nets: Path) -> None:
    Path("recipe.toml").write_text(
        '[model]\nsource = "nets.py:small"\n[data]\nsource = "fake:3x10x10x3"\n[recover]\nepochs = 1\n'
    )
    settings = [
        "--set",
        "prune.criterion=l1",
        "--set",
        "prune.tolerance=0.2",
        "--set",
        "export.onnx=false",
        "--set",
        "export.latency_runs=3",
    ]
    result = call("run", "recipe.toml", *settings, "--set", "name=tried")
    assert result.exit_code == 0, result.stderr
    assert "removed == silenced" in result.stdout and "MACs" in result.stdout
    found = json.loads(Path("runs/tried/result.json").read_text())
    assert found["request"]["criterion"] == "l1" and found["recipe"]["export"]["onnx"] is False
    bad = call("run", "recipe.toml", "--set", "prune.critrion=l1")
    assert bad.exit_code == 2 and "unknown field 'prune.critrion': did you mean prune.criterion" in bad.stderr


def test_a_dry_run_shows_how_far_the_budget_can_go_and_writes_nothing(nets: Path) -> None:
    args = ("prune", "nets.py:small", "--input", "3x8x8", "--dry-run")
    (row,) = json.loads(call(*args, "--budget", "macs=0.5", "--json").stdout)
    assert row["target"] == "macs" and row["reachable"] and row["smallest"] < row["asked"] == row["full"] / 2
    shown = call(*args, "--budget", "macs=0.5").stdout
    assert "reachable" in shown and f"{row['smallest']:,.0f}" in shown
    beyond = call(*args, "--budget", "macs=0.001")
    assert beyond.exit_code == 1 and "out of reach" in beyond.stdout and "Most of it is held by" in beyond.stderr
    assert not (nets / "small.prunus").exists()
