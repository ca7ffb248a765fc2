"""The profile of a network on a machine that is made up: times, rates, what layers wait for, table and page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from prunus.budgets import Timing
from prunus.cli import app
from prunus.cli.latency import latency_notes, latency_table
from prunus.export.layer_timing import LayerShape
from prunus.export.runtimes import Latency
from prunus.laboratory import latency as module
from prunus.laboratory.latency import bound, machine_peaks, profile_latency
from prunus.report.latency import curves_figure, render_latency, roofline_figure
from report.hostile import texts_that_stayed_text


class Machine:
    """A microsecond for 1,000 multiply-adds, and a whole network of 2 ms."""

    def layer(self, shape: LayerShape, widths: Sequence[tuple[int, int]]) -> list[float]:
        return [1e-6 * shape.work(*pair)[0] for pair in widths]

    def networks(self, networks: Mapping[str, nn.Module]) -> dict[str, Latency]:
        return {name: Latency(2.0, 1.9, 2.2, 30, 1, 1, "fake") for name in networks}


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two 3 x 3 convolutions of 8 and 16 channels on 6 x 6 pixels without a margin, then 4 x 4, and a linear layer."""
    pytest.importorskip("plotly")
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")
    monkeypatch.setattr(module, "machine_peaks", lambda timing: {"macs_per_second": 4e9, "bytes_per_second": 4e9})
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)]
    asked = {"timing": Timing(cache=tmp_path), "about": {"model": "<mine>"}, "timer": Machine()}
    return profile_latency(nn.Sequential(*layers), torch.randn(1, 3, 8, 8), tmp_path / "out", **asked)


def test_times_and_rates(profile: dict[str, Any], tmp_path: Path) -> None:
    """36 x 27 x 8 = 7,776, 16 x 72 x 16 = 18,432 and 1,280 multiply-adds at 1e9 a second: a quarter of the peak."""
    rows = profile["layers"]
    assert [row["macs"] for row in rows] == [7776, 18432, 1280]
    assert [row["ms"] for row in rows] == pytest.approx([0.007776, 0.018432, 0.00128])
    assert [row["macs_per_second"] for row in rows] == pytest.approx([1e9] * 3)
    assert rows[2]["bytes"] == 4 * (256 + 256 * 5 + 5)
    assert rows[0]["of_peak"]["macs_per_second"] == pytest.approx(0.25)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["bound"] for row in rows] == ["arithmetic", "arithmetic", "memory"]
    assert dict(map(tuple, rows[1]["curve"]))[0.5] == pytest.approx(0.25 * 0.018432)
    assert profile["network"]["latency_ms"] == 2.0 and profile["multiple"] == 1
    assert json.loads((tmp_path / "out" / "latency.json").read_text()) == profile
    assert "&lt;mine&gt;" in (tmp_path / "out" / "latency.html").read_text()


@pytest.mark.parametrize(
    ("arithmetic", "memory", "expected"),
    [(0.9, 0.3, "arithmetic"), (0.3, 0.6, "memory"), (0.24, 0.2, "neither"), (0.25, 0.1, "arithmetic")],
)
def test_what_a_layer_waits_for(arithmetic: float, memory: float, expected: str) -> None:
    assert bound(arithmetic, memory) == expected


def test_figures_and_page(profile: dict[str, Any]) -> None:
    curves = curves_figure(profile)["data"]
    assert [trace["name"] for trace in curves] == ["2", "0", "5"]  # the heaviest first
    assert curves[0]["x"][-1] == 100 and curves[0]["y"][-1] == pytest.approx(0.018432)
    roof, arithmetic, memory, neither = roofline_figure(profile)["data"]
    assert roof["x"][1] == 1.0 and roof["y"][1:] == [4.0, 4.0]
    assert (len(arithmetic["x"]), len(memory["x"]), len(neither["x"])) == (2, 1, 0)
    text = render_latency(profile)
    assert "Latency of &lt;mine&gt;" in text and "2.00 ms on eager, 1 thread, batch 1" in text
    assert texts_that_stayed_text(render_latency, profile) > 30
    assert "bound by" in text and "memory: what is read and written" in text


def test_table_and_notes(profile: dict[str, Any]) -> None:
    table = latency_table(profile)
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["0", "2", "5"] and cells[1] == ["3 > 8", "8 > 16", "256 > 5"]
    assert cells[2] == ["0.008", "0.018", "0.001"] and cells[-1] == ["arithmetic", "arithmetic", "memory"]
    notes = latency_notes(profile)
    assert "measured as 4 billion multiply-adds and 4 GB per second" in notes[0]
    assert notes[1] == "all layers 0.0275 ms of the network's 2 ms; no multiple of widths is faster here"


def test_peaks_are_of_this_machine() -> None:
    found = machine_peaks(Timing())
    assert 1e8 < found["macs_per_second"] < 1e14 and 1e7 < found["bytes_per_second"] < 1e13


def test_mistakes_on_the_command_line() -> None:
    result = CliRunner().invoke(app, ["latency", "cifar:resnet20", "--runtime", "eagre"])
    assert result.exit_code == 2 and "unknown runtime 'eagre': did you mean eager?" in result.stderr
    result = CliRunner().invoke(app, ["latency", "cifar:resnet20", "--runtime", "onnxruntime", "--dtype", "bfloat16"])
    assert result.exit_code == 2 and "onnxruntime runs the exported network in float32" in " ".join(result.stderr.split())
    result = CliRunner().invoke(app, ["prune", "cifar:resnet20", "--budget", "latency=0.5@eager", "--multiple-of", "x"])
    assert result.exit_code == 2 and "can't read --multiple-of 'x': write a number of channels, or auto" in result.stderr
