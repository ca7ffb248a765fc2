"""The ladder of recovery in a whole run: every rung judged, resumed to the same bits, and the rows that controls add."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from nets import image, random_plan, residual
from prunus.config import Recipe, parse_recipe
from prunus.errors import RecipeError
from prunus.graph import trace
from prunus.graph.build import fingerprint
from prunus.pipeline.controls import Controls, from_scratch
from prunus.pipeline.ladder import judged_title, rung_rows, since
from prunus.pipeline.run import run
from prunus.pipeline.trainer import Trainer
from prunus.sources import load_model
from prunus.surgery import remove
from prunus.surgery.record import SliceEdit
from prunus.tickets.scratch import scratch_epochs

FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12)
        self.two, self.three = nn.Conv2d(12, 12, 3, bias=False), nn.Conv2d(12, 12, 3)
        self.head = nn.Linear(12, num_classes)

    def forward(self, x):
        x = self.norm(self.one(x)).relu()
        return self.head(self.three(self.two(x).relu()).relu().mean((2, 3)))

def net(num_classes):
    return Net(num_classes)
"""
RUNGS = ["compensate", "reconstruct", "recalibrate", "fine-tune", "distill"]


def tree_of(folder: Path, **recover: Any) -> dict[str, Any]:
    (folder / "nets.py").write_text(FILE)
    return {
        "name": "ladder",
        "seed": 1,
        "model": {"source": f"{folder}/nets.py:net"},
        "data": {"source": "fake:3x12x12x4"},
        "train": {"epochs": 4, "lr": 0.05},
        "prune": {"budget": {"macs": 0.5}, "criterion": "random", "tolerance": 0.2},
        "recover": {"epochs": 1, "lr": 0.02, "recalibrate_batches": 2, "sample_batches": 4, **recover},
        "export": {"latency_runs": 3, "onnx": False},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any], list[str]]:
    folder, announced = tmp_path_factory.mktemp("ladder"), list[str]()
    tree = tree_of(folder, rungs=RUNGS, preset="quick")
    return folder, tree, run(parse_recipe(tree), folder / "out", announce=announced.append), announced


def tensors(file: Path, folder: Path) -> dict[str, torch.Tensor]:
    return prunus.load(file, load_model(f"{folder}/nets.py:net", num_classes=4)).state_dict()


def test_every_rung_is_a_stage_with_its_accuracy_and_seconds(finished: Any) -> None:
    _, _, result, announced = finished
    assert announced == ["compute", "train", *(f"round-1-{stage}" for stage in ("prune", *RUNGS)), "export"]
    titles = ["compensation", "reconstruction", "recalibration", "fine-tuning", "distillation"]
    assert [s["stage"] for s in result["stages"]] == ["before pruning", "after pruning", *(f"after {t}" for t in titles)]
    assert [row["rung"] for row in result["ladder"]] == ["removal", *titles]
    assert [row["accuracy"] for row in result["ladder"]] == [s["accuracy"] for s in result["stages"][1:]]
    for before, row in zip(result["ladder"], result["ladder"][1:], strict=False):
        assert row["gained"] == row["accuracy"] - before["accuracy"] and row["seconds"] >= 0
    assert [row["epochs"] for row in result["ladder"]] == [0, 0, 0, 0, 1, 1]
    assert list(result["training"]) == ["training", "fine-tuning", "distillation"]
    assert result["training"]["fine-tuning"][0]["loss"] != result["training"]["distillation"][0]["loss"]
    recovered = {s["stage"]: s["loss"] for s in result["stages"]}
    assert recovered["after reconstruction"] < recovered["after pruning"]


def test_the_layer_without_a_place_for_constants_has_a_bias_in_the_file(finished: Any) -> None:
    folder, _, _, _ = finished
    state = tensors(folder / "out" / "small.prunus", folder)
    assert state["two.bias"].shape[0] == state["two.weight"].shape[0] < 12 and "one.bias" not in state
    stage = json.loads((folder / "out" / "stages" / "round-1-compensate.json").read_text())
    assert stage["compensation"]["new_biases"] == ["two"]
    reconstructed = json.loads((folder / "out" / "stages" / "round-1-reconstruct.json").read_text())["reconstruction"]
    assert {fit["weight"] for fit in reconstructed["layers"]} >= {"two.weight", "three.weight"}


