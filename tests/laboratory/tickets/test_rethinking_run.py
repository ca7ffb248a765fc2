"""The pruned network of a finished run, fine-tuned and trained from scratch at several learning rates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prunus.config import parse_recipe
from prunus.errors import ArtifactError, RecipeError
from prunus.laboratory.pruned_runs import PrunedRun
from prunus.laboratory.tickets.jobs import jobs_of
from prunus.laboratory.tickets.study import study_tickets
from prunus.pipeline.run import run
from prunus.ticket_recipe import TicketRecipe, parse_ticket_recipe

pytest.importorskip("plotly")
PRUNED: dict[str, Any] = {
    "model": {"source": "cifar:resnet20"},
    "data": {"train_limit": 128, "batch_size": 64},
    "train": {"epochs": 2, "lr": 0.05},
    "prune": {"budget": {"macs": 0.5}, "criterion": "l1", "tolerance": 0.1},
    "recover": {"epochs": 0},
    "compute": {"threads": 1},
    "export": {"onnx": False, "latency_runs": 3},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunus.report.page.plotly", lambda: "/* plotly */", raising=False)
        run(parse_recipe(PRUNED), folder)
    return folder


@pytest.fixture(autouse=True)
def small_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")


def recipe(folder: Path, **more: Any) -> TicketRecipe:
    asked = {"runs": [str(folder)], "lrs": [0.02, 0.1], "fine_tune_epochs": 1, "fine_tune_lr": 0.1, **more}
    return parse_ticket_recipe({"seeds": [0, 1], "rethinking": asked})


def test_every_arm_at_every_rate(finished: Path, tmp_path: Path) -> None:
    result = study_tickets(recipe(finished), tmp_path)
    before = json.loads((finished / "result.json").read_text())
    assert [(cell["network"], cell["lr"]) for cell in result["rethinking"]] == [(str(finished), 0.02), (str(finished), 0.1)]
    stages = {one["stage"]: one["accuracy"] for one in before["stages"]}
    for cell in result["rethinking"]:
        assert cell["model"] == "cifar:resnet20" and cell["data"] == "digits" and cell["criterion"] == "l1"
        assert cell["full"]["accuracy"]["values"] == [stages["before pruning"]] * 2
        assert cell["pruned"]["values"] == [stages["after pruning"]] * 2
        assert cell["macs"] == before["networks"]["before"]["macs"]
        assert cell["ratio"] == cell["macs"] / cell["small_macs"] > 1.8
        arms = cell["arms"]
        assert {name: arm["epochs"] for name, arm in arms.items()} == {
            "fine-tuned": 1, "rewound-lr": 2, "scratch-E": 2, "scratch-B": int(2 * cell["ratio"])
        }  # fmt: skip
        assert arms["fine-tuned"]["lr"] == pytest.approx(0.1 * cell["lr"]) and arms["scratch-B"]["lr"] == cell["lr"]
    assert [row["where"] for row in result["claims"]] == [
        f"{finished}, {PrunedRun.read(finished).channels:.0%} of the channels, learning rate {lr}" for lr in ("0.02", "0.1")
    ]
    assert str(finished) in (tmp_path / "tickets.html").read_text()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "jobs").rglob("*.*")}
    study_tickets(recipe(finished), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "jobs").rglob("*.*")} == files


def test_seeds_train_differently_and_figures_belong_to_one_pruned_network(finished: Path, tmp_path: Path) -> None:
    stems = [job.stem for job in jobs_of(recipe(finished))]
    assert len(set(stems)) == 4 and all(stem.startswith("rethinking-run-mine-seed") for stem in stems)
    other = tmp_path / "mine"
    shutil.copytree(finished, other)
    assert PrunedRun.read(other).digest == PrunedRun.read(finished).digest
    shutil.copy(other / "stages" / "base.prunus", other / "stages" / "round-1-prune.prunus")
    assert PrunedRun.read(other).digest != PrunedRun.read(finished).digest


def test_folders_that_are_no_finished_run(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"isn't the folder of a finished run: result.json, recipe.json, stages/base.prunus"):
        jobs_of(recipe(tmp_path))
    half = tmp_path / "half"
    shutil.copytree(finished, half)
    (half / "result.json").write_text('{"groups": []}')
    with pytest.raises(ArtifactError, match=r"half/result.json isn't the result of a run: make it anew"):
        jobs_of(recipe(half))
    (half / "stages" / "round-1-prune.prunus").unlink()
    with pytest.raises(ArtifactError, match="the pruned network"):
        jobs_of(recipe(half))


def test_weights_from_elsewhere_need_a_length(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "given"
    shutil.copytree(finished, other)
    tree = json.loads((other / "recipe.json").read_text())
    del tree["sha256"]
    tree["model"]["weights"] = "trained.safetensors"
    (other / "recipe.json").write_text(json.dumps(tree))
    with pytest.raises(RecipeError, match=r"from elsewhere \(trained.safetensors\).*say it with rethinking.epochs"):
        jobs_of(recipe(other))
    assert [job.cell["epochs"] for job in jobs_of(recipe(other, epochs=7))] == [7] * 4
