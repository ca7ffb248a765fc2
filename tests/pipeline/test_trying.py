"""Allocators that try plans out, in a run: what they judge on, what a stopped run keeps, what is known before training."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus import Budget
from prunus.config import parse_recipe
from prunus.pipeline import judge as judging
from prunus.pipeline.run import run
from prunus.pipeline.trainer import Trainer
from small_nets import build, images

pytest.importorskip("optuna")
TREE: dict[str, Any] = {
    "name": "tried",
    "model": {"source": "cifar:resnet8-projection"},
    "data": {"source": "fake:3x8x8x4", "validation_fraction": 0.2},
    "train": {"epochs": 1, "lr": 0.05},
    "recover": {"rungs": ["recalibrate", "fine-tune"], "epochs": 0, "recalibrate_batches": 2},
    "export": {"latency_runs": 3, "onnx": False},
}
ALLOCATORS: dict[str, dict[str, Any]] = {
    "sensitivity": {"shares": [0.25, 0.5, 0.75]},
    "netadapt": {"rounds": 2},
    "search": {"trials": 6},
}


def tree(allocator: str, **prune: Any) -> dict[str, Any]:
    asked = {"budget": {"macs": 0.5}, "criterion": "l1", "allocator": allocator, "allocator_options": ALLOCATORS[allocator]}
    return {**TREE, "prune": {**asked, "trial_images": 50, **prune}}


@pytest.fixture(autouse=True)
def small_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.pipeline.run.write_report", lambda result, path: None)


class Stopping:
    """Lets so many evaluations through, then it is as if the run were killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left, self.seen = after, 0
        real = judging.evaluate

        def evaluate(*arguments: Any, **options: Any) -> Any:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left, self.seen = self.left - 1, self.seen + 1
            return real(*arguments, **options)

        monkeypatch.setattr(judging, "evaluate", evaluate)


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_a_stopped_run_measures_no_plan_twice(allocator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe(tree(allocator))
    whole = run(recipe, tmp_path / "whole")
    assert whole["budget"][0]["met"]
    told = json.loads((tmp_path / "whole" / "stages" / "round-1-prune.json").read_text())["tried"]
    evaluated = len(list((tmp_path / "whole" / "stages" / "round-1-accuracies").iterdir()))
    assert told["images"] == 50 and told["split"] == "validation" and told["plans"] >= evaluated > 4
    with monkeypatch.context() as stopping:
        Stopping(stopping, after=3)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "cut")
    with monkeypatch.context() as counting:
        counted = Stopping(counting, after=-1)
        resumed = run(recipe, tmp_path / "cut", resume=True)
    assert counted.seen == evaluated - 3
    assert (tmp_path / "cut" / "small.prunus").read_bytes() == (tmp_path / "whole" / "small.prunus").read_bytes()
    assert resumed["groups"] == whole["groups"]


def test_every_round_tries_plans_of_its_own(tmp_path: Path) -> None:
    run(parse_recipe(tree("netadapt", rounds=2)), tmp_path)
    first, second = ({p.name for p in (tmp_path / "stages" / f"round-{n}-accuracies").iterdir()} for n in (1, 2))
    assert first and second and not first & second


def test_mistakes_are_known_before_training(tmp_path: Path) -> None:
    for options, error, text in (
        ({"allocator_options": {"sampler": "best"}}, prunus.UnknownName, "unknown sampler 'best'"),
        ({"allocator_options": {"steps": 3}}, prunus.UnknownName, "unknown option of allocator search 'steps'"),
        ({"budget": {"macs": 0.0001}}, prunus.BudgetNotMet, "can't be reached"),
        ({"limits": {"layer9": 0.5}}, prunus.UnknownName, "unknown group or layer in limits 'layer9'"),
    ):
        with pytest.raises(error, match=text):
            run(parse_recipe(tree("search", **options)), tmp_path / "out")
        assert not (tmp_path / "out" / "stages").exists()


# -- prune() itself


def judge(model: nn.Module) -> float:
    """More channels of `three` are better."""
    return model.three[0].weight.shape[0] / 32  # type: ignore[union-attr,return-value]


def test_prune_hands_the_judge_small_networks() -> None:
    model = build("Plain")
    seen: list[nn.Module] = []

    def looking(small: nn.Module) -> float:
        seen.append(small)
        assert small is not model
        return judge(small)

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = prunus.prune(model, images(2), Budget(macs=0.5), allocator="netadapt", evaluate=looking)
    assert result.plan.counts()["three.0"] >= 28 > 6 > result.plan.counts()["one.0"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert judge(seen[0]) == 1.0 and len(seen) == result.plan.provenance["evaluations"]
    assert result.verification is not None and result.verification.passed
    with pytest.raises(prunus.EvidenceError, match="netadapt tries plans out"):
        prunus.prune(model, images(2), Budget(macs=0.5), allocator="netadapt")


# -- prune while training: so many channels every so many steps


def test_pruning_while_training_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Molchanov's schedule: 24 channels, then 2 batches, until the budget is met; stopped in the second round's batches."""
    asked = {"budget": {"macs": 0.6}, "criterion": "taylor", "batches": 1, "channels_per_round": 24, "momentum": 0.9}
    rungs = ["recalibrate", "fine-tune"]
    recover = {"rungs": rungs, "steps": 2, "schedule": "constant", "final_epochs": 1, "recalibrate_batches": 0, "lr": 0.01}
    recipe = parse_recipe({**TREE, "prune": asked, "recover": recover})
    whole = run(recipe, tmp_path / "whole")
    rounds = whole["rounds"]
    assert len(rounds) > 3
    assert all(a["channels"] - b["channels"] == 24 for a, b in pairwise(rounds[:-1]))
    real, fitted = Trainer.fit, list[str]()

    def fit(self: Trainer, model: Any, settings: Any, name: str, *rest: Any, **options: Any) -> Any:
        fitted.append(name)
        if name == "round-2-fine-tune":
            raise KeyboardInterrupt
        return real(self, model, settings, name, *rest, **options)

    with monkeypatch.context() as stopping:
        stopping.setattr(Trainer, "fit", fit)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "cut")
    assert fitted == ["train", "round-1-fine-tune", "round-2-fine-tune"]
    run(recipe, tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "small.prunus").read_bytes() == (tmp_path / "whole" / "small.prunus").read_bytes()
