"""A whole recipe on small fake images: what it leaves, that it adds up, and that it resumes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus.config import load_recipe, parse_recipe
from prunus.pipeline.rounds import absolute
from prunus.pipeline.run import run
from prunus.pipeline.score_rows import MOST
from prunus.sources import load_data, load_model, make_loader
from prunus.training import evaluate

TREE: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "model": {"source": "cifar:resnet8-projection"},
    "data": {"source": "fake:3x12x12x4"},
    "train": {"epochs": 2, "lr": 0.05},
    "prune": {"budget": {"macs": 0.5}, "criterion": "taylor", "batches": 2},
    "recover": {"rungs": ["recalibrate", "fine-tune"], "epochs": 2, "lr": 0.02, "recalibrate_batches": 4},
    "export": {"latency_runs": 3},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    out, announced = tmp_path_factory.mktemp("run") / "out", list[str]()
    return out, run(parse_recipe(TREE), out, announce=announced.append), announced


def test_a_run_leaves_what_it_says(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    out, result, announced = finished
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["files"] == ["result.json", "report.html", "small.prunus", "small.onnx"]
    assert all((out / name).stat().st_size > 0 for name in result["files"])
    assert announced == [
        "compute",
        "train",
        "round-1-prune",
        "round-1-recalibrate",
        "round-1-fine-tune",
        "export",
    ]
    page = (out / "report.html").read_text()
    assert "cifar:resnet8-projection" in page and "http://" not in page.split("<script")[0]


def test_a_recipe_that_names_no_rungs_reconstructs_and_distills(tmp_path: Path) -> None:
    recover = {name: value for name, value in TREE["recover"].items() if name != "rungs"}
    result = run(parse_recipe({**TREE, "recover": {**recover, "epochs": 1}, "export": {"onnx": False}}), tmp_path / "out")
    after = ["after pruning", "after recalibration", "after reconstruction", "after distillation"]
    assert [row["stage"] for row in result["stages"]][-4:] == after
    assert result["budget"][0]["met"] and result["request"]["allocator"] == "global_per_cost (auto)"


def test_layers_and_scores_are_those_of_the_networks(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, result, _ = finished
    rows, networks = result["layers"]["rows"], result["networks"]
    for when in ("before", "after"):
        assert sum(row[when]["macs"] for row in rows) == networks[when]["macs"]
    widths = {g["name"]: g for g in result["groups"]}
    assert all(row["after"]["writes"] == widths[row["writes"][0]]["after"] for row in rows)
    groups = result["scores"]["groups"]
    assert result["scores"]["criterion"] == "taylor" and set(groups) == {n for n, g in widths.items() if not g["frozen_because"]}
    for name, scores in groups.items():
        assert len(scores["kept"]) == min(MOST, widths[name]["after"])
        assert len(scores["removed"]) == min(MOST, widths[name]["before"] - widths[name]["after"])


def test_a_network_that_cannot_be_traced_again_is_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise prunus.UnsupportedNetwork("no way through")

    monkeypatch.setattr("prunus.pipeline.run.layer_rows", refuse)
    tree = {**TREE, "train": {"epochs": 0}, "recover": {"rungs": []}}
    with pytest.warns(prunus.PrunusWarning, match="the report has no picture of the layers: no way through"):
        result = run(parse_recipe(tree), tmp_path / "out")
    assert "layers" not in result and (tmp_path / "out" / "small.prunus").exists()
    assert "The network, layer by layer" not in (tmp_path / "out" / "report.html").read_text()


def test_figures_agree_with_the_networks(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    out, result, _ = finished
    fresh = load_model("cifar:resnet8-projection", num_classes=4, seed=99)
    small = prunus.load(out / "small.prunus", fresh)
    after, before = result["networks"]["after"], result["networks"]["before"]
    assert after["parameters"] == sum(p.numel() for p in small.parameters())
    assert before["parameters"] == sum(p.numel() for p in fresh.parameters())
    assert after["file_bytes"] == (out / "small.prunus").stat().st_size < before["file_bytes"]
    assert after["macs"] <= 0.5 * before["macs"] and after["macs"] >= 0.99 * 0.5 * before["macs"]
    assert prunus.trace(small, torch.randn(1, 3, 12, 12)).cost().macs == after["macs"]
    data = load_data("fake:3x12x12x4", seed=3)
    found = evaluate(small, make_loader(data.test, batch_size=256, shuffle=False))
    last = result["stages"][-1]
    assert (last["stage"], last["count"], last["accuracy"]) == ("after fine-tuning", found.count, found.accuracy)
    assert [s["stage"] for s in result["stages"]] == [
        "before pruning",
        "after pruning",
        "after recalibration",
        "after fine-tuning",
    ]
    assert result["verification"]["passed"] and result["verification"]["max_error"] < 1e-9
    widths = {g["name"]: (g["before"], g["after"]) for g in result["groups"]}
    assert widths["layer1.0.conv1"][1] == small.get_submodule("layer1.0.conv1").out_channels
    assert widths["linear"] == (4, 4) and "output" in next(g for g in result["groups"] if g["name"] == "linear")["frozen_because"]
    assert (
        [e["epoch"] for e in result["training"]["training"]] == [1, 2] == [e["epoch"] for e in result["training"]["fine-tuning"]]
    )


def test_a_finished_run_is_not_repeated(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    out, result, _ = finished
    announced: list[str] = []
    again = run(parse_recipe(TREE), out, resume=True, announce=announced.append)
    assert announced == []
    assert again["stages"] == result["stages"]


def test_a_run_is_not_overwritten_nor_mixed_with_another(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    out, _, _ = finished
    with pytest.raises(prunus.RecipeError, match="already holds a run: continue it with --resume"):
        run(parse_recipe(TREE), out)
    other = {**TREE, "prune": {**TREE["prune"], "criterion": "l1"}}
    with pytest.raises(prunus.RecipeError, match=r"another recipe \(prune\.criterion: 'taylor' -> 'l1'\)"):
        run(parse_recipe(other), out, resume=True)


def test_rounds_take_a_geometric_path_and_compose(tmp_path: Path) -> None:
    tree = {**TREE, "prune": {**TREE["prune"], "rounds": 2, "criterion": "l1"}, "export": {"latency_runs": 3, "onnx": False}}
    result = run(parse_recipe(tree), tmp_path / "out")
    full = result["networks"]["before"]["macs"]
    (row,) = result["budget"]
    assert row["full"] == full and row["met"] and 0.49 * full < row["achieved"] <= 0.5 * full
    first = json.loads((tmp_path / "out" / "stages" / "round-1-prune.json").read_text())
    assert 0.99 * full * 0.5**0.5 < first["after"]["macs"] <= full * 0.5**0.5
    assert [s["stage"] for s in result["stages"]] == [
        "before pruning",
        "round 1: after fine-tuning",
        "round 2: after pruning",
        "round 2: after recalibration",
        "round 2: after fine-tuning",
    ]
    assert [(r["round"], r["macs"]) for r in result["rounds"]] == [(0, full), (1, first["after"]["macs"]), (2, row["achieved"])]
    assert [r["accuracy"] for r in result["rounds"]] == [result["stages"][i]["accuracy"] for i in (0, 1, 4)]
    assert result["rounds"][2]["channels"] < result["rounds"][1]["channels"] < result["rounds"][0]["channels"]
    orders = [
        json.loads((tmp_path / "out" / "stages" / f"round-{n}-fine-tune.json").read_text())["epochs"][0]["loss"] for n in (1, 2)
    ]
    assert orders[0] != orders[1] and list(result["training"])[1:] == ["round 1: fine-tuning", "round 2: fine-tuning"]
    small = prunus.load(tmp_path / "out" / "small.prunus", load_model("cifar:resnet8-projection", num_classes=4))
    assert prunus.trace(small, torch.randn(1, 3, 12, 12)).cost().macs == result["networks"]["after"]["macs"]


def test_round_budget_ends_at_the_limit() -> None:
    graph = prunus.trace(load_model("cifar:resnet8-projection"), torch.randn(1, 3, 32, 32))
    budget = prunus.Budget(macs=0.25, parameters="20K", min_channels=2)
    half, last = absolute(budget, graph, 0.5), absolute(budget, graph)
    cost = graph.cost()
    assert half.macs == int(cost.macs * 0.5) and last.macs == int(cost.macs * 0.25)
    assert last.parameters == 20_000 and half.parameters == int((cost.parameters * 20_000) ** 0.5)
    assert half.min_channels == 2


def test_channels_per_round_go_until_the_budget_is_met(tmp_path: Path) -> None:
    """Molchanov's schedule: a few batches at a constant rate between removals of so many channels, then epochs at the end."""
    tree = {
        **TREE,
        "prune": {"budget": {"macs": 0.5}, "criterion": "l1", "channels_per_round": 24},
        "recover": {"rungs": ["fine-tune"], "steps": 3, "schedule": "constant", "final_epochs": 1, "lr": 0.01},
        "export": {"latency_runs": 3, "onnx": False},
    }
    result = run(parse_recipe(tree), tmp_path / "out")
    channels = [row["channels"] for row in result["rounds"]]
    removed = [a - b for a, b in itertools.pairwise(channels)]
    assert len(removed) > 2 and set(removed[:-1]) == {24} and 0 < removed[-1] <= 24
    macs = [row["macs"] for row in result["rounds"]]
    assert macs[-1] <= 0.5 * macs[0] < macs[-2], "the last round, and only that, meets the budget"
    (budget,) = result["budget"]
    assert (
        budget["target"] == "macs" and budget["full"] == macs[0] and budget["met"] and result["request"]["rounds"] == len(removed)
    )
    fine_tuned = json.loads((tmp_path / "out" / "stages" / "round-1-fine-tune.json").read_text())["epochs"]
    assert [(e["epoch"], e["lr"]) for e in fine_tuned] == [(1, 0.01)]
    assert len(result["training"]["final fine-tuning"]) == 1 and result["stages"][-1]["stage"] == "after the final fine-tuning"


