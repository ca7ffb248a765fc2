"""A whole search: its figures, what a stopped one leaves, what it refuses, and its page."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from laboratory.test_sensitivity import labelled, network, subject
from prunus import Budget, EvidenceError, InvalidBudget, RecipeError, UnknownName
from prunus.laboratory import search as laboratory
from prunus.laboratory.search import SearchSettings, search_network
from prunus.reconstruction import recalibrate
from prunus.report.search import render_search
from report.hostile import texts_that_stayed_text

pytest.importorskip("optuna")
pytest.importorskip("plotly")
SETTINGS = SearchSettings(
    budget=Budget(macs=0.6, tolerance=0.1), trials=6, images=None, batch_size=16, scoring_images=16, recalibration_images=32
)


@pytest.fixture(autouse=True)
def small_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    trials = {name: [{**trial, "seconds": 0} for trial in result[name]] for name in ("trials", "baseline")}
    return json.loads(json.dumps({**result, **trials, "seconds": 0}))


def test_figures_are_those_of_the_recalibrated_small_networks(tmp_path: Path) -> None:
    result = search_network(subject(), tmp_path, SETTINGS)
    assert json.loads((tmp_path / "search.json").read_text()) == json.loads(json.dumps(result))
    assert [trial["number"] for trial in result["trials"]] == list(range(6)) and result["baseline"] == []
    assert result["widths"] == {"0": 6, "3": 8} and result["network"]["split"] == "validation"
    model, images = network(), labelled(48, 2)
    graph = prunus.trace(model, torch.randn(2, 2, 6, 6))
    scores = prunus.score(model, graph, "l1")
    for trial in (result["trials"][0], max(result["trials"], key=lambda t: t["accuracy"])):
        keep = {name: torch.zeros(graph[name].num_channels, dtype=torch.bool) for name in trial["kept"]}
        for name, number in trial["kept"].items():
            keep[name][scores.by_group[name].argsort(descending=True)[:number]] = True
        small, _ = prunus.remove(model, graph, prunus.PruningPlan(keep, graph.cost()))
        recalibrate(small, [(batch,) * 2 for batch in labelled(32, 1).tensors[0].split(32)])
        with torch.no_grad():
            right = small.eval()(images.tensors[0]).argmax(1) == images.tensors[1]
        assert trial["accuracy"] == pytest.approx(float(right.float().mean()), abs=1 / 48 + 1e-9)
        assert trial["cost"] == pytest.approx(graph.cost_model.cost(trial["kept"]).macs / int(0.6 * graph.cost().macs), abs=1e-3)


def test_the_result_serves_the_allocator(tmp_path: Path) -> None:
    result = search_network(subject(), tmp_path, SETTINGS)
    model = network()
    graph = prunus.trace(model, torch.randn(2, 2, 6, 6))
    options = {"result": tmp_path / "search.json"}
    plan = prunus.allocate(graph, prunus.score(model, graph, "l1"), SETTINGS.budget, "search", **options)
    assert plan.counts() == result["chosen"]["kept"] and plan.provenance["budget"] == result["budget"]


def test_a_stopped_search_goes_on_to_the_same_result(tmp_path: Path) -> None:
    asked = replace(SETTINGS, baseline=True)
    through = search_network(subject(), tmp_path / "through", asked)
    assert len(through["baseline"]) == 6
    drawn = [[trial["fractions"] for trial in through[name][1:]] for name in ("trials", "baseline")]
    assert not any(one == other for one, other in zip(*drawn, strict=True))
    for after in (1, 5, 3):
        seen: list[str] = []

        def stop(text: str, seen: list[str] = seen, after: int = after) -> None:
            seen.append(text)
            if len(seen) == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            search_network(subject(), tmp_path / "cut", asked, stop)
    assert timeless(search_network(subject(), tmp_path / "cut", asked)) == timeless(through)
    more = search_network(subject(), tmp_path / "cut", replace(asked, trials=8))
    assert timeless(more)["trials"][:6] == timeless(through)["trials"] and len(more["trials"]) == 8


def test_a_worker_only_tries_plans(tmp_path: Path) -> None:
    assert search_network(subject(), tmp_path, SETTINGS, worker=1) == {}
    assert not (tmp_path / "search.json").exists()
    said: list[str] = []
    assert len(search_network(subject(), tmp_path, SETTINGS, said.append)["trials"]) == 6 and said == []


def test_helpers_that_fail_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(command: list[str]) -> subprocess.Popen[bytes]:
        started.append(real(command))
        return started[-1]

    monkeypatch.setattr(laboratory.subprocess, "Popen", popen)
    helpers = [[sys.executable, "-c", "import time; time.sleep(60)"], [sys.executable, "-c", "raise SystemExit(3)"]]
    with pytest.raises(EvidenceError, match="a worker of the search failed: its own message is above"):
        search_network(subject(), tmp_path, SETTINGS, helpers=helpers)
    assert [process.returncode for process in started] == [-15, 3]


def test_what_is_refused(tmp_path: Path) -> None:
    for changes, error, text in (
        ({"sampler": "best"}, UnknownName, "unknown sampler 'best'"),
        ({"trials": 0}, InvalidBudget, "trials=0"),
        ({"split": "test"}, RecipeError, "never looks at test images"),
    ):
        with pytest.raises(error, match=text):
            search_network(subject(), tmp_path / "refused", replace(SETTINGS, **changes))
    search_network(subject(), tmp_path, SETTINGS)
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        search_network(subject(), tmp_path, replace(SETTINGS, sampler="random"))


def test_the_page_tells_the_trials(tmp_path: Path) -> None:
    result = search_network(subject(), tmp_path, replace(SETTINGS, baseline=True, trials=8))
    page = render_search(result)
    found = max(trial["accuracy"] for trial in result["trials"])
    assert f"the chosen plan has {100 * found:.1f} %" in page and "the best of 8 random draws" in page
    assert "8 trials by tpe; accuracies on 48 validation images" in page
    for name, number in result["chosen"]["kept"].items():
        cells = [f'<td class="number">{value}</td>' for value in (result["widths"][name], number)]
        assert f'<th scope="row">{name}</th>{"".join(cells)}' in page
    assert texts_that_stayed_text(render_search, result) > 60
    with pytest.raises(prunus.ExportError, match="the search can't be shown: KeyError 'chosen'"):
        render_search({name: value for name, value in result.items() if name != "chosen"})
