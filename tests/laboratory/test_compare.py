"""A whole comparison: its figures, what a killed one leaves, rows that don't apply, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import prunus
from laboratory.subjects import REMOVAL, SETTINGS, bundle, network, subject
from prunus import NothingPruned, PrunusWarning, RecipeError, TrainingError
from prunus.laboratory import Subject, compare, parts, read_criteria, spearman
from prunus.laboratory.images import scoring_batches
from prunus.laboratory.summary import figure

pytest.importorskip("plotly")


@pytest.fixture(autouse=True)
def small_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of the plots is 4.8 MB of text that only the browser needs."""
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")


def row(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(r for r in result["criteria"] if r["name"] == name)


def test_figures_are_those_of_the_criteria(tmp_path: Path) -> None:
    result = compare(subject(), read_criteria("l1,taylor(per_example=true),random"), [0, 1], tmp_path, SETTINGS)
    assert json.loads((tmp_path / "comparison.json").read_text()) == result
    assert [r["name"] for r in result["criteria"]] == ["oracle", "l1", "taylor(per_example=True)", "random"]
    model = network()
    graph = prunus.trace(model, torch.randn(2, 2, 6, 6))
    expected: dict[str, list[float]] = {"l1": [], "taylor": []}
    for seed in (0, 1):
        batches = scoring_batches(bundle(), 16, 8, seed)
        oracle = torch.cat(list(prunus.score(model, graph, "oracle", batches).by_group.values()))
        for name, options in (("l1", {}), ("taylor", {"per_example": True})):
            scores = prunus.score(model, graph, name, batches, seed=seed, **options)
            expected[name].append(spearman(torch.cat(list(scores.by_group.values())), oracle) or 0.0)
    for name, label in (("l1", "l1"), ("taylor", "taylor(per_example=True)")):
        found = row(result, label)["spearman"]["raw"]
        assert found["values"] == pytest.approx(expected[name])
        assert found["mean"] == pytest.approx(sum(expected[name]) / 2)
        assert found["std"] == pytest.approx(abs(expected[name][0] - expected[name][1]) / 2**0.5)
    assert expected["taylor"][0] != expected["taylor"][1]  # every seed draws its own images
    random = row(result, "random")["spearman"]["raw"]["values"]
    assert random[0] != random[1]
    assert result["correlations"]["names"] == ["oracle", "l1", "taylor(per_example=True)", "random"]
    assert result["correlations"]["raw"][0][1] == pytest.approx(row(result, "l1")["spearman"]["raw"]["mean"])
    assert row(result, "l1")["layers"].keys() == {"0", "3"} and result["removal"] is None
    assert result["network"]["accuracy"]["mean"] == 1.0 and result["network"]["channels"] == result["network"]["sampled"] == 14


def test_mean_and_spread_leave_out_what_is_undefined() -> None:
    assert figure([1.0, None, 3.0]) == {"values": [1.0, None, 3.0], "mean": 2.0, "std": pytest.approx(2**0.5)}
    assert figure([None]) == {"values": [None], "mean": None, "std": None}
    assert figure([4.0])["std"] is None


def test_a_killed_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(subject(), read_criteria("l1,l2,random"), [0, 1], tmp_path / "whole", REMOVAL)
    asked: list[str] = []
    original = parts.score_by

    def watched(contender: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(f"{contender.label}/{kwargs['seed']}")
        if len(asked) == 5:
            raise KeyboardInterrupt
        return original(contender, *args, **kwargs)

    monkeypatch.setattr(parts, "score_by", watched)
    with pytest.raises(KeyboardInterrupt):
        compare(subject(), read_criteria("l1,l2,random"), [0, 1], tmp_path / "part", REMOVAL)
    assert not (tmp_path / "part" / "comparison.json").exists()
    result = compare(subject(), read_criteria("l1,l2,random"), [0, 1], tmp_path / "part", REMOVAL)
    assert asked == ["l1/0", "l2/0", "random/0", "l1/1", "l2/1", "l2/1", "random/1"]
    for part in ("correlations", "removal"):
        assert result[part] == whole[part]
    assert [r.get("spearman") for r in result["criteria"]] == [r.get("spearman") for r in whole["criteria"]]


def test_a_finished_comparison_computes_nothing_and_criteria_can_be_added(tmp_path: Path) -> None:
    first = compare(subject(), read_criteria("l1"), [0], tmp_path, SETTINGS)
    nothing = Subject(lambda _: pytest.fail("built the network again"), bundle(), subject().about)
    assert compare(nothing, read_criteria("l1"), [0], tmp_path, SETTINGS)["criteria"] == first["criteria"]
    more = compare(subject(), read_criteria("l1,l2"), [0], tmp_path, SETTINGS)
    assert more["criteria"][:2] == first["criteria"] and more["criteria"][2]["name"] == "l2"


def test_another_comparison_in_the_folder_is_refused(tmp_path: Path) -> None:
    compare(subject(), read_criteria("l1"), [0], tmp_path, SETTINGS)
    with pytest.raises(RecipeError, match=r"settings\.images: 16 -> 24.*choose another folder with --out"):
        compare(subject(), read_criteria("l1"), [0], tmp_path, replace(SETTINGS, images=24))


def test_a_criterion_that_does_not_apply_is_a_row_that_says_why(tmp_path: Path) -> None:
    model = network(norms=False)
    given = Subject(lambda _: model, bundle(), {"model": "no norms"})
    result = compare(given, read_criteria("bn_scale,l1"), [0], tmp_path, REMOVAL)
    found = row(result, "bn_scale")
    assert found["not_applicable"].startswith("criterion bn_scale can score none of the 2 groups") and "spearman" not in found
    assert result["correlations"]["names"] == ["oracle", "l1"] and set(result["removal"]["curves"]) == {"oracle", "l1"}
    page = (tmp_path / "comparison.html").read_text()
    assert "Criteria that this network doesn&#x27;t allow" in page and "can score none of the 2 groups" in page


def test_an_untrained_network_is_told_once(tmp_path: Path) -> None:
    images, labels = bundle().test.tensors
    wrong = TensorDataset(images, (labels + 1) % 3)
    given = Subject(lambda _: network(), replace(bundle(), test=wrong), {})
    with pytest.warns(
        PrunusWarning, match=r"right on 0\.0% of 20 test images, no better than guessing among 3 classes"
    ) as caught:
        result = compare(given, read_criteria("l1"), [0, 1], tmp_path, SETTINGS)
    assert len(caught) == 1 and len(result["warnings"]) == 1
    assert "no better than guessing" in (tmp_path / "comparison.html").read_text()


def test_a_sample_of_channels(tmp_path: Path) -> None:
    result = compare(subject(), read_criteria("l1"), [0], tmp_path, replace(REMOVAL, channels=9))
    assert result["network"]["sampled"] == row(result, "l1")["channels_compared"] == 9
    assert [g["sampled"] for g in result["network"]["groups"]] == [4, 5, 0]
    assert set(result["removal"]["curves"]) == {"l1"}  # the oracle doesn't know all channels, so nothing is removed by it


def test_accuracy_after_removal(tmp_path: Path) -> None:
    settings = replace(REMOVAL, shares=(0.25, 0.5, 0.95))
    result = compare(subject(), read_criteria("l1,random"), [0], tmp_path, settings)
    removal = result["removal"]
    assert removal["recoveries"] == ["none", "recalibrated", "fine-tuned"]
    part = json.loads((tmp_path / "stages" / "seed-0-l1-remove-0.5.json").read_text())
    assert part["channels_removed"] == 7 and 0 <= part["accuracy"]["none"] <= 1
    model = network()
    graph = prunus.trace(model, torch.randn(2, 2, 6, 6))
    plan = prunus.allocate(
        graph, prunus.score(model, graph, "l1"), prunus.Budget(channels=0.5, max_pruning_ratio=1.0, tolerance=0.99)
    )
    small, _ = prunus.remove(model, graph, plan)
    test = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:20]
    images, labels = bundle().test.tensors
    right = float((small(images[test]).argmax(1) == labels[test]).double().mean())
    assert removal["curves"]["l1"]["none"][1]["mean"] == pytest.approx(right)
    assert [p["mean"] for p in removal["curves"]["l1"]["none"]][2] is None  # 14 channels in two groups: at least one stays
    assert [r["share"] for r in removal["refused"]] == [0.95] * 3 and "reached" in removal["refused"][0]["why"]


def test_shares_that_cannot_be_reached_are_told(tmp_path: Path) -> None:
    result = compare(subject(), read_criteria("l1"), [0], tmp_path, replace(REMOVAL, shares=(0.95,)))
    assert result["removal"]["recoveries"] == [] and [r["criterion"] for r in result["removal"]["refused"]] == ["oracle", "l1"]
    assert "l1, seed 0, 95.0 %: " in (tmp_path / "comparison.html").read_text()


def test_a_removal_that_is_not_exact_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = prunus.VerificationReport(0.25, 1e-9, False, "made up")
    monkeypatch.setattr("prunus.laboratory.removal.verify", lambda *_, **__: wrong)
    result = compare(subject(), read_criteria("l1"), [0], tmp_path, REMOVAL)
    assert result["removal"]["refused"][0]["why"] == "removed and silenced networks differ by 2.5e-01 (relative). made up"
    assert [p["mean"] for p in result["removal"]["curves"]["l1"].get("none", [])] == []


def test_recovery_that_fails_is_told_and_the_rest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(*_: Any, **__: Any) -> None:
        raise TrainingError("the loss is nan")

    monkeypatch.setattr("prunus.laboratory.removal.train", diverged)
    removal = compare(subject(), read_criteria("l1"), [0], tmp_path, REMOVAL)["removal"]
    assert removal["recoveries"] == ["none", "recalibrated"]
    assert removal["refused"][0]["why"] == "fine-tuned: the loss is nan"


def test_without_fine_tuning(tmp_path: Path) -> None:
    settings = replace(REMOVAL, recovery=replace(REMOVAL.recovery, steps=0), shares=(0.25,))
    result = compare(subject(), read_criteria("l1"), [0], tmp_path, settings)
    assert result["removal"]["recoveries"] == ["none", "recalibrated"]


def test_nothing_to_prune_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingPruned, match="all 3 groups are frozen, so there is nothing to compare"):
        compare(subject(), read_criteria("l1"), [0], tmp_path, replace(SETTINGS, keep=("*",)))


def test_the_network_is_left_as_found(tmp_path: Path) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compare(Subject(lambda _: model, bundle(), {}), read_criteria("taylor,apoz"), [0], tmp_path, REMOVAL)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model, nn.Module) and all(p.grad is None for p in model.parameters())


def test_steps_are_announced(tmp_path: Path) -> None:
    said: list[str] = []
    compare(subject(), read_criteria("l1"), [0], tmp_path, REMOVAL, said.append)
    assert said == [
        "1 of 5: seed 0, network",
        "2 of 5: seed 0, oracle",
        "3 of 5: seed 0, l1",
        "4 of 5: seed 0, oracle, accuracy after removal",
        "5 of 5: seed 0, l1, accuracy after removal",
    ]
