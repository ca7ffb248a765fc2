"""docs/bench.md and the example for continuous integration are run as they are written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import prunus
from prunus.cli import app

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "bench.md").read_text(encoding="utf-8")
QUICK = ["--processes", "1", "--seconds", "0.2", "--no-memory"]
"""The last of an option that stands twice holds."""
NETWORK = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    layers = []
    for reads, writes in ((3, 64), (64, 64), (64, 64), (64, 10)):
        layers += [nn.Conv2d(reads, writes, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.mark.pages
@pytest.mark.filterwarnings("ignore::prunus.PrunusWarning")
def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (python,) = blocks("python")
    exec(compile(python, "bench.md", "exec"), {})
    assert "eager, 1 thread, batch 1" in capsys.readouterr().out
    prune = "prune cifar:resnet20 --budget macs=0.3 --allocator uniform --out small.prunus"
    assert CliRunner().invoke(app, prune.split()).exit_code == 0
    lines = [line for text in blocks("sh") for line in text.splitlines()]
    assert len(lines) == 2
    for line in lines:
        done = CliRunner().invoke(app, [*shlex.split(line)[1:], *QUICK])
        assert done.exit_code == 0, f"{line}\n{done.stderr}"
    result = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert [row["compared"]["small"]["ideal"] for row in result["cases"]] == [pytest.approx(1 / 0.3, rel=0.03)] * 2
    assert result["cases"][0]["compared"]["small"]["speed_up"] > 1.05
    assert [row["name"] for row in result["networks"]] == ["cifar:resnet20", "small"]


def test_options_of_the_page_exist() -> None:
    told = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    named = set(re.findall(r"--[a-z][\w-]+", PAGE)) - {"--budget"}
    assert named and all(option in told for option in named)


@pytest.mark.pages
@pytest.mark.filterwarnings("ignore::prunus.PrunusWarning")
def test_the_example_for_continuous_integration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines pass on a tiny network, and the first fails once the budget is too small for it."""
    pytest.importorskip("onnxruntime")
    text = (DOCS / "examples" / "latency_budget.yml").read_text(encoding="utf-8")
    lines = [line for line in re.findall(r"^ +(?:- )?run: (.+)$", text, re.M) if line.startswith("prunus ")]
    assert len(lines) == 2 and "pip install" in text
    monkeypatch.chdir(tmp_path)
    Path("network.py").write_text(NETWORK, encoding="utf-8")
    names: dict[str, object] = {}
    exec(NETWORK, names)
    model: nn.Module = names["network"]()  # type: ignore[operator]
    result = prunus.prune(model, torch.randn(1, 3, 32, 32), prunus.Budget(macs=0.2), allocator="uniform")
    prunus.save(result.model, result.record, "small.prunus")
    for line in lines:
        done = CliRunner().invoke(app, [*shlex.split(line)[1:], *QUICK])
        assert done.exit_code == 0, f"{line}\n{done.stderr}"
    done = CliRunner().invoke(app, [*shlex.split(lines[0].replace("--max-ms 12", "--max-ms 0.001"))[1:], *QUICK])
    assert done.exit_code == 1
    assert re.search(r"error: small takes [\d.]+ ms .* more than the 0\.001 ms allowed", done.stderr)