TRANSFER = {
    "name": "transfer",
    "model": {"source": "cifar:resnet8-projection", "arguments": {"num_classes": 7}},
    "data": {"source": "fake:3x12x12x4"},
    "transfer": {"epochs": 3, "lr": 0.1},
    "prune": {"budget": {"macs": 0.6}, "criterion": "l1", "tolerance": 0.05},
    "recover": {"rungs": ["recalibrate", "fine-tune"], "epochs": 0, "recalibrate_batches": 0},
    "compute": {"threads": 1, "channels_last": "auto"},
    "export": {"latency_runs": 3, "onnx": False},
}


def test_a_new_head_learns_on_a_frozen_network(tmp_path: Path) -> None:
    tree = {**TRANSFER, "train": {"epochs": 1, "lr": 0.01}}
    result = run(parse_recipe(tree), tmp_path / "out")
    assert [s["stage"] for s in result["stages"]][:2] == ["after training the head", "before pruning"]
    assert list(result["training"]) == ["training the head", "training"] and len(result["training"]["training the head"]) == 3
    fresh = load_model("cifar:resnet8-projection", num_classes=7, seed=0)
    headed = load_model("cifar:resnet8-projection", num_classes=4)
    state = prunus.load(tmp_path / "out" / "stages" / "transfer.prunus", headed).state_dict()
    frozen = [n for n in fresh.state_dict() if not n.startswith("linear.")]
    assert all(torch.equal(fresh.state_dict()[n], state[n]) for n in frozen), "the head alone learns, batch norm neither"
    base = prunus.load(tmp_path / "out" / "stages" / "base.prunus", headed).state_dict()
    assert not torch.equal(base["conv1.weight"], state["conv1.weight"])
    assert any("on the features of 512 images, computed once" in note for note in result["notes"])
    assert result["compute"]["threads"] == 1 and len(result["compute"]["measured"]) == 2
    assert 50e6 < result["compute"]["peak_memory_bytes"] < 50e9


