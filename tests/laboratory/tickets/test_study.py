"""A whole laboratory: what is computed, what a killed one leaves, processes, growing recipes, claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.laboratory.tickets import study
from prunus.laboratory.tickets.claims import verdict
from prunus.laboratory.tickets.jobs import jobs_of
from prunus.laboratory.tickets.lottery import Lottery
from prunus.laboratory.tickets.study import study_tickets
from prunus.laboratory.tickets.training import build_network, load_images
from prunus.ticket_recipe import TicketRecipe, parse_ticket_recipe
from prunus.tickets import load_masks

pytest.importorskip("plotly")
DENSE = {"model": "mlp:12-8", "epochs": 2, "train_limit": 120, "lr": 0.01}
CONV = {"model": "conv:6-8", "epochs": 2, "train_limit": 120, "optimizer": "sgd", "lr": 0.05, "schedule": "steps"}


@pytest.fixture(autouse=True)
def small_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")


def recipe(**sections: Any) -> TicketRecipe:
    return parse_ticket_recipe({"seeds": [0, 1], "networks": {"dense": DENSE, "conv": CONV}, **sections})


def everything() -> TicketRecipe:
    return recipe(
        lottery={"networks": ["dense"], "rounds": 2, "rates": 0.6, "rewind_steps": [0, 2], "scopes": ["layer", "global"]},
        deconstruction={
            "networks": ["dense"],
            "kept": [0.3],
            "criteria": ["large_final_same_sign", "snip"],
            "kept_actions": ["reinit", "reinit_keep_sign"],
            "pruned_actions": ["freeze"],
        },
        supermasks={"networks": ["conv"], "epochs": 2, "rescale": [True], "signed_constant": [False], "samples": 2},
        rethinking={"networks": ["conv"], "lrs": [0.05], "fine_tune_epochs": 1},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("laboratory")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")
        return folder, study_tickets(everything(), folder)


def test_every_section_has_its_figures(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    assert json.loads((folder / "tickets.json").read_text()) == result
    assert [(cell["scope"], cell["rewind_step"]) for cell in result["lottery"]] == [
        ("layer", 0), ("layer", 2), ("global", 0), ("global", 2)
    ]  # fmt: skip
    total = 12 * 64 + 8 * 12 + 10 * 8
    for cell in result["lottery"]:
        assert [one["kept"] for one in cell["rounds"]] == pytest.approx([total, 0.4 * total, 0.16 * total], abs=1.5)
        assert list(cell["rounds"][0]["arms"]) == ["ticket"]
        assert list(cell["rounds"][2]["arms"]) == ["ticket", "reinit", "reshuffled", "random_mask"]
        first = cell["rounds"][1]
        assert first["overlap_one_shot"]["values"] == [1.0, 1.0]
        if cell["scope"] == "layer":  # two independent masks of density d: d / (2 - d)
            assert first["overlap_random"]["mean"] == pytest.approx(0.25, abs=0.05)
        assert all(len(arm["accuracy"]["values"]) == 2 for arm in first["arms"].values())
        layers = [figure["mean"] for figure in first["layers"].values()]
        assert (max(layers) - min(layers) < 0.01) == (cell["scope"] == "layer")
        assert first["arms"]["ticket"]["curve"][0]["step"] == cell["rewind_step"]
        assert first["arms"]["reinit"]["curve"][0]["step"] == 0
    (cell,) = result["deconstruction"]
    assert list(cell["criteria"]) == ["large_final_same_sign", "snip"] and cell["classes"] == 10
    (mask,) = result["supermasks"]
    assert 0 < mask["density"]["mean"] < 1 and 0 <= mask["sampled"]["mean"] <= 1
    (small,) = result["rethinking"]
    assert small["ratio"] == small["macs"] / small["small_macs"] > 2
    assert small["arms"]["scratch-B"]["epochs"] == int(2 * small["ratio"]) and small["arms"]["fine-tuned"]["epochs"] == 1
    wheres = [row["where"] for row in result["claims"]]
    assert len(wheres) == 4 + 2 + 1 and any("rewound to step 2" in where for where in wheres)


def test_a_second_call_repeats_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    files = {path: path.stat().st_mtime_ns for path in (folder / "jobs").rglob("*.*")}
    again = study_tickets(everything(), folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "jobs").rglob("*.*")} == files
    changing = ("created", "seconds")
    assert {k: v for k, v in again.items() if k not in changing} == {k: v for k, v in result.items() if k not in changing}


def lottery(rounds: int = 3, **more: Any) -> TicketRecipe:
    asked = {"networks": ["dense"], "rounds": rounds, "rates": 0.5, **more}
    return recipe(seeds=[3], lottery=asked)


def test_a_killed_lottery_goes_on_to_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = study_tickets(lottery(), tmp_path / "whole")
    real, trained = Lottery._train, list[tuple[str, int]]()

    def dies(self: Lottery, arm: str, masks: Any, number: int) -> Any:
        if number == 2 and arm == "reinit":
            raise KeyboardInterrupt
        return real(self, arm, masks, number)

    def counts(self: Lottery, arm: str, masks: Any, number: int) -> Any:
        trained.append((arm, number))
        return real(self, arm, masks, number)

    monkeypatch.setattr(Lottery, "_train", dies)
    with pytest.raises(KeyboardInterrupt):
        study_tickets(lottery(), tmp_path / "killed")
    monkeypatch.setattr(Lottery, "_train", counts)
    found = study_tickets(lottery(), tmp_path / "killed")
    assert found["lottery"] == whole["lottery"]
    assert {number for _, number in trained} == {2, 3} and len(trained) == 8
    trained.clear()
    longer = study_tickets(lottery(rounds=4), tmp_path / "killed")
    assert {number for _, number in trained} == {4} and longer["lottery"][0]["rounds"][:4] == whole["lottery"][0]["rounds"]


def test_masks_are_nested_and_start_from_the_whole_network(tmp_path: Path) -> None:
    study_tickets(lottery(scopes=["global"]), tmp_path)
    (folder,) = (tmp_path / "jobs").iterdir()
    masks = [load_masks(folder / f"masks-{n:02d}.safetensors") for n in (1, 2, 3)]
    assert masks[1].within(masks[0]) and masks[2].within(masks[1])
    total = 12 * 64 + 8 * 12 + 10 * 8
    assert [mask.kept for mask in masks] == [total // 2, total // 4, total // 8]
    network = lottery().networks["dense"]
    assert list(masks[0].by_name) == ["1.weight", "3.weight", "5.weight"]
    assert build_network(network.model, load_images(network), 3)[1].weight.shape == masks[0].by_name["1.weight"].shape


def test_one_shot_masks_come_from_one_training(tmp_path: Path) -> None:
    found = study_tickets(lottery(schedules=["one-shot"]), tmp_path)
    assert [one["overlap_one_shot"]["mean"] for one in found["lottery"][0]["rounds"]] == [1.0] * 4


def test_processes_give_the_same_figures(tmp_path: Path) -> None:
    one = study_tickets(lottery(rounds=1), tmp_path / "one")
    told: list[tuple[int, int, str]] = []
    two = study_tickets(lottery(rounds=1), tmp_path / "two", 2, lambda *step: told.append(step))
    assert one["lottery"] == two["lottery"] and two["processes"] == 2
    assert told[0] == (0, 1, "") and told[1][:2] == (1, 1) and told[1][2].startswith("lottery, dense, seed 3")


def test_other_settings_have_other_folders() -> None:
    stems = [job.stem for job in jobs_of(everything())]
    assert len(stems) == len(set(stems)) == 2 * (4 + 1 + 1 + 1)
    assert jobs_of(lottery(rounds=1))[0].stem == jobs_of(lottery(rounds=9))[0].stem
    assert jobs_of(lottery(early=0.2))[0].stem != jobs_of(lottery())[0].stem


def test_threads_are_left_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    try:
        monkeypatch.setitem(study.KINDS, "lottery", type("Fails", (), {"__init__": lambda *_: None, "execute": _fail}))
        with pytest.raises(ZeroDivisionError):
            study_tickets(lottery(), tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def _fail(_: Any) -> Any:
    assert torch.get_num_threads() == 1
    raise ZeroDivisionError


def test_verdicts_are_confidence_intervals() -> None:
    """Mean 2, standard deviation 1, three seeds: 2 -+ 4.303 * 1 / sqrt(3) = 2 -+ 2.48 holds zero; three times closer doesn't."""
    assert verdict([1.0, 2.0, 3.0]) == "undecided"
    assert verdict([1.67, 2.0, 2.33]) == "yes" and verdict([-1.67, -2.0, -2.33]) == "no"
    assert verdict([5.0]) == "undecided" and verdict([0.0, 0.0]) == "undecided"
