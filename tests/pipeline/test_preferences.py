"""The gallery of a run that prunes by functionality: what it counts, and that recovery is what changed the patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus.config import parse_recipe
from prunus.pipeline.preferences import kept_channels
from prunus.pipeline.run import run
from prunus.report.preferences import preferences
from prunus.surgery import SurgeryRecord
from prunus.types import PruningPlan

TREE: dict[str, Any] = {
    "name": "functions",
    "model": {"source": "cifar:resnet8-projection"},
    "data": {"source": "fake:3x12x12x4", "train_limit": 24},
    "train": {"epochs": 0},
    "prune": {"budget": {"macs": 0.5}, "criterion": "functionality", "batches": 1, "tolerance": 0.1, "keep": ["layer3.*"]},
    "recover": {"steps": 2, "lr": 0.05, "recalibrate_batches": 0},
    "export": {"latency_runs": 3, "onnx": False},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run") / "out"
    tree = TREE | {"prune": TREE["prune"] | {"criterion_options": {"clusters": 3}}}
    return out, run(parse_recipe(tree), out)


def test_the_gallery_counts_what_the_run_removed(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    widths = {group["name"]: (group["before"], group["before"] - group["after"]) for group in result["groups"]}
    rows = result["gallery"]["rows"]
    assert {row["name"]: (row["channels"], row["removed"]) for row in rows} == {row["name"]: widths[row["name"]] for row in rows}
    assert sum(row["removed"] for row in rows) == sum(removed for _, removed in widths.values()) > 0
    assert {row["clusters"] for row in rows} <= {3, 4}  # as asked; channels that nothing wakes are one of their own
    assert all(0 < row["similarity"] <= 1 and 0 <= row["lost"] <= row["channels"] - row["removed"] for row in rows)
    assert any(row["similarity"] < 0.999 for row in rows)
    assert result["files"][-1] == "gallery.html"
    page = (out / "gallery.html").read_text()
    assert page.count('class="removed"') == sum(row["removed"] for row in rows)


def test_the_report_shows_and_links_it(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    section = preferences(result)
    assert '<a href="gallery.html">All patterns</a>' in section and section in (out / "report.html").read_text()
    assert section.count("<tr>") == len(result["gallery"]["rows"]) + 1
    assert preferences({}) == preferences({"gallery": None}) == ""


def test_a_group_without_an_after_is_told_apart() -> None:
    row = {"name": "a<b", "channels": 4, "clusters": 2, "removed": 4, "similarity": None, "lost": None}
    section = preferences({"gallery": {"file": "gallery.html", "lost_below": 0.5, "rows": [row]}})
    assert "a&lt;b" in section and section.count("\u2013") + section.count("\u2014") == 2


def test_kept_channels_follow_the_record_through_two_rounds() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 3))
    example = torch.randn(1, 3, 8, 8)
    graph = prunus.trace(net, example)
    assert kept_channels(graph["0"], SurgeryRecord.nothing_removed(net)).tolist() == [True] * 6
    small, first = prunus.remove(net, graph, plan(graph, [1, 0, 1, 1, 0, 1]))
    again = prunus.trace(small, example)
    _, second = prunus.remove(small, again, plan(again, [0, 1, 1, 0]))
    assert kept_channels(graph["0"], first.compose(second)).tolist() == [False, False, True, True, False, False]


def plan(graph: prunus.ChannelGraph, keep: list[int]) -> PruningPlan:
    keeps = {"0": torch.tensor(keep, dtype=torch.bool)}
    return PruningPlan(keeps, graph.cost(PruningPlan(keeps, graph.cost())))