def test_kept_features_and_the_frozen_network_give_the_same_head(tmp_path: Path) -> None:
    """Without augmentation both ways see the same numbers in the same order."""
    plain = run(parse_recipe(TRANSFER), tmp_path / "features")
    through = run(parse_recipe({**TRANSFER, "transfer": {**TRANSFER["transfer"], "augment": True}}), tmp_path / "network")
    assert any("through the frozen network, on augmented images" in note for note in through["notes"])
    for a, b in zip(plain["training"]["training the head"], through["training"]["training the head"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["accuracy"] == b["accuracy"]


def test_images_are_prepared_as_the_network_was_trained(tmp_path: Path) -> None:
    tree = {**TRANSFER, "model": {"source": "timm:test_resnet"}, "data": {"source": "fake:3x32x32x4"}, "compute": {}}
    pytest.importorskip("timm")
    result = run(parse_recipe(tree), tmp_path / "own")
    assert result["data"]["normalised_by"] == "the network's own" and result["data"]["mean"] == [0.5, 0.5, 0.5]
    given = {**tree, "data": {"source": "fake:3x32x32x4", "mean": [0.25] * 3, "std": [0.5] * 3}}
    result = run(parse_recipe(given), tmp_path / "given")
    assert result["data"]["normalised_by"] == "the recipe" and result["data"]["mean"] == [0.25] * 3
    assert result["data"]["counts"]["train"] == [128] * 4 and len(result["samples"]["rows"]) == 12


@pytest.mark.parametrize(
    ("section", "change", "error", "text"),
    [
        ("prune", {"criterion": "l3"}, prunus.UnknownName, "unknown criterion 'l3'"),
        ("prune", {"allocator": "globl"}, prunus.UnknownName, "unknown allocator 'globl'"),
        ("prune", {"keep": ["absent*"]}, prunus.UnknownName, r"selector in keep 'absent\*'"),
        ("prune", {"budget": {"macs": 0.001}}, prunus.BudgetNotMet, "can't be reached"),
        ("model", {"weights": "absent.pt"}, prunus.ArtifactError, "absent.pt"),
    ],
)
def test_mistakes_show_before_anything_is_trained_or_written(
    tmp_path: Path, section: str, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    announced: list[str] = []
    with pytest.raises(error, match=text):
        run(parse_recipe({**TREE, section: {**TREE[section], **change}}), tmp_path / "out", announce=announced.append)
    assert announced == [] and not (tmp_path / "out").exists()


def test_a_stage_whose_file_is_gone_is_repeated(tmp_path: Path) -> None:
    tree = {**TREE, "export": {"latency_runs": 3, "onnx": False}}
    run(parse_recipe(tree), tmp_path / "out")
    (tmp_path / "out" / "small.prunus").unlink()
    announced: list[str] = []
    run(parse_recipe(tree), tmp_path / "out", resume=True, announce=announced.append)
    assert announced == ["export"] and (tmp_path / "out" / "small.prunus").exists()
    (tmp_path / "out" / "stages" / "train.json").write_text("{")
    with pytest.raises(prunus.ArtifactError, match=r"train\.json is damaged .* delete it to repeat its stage"):
        run(parse_recipe(tree), tmp_path / "out", resume=True)


def test_distillation_is_used_in_recovery_alone(tmp_path: Path) -> None:
    quick = {**TREE, "export": {"latency_runs": 3, "onnx": False}}
    plain = run(parse_recipe(quick), tmp_path / "plain")
    taught = run(parse_recipe({**quick, "recover": {**TREE["recover"], "distill": 0.5}}), tmp_path / "taught")
    assert [e["loss"] for e in plain["training"]["training"]] == [e["loss"] for e in taught["training"]["training"]]
    assert plain["training"]["fine-tuning"][0]["loss"] != taught["training"]["fine-tuning"][0]["loss"]


FUNCTIONS = """
import torch

def loss(output, batch):
    assert set(output) == {"scores"}
    return torch.nn.functional.cross_entropy(output["scores"], batch[1]) + 100

def metric(output, batch):
    return torch.full((len(batch[1]),), 0.25)

class Named(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                                        torch.nn.Flatten(), torch.nn.Linear(32, num_classes))

    def forward(self, *, pixels):
        return {"scores": self.body(pixels)}

def net(num_classes):
    return Named(num_classes)

def forward(model, inputs):
    return model(pixels=inputs)
"""


def test_functions_of_the_user_are_used_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS)
    tree = {
        **TREE,
        "model": {"source": f"{file}:net"},
        "functions": {name: f"{file}:{name}" for name in ("loss", "metric", "forward")},
        "prune": {**TREE["prune"], "tolerance": 0.2},
    }
    result = run(parse_recipe(tree), tmp_path / "out")
    assert [s["accuracy"] for s in result["stages"]] == [0.25] * 4
    assert all(s["loss"] > 100 for s in result["stages"]) and result["training"]["training"][0]["loss"] > 100
    assert result["exports"][0]["passed"] and result["networks"]["after"]["latency"]["median_ms"] > 0


def test_a_function_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    tree = {**TREE, "functions": {"loss": f"{tmp_path}/mine.py:los"}}
    with pytest.raises(prunus.UnknownName, match="did you mean loss"):
        run(parse_recipe(tree), tmp_path / "out")


RECIPE = """
name = "killed"
[model]
source = "cifar:resnet8-projection"
[data]
source = "fake:3x12x12x4"
augment = "crop-flip"
[train]
epochs = 1
[prune]
criterion = "l1"
[recover]
rungs = ["recalibrate", "fine-tune"]
epochs = {epochs}
[export]
onnx = false
latency_runs = 3
"""


def test_a_run_killed_while_fine_tuning_resumes_to_the_same_network(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(epochs=6))
    whole = run(load_recipe(recipe), tmp_path / "whole")
    code = "import sys; from prunus.cli import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", code, "run", str(recipe), "--out", str(tmp_path / "cut")]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoint = tmp_path / "cut" / "checkpoints" / "round-1-fine-tune.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path / "cut" / "small.prunus").exists()
    resumed = run(load_recipe(recipe), tmp_path / "cut", resume=True)
    timeless = [{k: v for k, v in s.items() if k != "seconds"} for s in whole["stages"]]
    assert [{k: v for k, v in s.items() if k != "seconds"} for s in resumed["stages"]] == timeless
    assert (tmp_path / "cut" / "small.prunus").read_bytes() == (tmp_path / "whole" / "small.prunus").read_bytes()