def test_a_run_that_was_stopped_on_a_rung_goes_on_to_the_same_bits(finished: Any) -> None:
    folder, tree, _, _ = finished
    shutil.copytree(folder / "out", folder / "again")
    for rung in ("reconstruct", "recalibrate", "fine-tune", "distill"):
        (folder / "again" / "stages" / f"round-1-{rung}.json").unlink()
        (folder / "again" / "stages" / f"round-1-{rung}.prunus").unlink()
    (folder / "again" / "stages" / "export.json").unlink()
    shutil.rmtree(folder / "again" / "checkpoints")
    announced: list[str] = []
    run(parse_recipe(tree), folder / "again", resume=True, announce=announced.append)
    assert announced == [*(f"round-1-{rung}" for rung in RUNGS[1:]), "export"]
    first, second = (tensors(folder / name / "small.prunus", folder) for name in ("out", "again"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_controls_are_added_to_a_finished_run(finished: Any) -> None:
    folder, tree, result, _ = finished
    assert result["controls"] == []
    announced: list[str] = []
    found = run(parse_recipe(tree), folder / "out", resume=True, controls=True, announce=announced.append)
    assert announced == ["control-scratch-e", "control-scratch-b", "control-longer"]
    rows = {row["row"]: row for row in found["controls"]}
    full, small = (found["networks"][which]["macs"] for which in ("before", "after"))
    # 4 epochs of training; recovery: one of fine-tuning, one of distillation
    assert rows["scratch-e"]["epochs"] == 6 and rows["scratch-e"]["macs"] == small
    assert rows["scratch-b"]["epochs"] == int(4 * full / small) + 2
    assert rows["longer"]["epochs"] == 2 and rows["longer"]["macs"] == full
    assert found["stages"] == result["stages"] and found["training"].keys() == result["training"].keys()
    assert all(0 <= row["accuracy"] <= 1 and row["seconds"] > 0 and row["split"] == "test" for row in rows.values())
    again = run(parse_recipe(tree), folder / "out", resume=True)
    assert again["controls"] == found["controls"], "they stay in the result"


def test_controls_of_a_trained_network_say_that_they_are_short(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    tree["model"] = {"source": "cifar:resnet8-projection", "weights": "trained.safetensors"}
    tree["train"] = {"steps": 5}
    recipe, sparse = (
        parse_recipe(tree),
        parse_recipe({**tree, "prune": {"budget": {"macs": 0.5}}, "sparsity": {"method": "slimming", "epochs": 4}}),
    )
    trainer = Trainer.__new__(Trainer)
    trainer.data, trainer.recipe = type("Data", (), {"train": range(130)})(), recipe  # three batches of 64 an epoch
    controls = Controls(recipe, trainer, residual, residual, (300, 100), 1)
    assert [controls.epochs(name) for name in ("scratch-e", "scratch-b", "longer")] == [3, 7, 1]
    assert [Controls(sparse, trainer, residual, residual, (300, 100), 2).epochs(n) for n in ("scratch-e", "scratch-b")] == [
        12,
        32,
    ]
    short = recipe.model_copy(update={"recover": recipe.recover.model_copy(update={"rungs": ("fine-tune",), "steps": 1})})
    assert Controls(short, trainer, residual, residual, (300, 100), 7).epochs("longer") == 3, "seven steps, three an epoch"
    assert from_scratch(recipe, trainer).lr == recipe.recover.lr
    assert "trained elsewhere" in controls._notes("scratch-b")[0] and controls._notes("longer") == []
    assert scratch_epochs(160, 1.5) == 240


def test_the_part_of_a_record_that_came_later() -> None:
    model = residual()
    graph = trace(model, image())
    once, first = remove(model, graph, random_plan(graph, 1))
    _, second = remove(once, trace(once, image()), random_plan(trace(once, image()), 2))
    own = since(first.compose(second), first, fingerprint(once))
    expected = {(e.parameter, e.axis): e for e in second.edits if isinstance(e, SliceEdit)}
    found = {(e.parameter, e.axis): e for e in own.edits if isinstance(e, SliceEdit)}
    assert found.keys() == expected.keys() and own.fingerprint == second.fingerprint
    assert all(torch.equal(e.kept, expected[key].kept) and e.size == expected[key].size for key, e in found.items())


def test_rounds_compensate_what_each_of_them_removed(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, rungs=["compensate", "recalibrate"])
    tree["prune"]["rounds"] = 2
    result = run(parse_recipe(tree), tmp_path / "out")
    assert [s["stage"] for s in result["stages"]][1:] == [
        "round 1: after recalibration",
        "round 2: after pruning",
        "round 2: after compensation",
        "round 2: after recalibration",
    ]
    assert tensors(tmp_path / "out" / "small.prunus", tmp_path)["two.bias"].abs().sum() > 0


def test_the_kept_epoch_is_marked() -> None:
    assert judged_title("after fine-tuning", [{"epoch": 1}, {"epoch": 2}]) == "after fine-tuning"
    title = judged_title("after fine-tuning", [{"epoch": 1, "kept": True}, {"epoch": 2}])
    assert title == "after fine-tuning (weights of epoch 1, best on validation)"


def test_rows_of_the_ladder() -> None:
    def stage(accuracy: float, seconds: float, **more: Any) -> dict[str, Any]:
        return {"evaluation": {"accuracy": accuracy, "loss": 1.0, "split": "test", "seconds": 2.0}, "seconds": seconds, **more}

    rows = rung_rows({"removal": stage(0.25, 5.0), "fine-tuning": stage(0.75, 12.0, epochs=[1, 2, 3])})
    assert [(r["rung"], r["gained"], r["seconds"], r["epochs"]) for r in rows] == [
        ("removal", None, 3.0, 0),
        ("fine-tuning", 0.5, 10.0, 3),
    ]


@pytest.mark.parametrize(
    ("recover", "text"),
    [
        ({"rungs": ["fine-tune", "fine-tune"]}, "rungs: fine-tune is listed twice"),
        ({"rungs": ["pray"]}, "recover.rungs.0: Input should be 'compensate', 'reconstruct', 'recalibrate', 'fine-tune'"),
        ({"rungs": ["distill"], "distill": 0.0, "distill_features": 0.0}, "the rung distill compares nothing"),
        ({"preset": "quik"}, "recover.preset: Input should be 'quick', 'standard' or 'long'"),
    ],
)
def test_rungs_that_make_no_sense(recover: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        parse_recipe({"model": {"source": "cifar:resnet20"}, "recover": recover})


def test_one_switch_turns_distillation_on() -> None:
    tree = {"model": {"source": "cifar:resnet20"}, "recover": {"rungs": ["recalibrate", "distill"]}}
    recover = parse_recipe(tree).recover
    assert (recover.distill, recover.temperature, recover.distill_features) == (0.9, 4.0, 0.1)
    assert Recipe.model_validate(parse_recipe(tree).model_dump(mode="json")) == parse_recipe(tree)
    plain = {"rungs": ["recalibrate", "fine-tune"]}
    assert parse_recipe({"model": {"source": "cifar:resnet20"}, "recover": plain}).recover.distill == 0
