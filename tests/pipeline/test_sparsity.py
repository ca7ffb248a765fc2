"""Recipes with a sparsity method: train, decide, cut exactly, recover; what can't work is refused before anything is trained."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
import small_nets
from prunus.config import parse_recipe
from prunus.errors import PrunusWarning, RecipeError, TrainingError, UnknownName, UnsupportedNetwork
from prunus.graph.selecting_norms import SelectingNorm
from prunus.pipeline.run import run
from prunus.pipeline.sparsity import Decided
from prunus.sources import load_model
from prunus.types import PruningPlan
from small_nets import build, images


def recipe(method: str, **changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "name": "small",
        "model": {"source": "cifar:resnet8-projection"},
        "data": {"source": "fake:3x12x12x4", "batch_size": 16, "train_limit": 24},
        "train": {"epochs": 1},
        "sparsity": {"method": method, "preset": "short", "epochs": 2, "lr": 0.02, "fold_batches": 2},
        "prune": {"budget": {"macs": 0.6}, "tolerance": 0.1},
        "recover": {"epochs": 1, "recalibrate_batches": 2},
        "compute": {"checkpoint_steps": 2, "threads": 1},
        "export": {"onnx": False, "latency_runs": 3},
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return tree


def carried_out(tree: dict[str, Any], out: Path, **options: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrunusWarning)  # so short a training leaves rows that haven't vanished
        return run(parse_recipe(tree), out, **options)


@pytest.mark.parametrize("method", ["slimming", "resrep"])
def test_a_recipe_trains_with_a_method_and_cuts_what_it_decided(method: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    result = carried_out({**recipe(method), "log_with": "tensorboard"}, tmp_path / "out")
    logs = {folder.name for folder in (tmp_path / "out" / "logs").iterdir()}
    assert logs == {"train", "round-1-sparsity", "round-1-fine-tune"}
    assert [s["stage"] for s in result["stages"]] == [
        "before pruning",
        "after sparsity training",
        "after pruning",
        "after recalibration",
        "after fine-tuning",
    ]
    assert list(result["training"]) == ["training", "sparsity training", "fine-tuning"]
    assert all(row["met"] for row in result["budget"]) and result["verification"]["passed"]
    before, after = (result["networks"][name]["macs"] for name in ("before", "after"))
    assert 0.5 * before < after <= 0.6 * before
    progress = [epoch["sparsity"] for epoch in result["training"]["sparsity training"]]
    assert len(progress) == 2 and all(0 < p["macs"] <= before for p in progress)
    stage = json.loads((tmp_path / "out" / "stages" / "round-1-sparsity.json").read_text())
    widths = {group["name"]: group["after"] for group in result["groups"]}
    assert all(widths[name] == len(kept) for name, kept in stage["plan"].items())
    full = load_model("cifar:resnet8-projection", num_classes=4)
    small = prunus.load(tmp_path / "out" / "small.prunus", full)
    assert prunus.trace(small, torch.zeros(1, 3, 12, 12)).cost().macs == after


def test_two_passes_approach_the_budget_and_resume_to_the_same_network(tmp_path: Path) -> None:
    """Killed in the second pass's training; compared with the run that wasn't."""
    tree = recipe("slimming", prune={"rounds": 2}, recover={"epochs": 0})

    class Stop(Exception):
        pass

    def stop(stage: str) -> None:
        if stage == "round-2-prune":
            raise Stop

    whole = carried_out(tree, tmp_path / "whole")
    with pytest.raises(Stop):
        carried_out(tree, tmp_path / "cut", announce=stop)
    (tmp_path / "cut" / "stages" / "round-2-sparsity.json").unlink()
    again = carried_out(tree, tmp_path / "cut", resume=True)
    files = [(tmp_path / name / "small.prunus").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    assert [row["macs"] for row in whole["rounds"]] == [row["macs"] for row in again["rounds"]]
    macs = [row["macs"] / whole["rounds"][0]["macs"] for row in whole["rounds"]]
    assert 0.6**0.5 - 0.1 < macs[1] <= 0.6**0.5 and 0.5 < macs[2] <= 0.6
    assert "round 2: sparsity training" in whole["training"]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"sparsity": {"method": "resrap"}}, UnknownName, "unknown sparsity method 'resrap': did you mean resrep"),
        ({"sparsity": {"preset": "tiny"}}, UnknownName, "unknown preset of resrep 'tiny'"),
        ({"sparsity": {"options": {"interval": 0}}}, UnknownName, "resrep.interval=0 is not a whole number from 1 up"),
        ({"sparsity": {"optimizer": "adamw"}}, TrainingError, "sets momentum and nesterov of single parameters"),
        ({"sparsity": {"epochs": 0}}, RecipeError, "sparsity: .*set epochs or steps above zero"),
        ({"sparsity": {"keep": "best"}}, RecipeError, "sparsity: .*aren't what the method decides by"),
        (
            {"prune": {"criterion": "l1"}},
            RecipeError,
            "method decides what goes, so that prune.criterion would do nothing",
        ),
        ({"prune": {"budget": {"macs": 0.001}}}, prunus.BudgetNotMet, "can't be reached"),
    ],
)
def test_what_cant_work_is_refused_before_training(
    changes: dict[str, Any], error: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        carried_out(recipe("resrep", **changes), tmp_path / "out")
    assert not (tmp_path / "out" / "stages").exists()


def test_a_plan_that_verification_cuts_short_is_refused() -> None:
    graph = prunus.trace(build("Plain"), images())
    keep = {name: torch.arange(graph[name].num_channels) < 8 for name in ("one.0", "two.0")}
    decided = Decided(PruningPlan(keep, graph.cost()), "slimming")
    budget = prunus.Budget(macs=0.3)
    plan = decided.allocate(graph, prunus.Scores({}, "none"), budget)
    assert plan.counts() == {"one.0": 8, "two.0": 8} and plan.predicted == graph.cost(plan)
    (row,) = plan.provenance["budget"]
    assert row["met"] and row["achieved"] == plan.predicted.macs and row["full"] == graph.cost().macs
    frozen = graph.freeze({"two.0": "a test"})
    with pytest.raises(prunus.BudgetNotMet, match=r"slimming decided can't be carried out in full: verification froze two\.0"):
        decided.allocate(frozen, prunus.Scores({}, "none"), budget)


def test_a_pre_activation_network_is_slimmed_by_input_selection(tmp_path: Path) -> None:
    """Two rounds; the file holds the selections, the table of groups their widths, and the stream is whole."""
    tree = recipe(
        "slimming",
        model={"source": f"{small_nets.__file__}:PreActivation"},
        prune={"select_inputs": True, "rounds": 2},
    )
    result = carried_out(tree, tmp_path / "out")
    assert result["verification"]["passed"] and all(row["met"] for row in result["budget"])
    small = prunus.load(tmp_path / "out" / "small.prunus", small_nets.PreActivation(num_classes=4)).eval()
    widths = {row["name"]: row["after"] for row in result["groups"]}
    chosen = {name: module for name, module in small.named_modules() if isinstance(module, SelectingNorm)}
    assert set(chosen) == {"blocks.0.bn1", "blocks.1.bn1", "blocks.2.bn1", "norm"}
    assert all(widths[name] == module.num_features == len(module.selected) for name, module in chosen.items())
    before = {row["name"]: row["before"] for row in result["groups"]}
    assert any(widths[name] < before[name] for name in chosen)
    assert widths["stem"] == 8 == small.stem.out_channels
    counted = prunus.trace(small, torch.zeros(2, 3, 12, 12)).cost().macs
    assert counted == result["networks"]["after"]["macs"]


def test_selecting_inputs_of_a_network_without_streams_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedNetwork, match="no batch norm of this network can select its inputs"):
        run(parse_recipe(recipe("slimming", prune={"select_inputs": True})), tmp_path / "out")
    assert not (tmp_path / "out").exists()
