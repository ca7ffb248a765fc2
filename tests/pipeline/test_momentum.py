"""Scores that remember the rounds before: used as asked, followed through surgery, and taken up again after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus.config import parse_recipe
from prunus.importance import kept
from prunus.pipeline import run as pipeline
from prunus.pipeline.rounds import recalled, remembered
from prunus.sources import load_model
from small_nets import batches, build, images

TREE: dict[str, Any] = {
    "name": "momentum",
    "model": {"source": "cifar:resnet8-projection"},
    "data": {"source": "fake:3x12x12x4", "train_limit": 24},
    "train": {"epochs": 0},
    "prune": {"budget": {"macs": 0.5}, "criterion": "taylor", "batches": 1, "rounds": 3, "momentum": 0.9, "tolerance": 0.1},
    "recover": {"steps": 1, "lr": 0.05, "recalibrate_batches": 0},
    "export": {"latency_runs": 3, "onnx": False},
}


class Killed(Exception):
    pass


def kill_at(stage: str) -> Any:
    def announce(name: str) -> None:
        if name == stage:
            raise Killed

    return announce


def weights(out: Path) -> dict[str, torch.Tensor]:
    return prunus.load(out / "small.prunus", load_model("cifar:resnet8-projection", num_classes=4)).state_dict()


def prune_stage(out: Path, number: int) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((out / "stages" / f"round-{number}-prune.json").read_text())
    return {name: value for name, value in stored.items() if name not in ("seconds", "evaluation", "sha256")}  # these hold times


def test_every_round_mixes_the_scores_before_into_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.9 old + 0.1 new, the old ones being those of the channels that the round before kept, averages themselves."""
    asked: list[dict[str, Any]] = []
    plain: list[prunus.Scores] = []
    results: list[Any] = []
    prune = pipeline.prune

    def watched(*args: Any, **options: Any) -> Any:
        asked.append(options)
        plain.append(prune(*args, **{**options, "previous": None, "momentum": 0.0}).scores)
        results.append(prune(*args, **options))
        return results[-1]

    monkeypatch.setattr(pipeline, "prune", watched)
    pipeline.run(parse_recipe(TREE), tmp_path / "out")
    assert [options["momentum"] for options in asked] == [0.9] * 3
    assert asked[0]["previous"] is None
    for before, options, new, result in zip(results, asked[1:], plain[1:], results[1:], strict=False):
        old = kept(before.scores, before.plan).by_group
        assert old.keys() == options["previous"].by_group.keys() == new.by_group.keys()
        for name, values in result.scores.by_group.items():
            assert torch.equal(options["previous"].by_group[name], old[name])
            torch.testing.assert_close(values, 0.9 * old[name] + 0.1 * new.by_group[name], rtol=1e-12, atol=0)
        assert any(not torch.allclose(values, new.by_group[name], rtol=0.01) for name, values in result.scores.by_group.items())


def test_a_resumed_run_remembers_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    pipeline.run(parse_recipe(TREE), tmp_path / "whole")
    for stage in ("round-2-prune", "round-3-prune"):
        with pytest.raises(Killed):
            pipeline.run(parse_recipe(TREE), tmp_path / "cut", resume=True, announce=kill_at(stage))
    pipeline.run(parse_recipe(TREE), tmp_path / "cut", resume=True)
    for number in (1, 2, 3):
        assert prune_stage(tmp_path / "cut", number) == prune_stage(tmp_path / "whole", number)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(cut[name], values) for name, values in whole.items())


def test_without_momentum_nothing_is_remembered(tmp_path: Path) -> None:
    tree = {**TREE, "prune": {**TREE["prune"], "rounds": 2, "momentum": 0.0}}
    pipeline.run(parse_recipe(tree), tmp_path / "out")
    assert "scores" not in prune_stage(tmp_path / "out", 1)


def test_momentum_needs_rounds() -> None:
    tree = {**TREE, "prune": {"momentum": 0.5}}
    with pytest.raises(
        prunus.RecipeError, match="momentum carries scores from round to round, and there is one only: set rounds"
    ):
        parse_recipe(tree)
    assert parse_recipe({**tree, "prune": {"momentum": 0.5, "channels_per_round": 4}}).prune.momentum == 0.5
    for wrong in (-0.1, 1.0):
        with pytest.raises(prunus.RecipeError, match=r"prune\.momentum"):
            parse_recipe({**tree, "prune": {"momentum": wrong, "rounds": 2}})


@pytest.mark.filterwarnings("ignore:criterion bn_scale. .* gammas:prunus.PrunusWarning")
@pytest.mark.parametrize("net", ["Plain", "Residual", "Dense"])
def test_scores_follow_their_channels_through_surgery(net: str) -> None:
    """A channel's gamma stays with it, so what is kept of the old scores is what the small network scores."""
    result = prunus.prune(build(net), images(2), prunus.Budget(channels=0.6), "bn_scale", data=batches(1))
    small = prunus.score(result.model, prunus.trace(result.model, images(2)), "bn_scale").by_group
    left = recalled(json.loads(json.dumps(remembered(result.scores, result.plan)))).by_group
    assert small.keys() == left.keys()
    assert all(torch.equal(left[name], values) for name, values in small.items())
    assert sum(map(len, small.values())) < sum(map(len, result.scores.by_group.values()))
