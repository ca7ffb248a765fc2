"""A whole scan: its figures, what a stopped one leaves, the images it never sees, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import prunus
from laboratory import subjects
from prunus import Budget, DataError, NothingPruned, PrunusWarning, RecipeError, VerificationFailed
from prunus.laboratory import Subject, workbench
from prunus.laboratory.sensitivity import ScanSettings, scan_network
from prunus.pipeline.images import evaluation_images
from prunus.sources import DataBundle, load_data
from prunus.types import PruningPlan, VerificationReport

pytest.importorskip("plotly")
SETTINGS = ScanSettings(shares=(0.25, 0.5), images=None, batch_size=16, scoring_images=16)


@pytest.fixture(autouse=True)
def small_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of the plots is 4.8 MB of text that only the browser needs."""
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")


def network() -> nn.Sequential:
    """The small network, its classes made equally likely: else it gives one answer for all random images."""
    model = subjects.network(0)
    with torch.no_grad():
        model[-1].bias -= model(torch.randn(500, 2, 6, 6, generator=torch.Generator().manual_seed(3))).mean(0)
    return model


class Untouchable(Dataset[Any]):
    """The test images: whoever looks at one fails."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, _: int) -> Any:
        pytest.fail("a test image was looked at")


def labelled(number: int, seed: int) -> TensorDataset:
    """Images that the network labels itself, so that it is always right."""
    images = torch.randn(number, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return TensorDataset(images, network()(images).argmax(1))


def subject(model: nn.Module | None = None, **splits: Dataset[Any]) -> Subject:
    train, test = labelled(32, 1), Untouchable()
    parts = {"train": train, "validation": labelled(48, 2), "test": test, "calibration": train, **splits}
    data = DataBundle(input_shape=(2, 6, 6), class_names=("a", "b", "c"), source="test images", mean=(0.0,), std=(1.0,), **parts)
    return Subject(lambda _: model or network(), data, {"model": "small", "data": "test images"})


def accuracy(plan: PruningPlan, images: TensorDataset) -> float:
    """Of the silenced network, which shares nothing with removal but the plan."""
    model = network()
    silent = prunus.silence(model, prunus.trace(model, torch.randn(2, 2, 6, 6)), plan).eval()
    with torch.no_grad():
        return float((silent(images.tensors[0]).argmax(1) == images.tensors[1]).float().mean())


def test_figures_are_those_of_the_silenced_network(tmp_path: Path) -> None:
    result = scan_network(subject(), tmp_path, SETTINGS)
    assert json.loads((tmp_path / "sensitivity.json").read_text()) == result
    assert result["network"]["accuracy"] == 1.0 and result["points"][0]["group"] == ""
    assert (result["network"]["images"], result["network"]["split"], result["criterion"]) == (48, "validation", "l1")
    found = {(p["group"], p["removed"]): p for p in result["points"][1:]}
    assert list(found) == [("0", 1), ("0", 3), ("3", 2), ("3", 4)] and found["3", 2]["share"] == 0.25
    model = network()
    graph = prunus.trace(model, torch.randn(2, 2, 6, 6))
    scores = prunus.score(model, graph, "l1").by_group
    for (name, count), point in found.items():
        mask = torch.ones(point["channels"], dtype=torch.bool)
        mask[scores[name].argsort()[:count]] = False
        expected = accuracy(PruningPlan({name: mask}, graph.cost()), labelled(48, 2))
        assert point["accuracy"] == pytest.approx(expected)
    assert len({point["accuracy"] for point in result["points"]}) > 2
    (classifier,) = [g for g in result["groups"] if g["unscanned"]]
    assert classifier["channels"] == 3 and classifier["unscanned"] == "it is the network's output"
    for group in (g for g in result["groups"] if g["unscanned"] is None):
        within = [p for p in found.values() if p["group"] == group["name"] and p["accuracy"] >= 0.99]
        largest = max(within, key=lambda p: p["removed"], default=None)
        assert largest is None or group["largest"].items() >= {**largest, "epsilon": 0.01}.items()
        assert (group["largest"] is None) == (largest is None)


def test_a_stopped_scan_goes_on_and_gives_the_same_files(tmp_path: Path) -> None:
    told: list[str] = []
    whole = scan_network(subject(), tmp_path / "whole", SETTINGS, told.append)
    assert told == [
        "1 of 5: the whole network",
        *(f"{n} of 5: 0, {k} of 6 channels removed" for n, k in ((2, 1), (3, 3))),
        *(f"{n} of 5: 3, {k} of 8 channels removed" for n, k in ((4, 2), (5, 4))),
    ]

    def stop_at_the_fourth(text: str) -> None:
        if text.startswith("4 of 5"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_network(subject(), tmp_path / "part", SETTINGS, stop_at_the_fourth)
    assert not (tmp_path / "part" / "sensitivity.json").exists()
    assert len(list((tmp_path / "part" / "stages").glob("point-*.json"))) == 3
    again: list[str] = []
    assert scan_network(subject(), tmp_path / "part", SETTINGS, again.append) == whole
    assert again == told[3:]
    for name in ("sensitivity.json", "sensitivity.html"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_shares_can_be_added_and_other_settings_are_refused(tmp_path: Path) -> None:
    first = scan_network(subject(), tmp_path, SETTINGS)
    told: list[str] = []
    more = scan_network(subject(), tmp_path, replace(SETTINGS, shares=(0.25, 0.5, 0.75)), told.append)
    assert told == ["4 of 7: 0, 4 of 6 channels removed", "7 of 7: 3, 6 of 8 channels removed"]
    assert [p for p in more["points"] if p in first["points"]] == first["points"]
    with pytest.raises(RecipeError, match=r"settings\.images: None -> 8.*choose another folder with --out"):
        scan_network(subject(), tmp_path, replace(SETTINGS, images=8))


def test_a_criterion_that_needs_images_sees_training_images(tmp_path: Path) -> None:
    asked = replace(SETTINGS, criterion="taylor", options={"per_example": True})
    result = scan_network(subject(), tmp_path, asked)
    stored = json.loads((tmp_path / "stages" / "scores.json").read_text())
    model = network()
    batch = [tuple(part[torch.randperm(32, generator=torch.Generator().manual_seed(0))[:16]] for part in labelled(32, 1).tensors)]
    graph = prunus.trace(model, torch.randn(2, 2, 6, 6))
    expected = prunus.score(model, graph, "taylor", batch, per_example=True)
    assert result["criterion"] == "taylor"
    assert stored["by_group"]["3"] == pytest.approx(expected.by_group["3"].tolist(), rel=1e-4)


def test_the_training_images_where_asked_for_or_nothing_else_is_left(tmp_path: Path) -> None:
    result = scan_network(subject(), tmp_path / "asked", replace(SETTINGS, split="training", images=20))
    assert (result["network"]["images"], result["network"]["split"], result["notes"]) == (20, "training", [])
    test = Untouchable()
    text = "the validation images of these data are the test images: accuracies of the scan are those on training images"
    with pytest.warns(PrunusWarning, match=text):
        result = scan_network(subject(validation=test, test=test), tmp_path / "same", SETTINGS)
    assert (result["network"]["images"], result["network"]["split"], result["notes"]) == (32, "training", [text])
    assert scan_network(subject(validation=test, test=test), tmp_path / "same", SETTINGS) == result  # nothing left to warn of


def test_real_splits_are_told_apart() -> None:
    digits = load_data("fake:1x8x8x3")
    assert evaluation_images(digits, "validation")[1] == "validation"
    assert evaluation_images(replace(digits, validation=digits.test), "validation")[1] == "training"
    twin = type(digits.test)(digits.test.images, digits.test.indices, digits.test.transform)  # type: ignore[attr-defined]
    assert evaluation_images(replace(digits, validation=twin), "validation")[1] == "training"


def test_the_file_serves_the_allocator(tmp_path: Path) -> None:
    scan_network(subject(), tmp_path, SETTINGS)
    result = prunus.prune(
        network(),
        torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0)),
        Budget(channels=0.75, tolerance=0.1),
        allocator=prunus.ALLOCATORS["sensitivity"].with_options({"points": tmp_path / "sensitivity.json"}),
    )
    assert result.plan.provenance["allocator"] == "sensitivity" and result.plan.num_removed == 4
    assert result.verification is not None and result.verification.passed


def test_a_group_too_narrow_for_the_shares_is_told(tmp_path: Path) -> None:
    result = scan_network(subject(), tmp_path, replace(SETTINGS, shares=(0.14,)))
    assert [(g["name"], g["unscanned"]) for g in result["groups"]][:2] == [("0", "too narrow for these shares"), ("3", None)]


def test_an_inexact_removal_ends_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "verify", lambda *_, **__: VerificationReport(0.5, 1e-6, False, "it differs."))
    with pytest.raises(
        VerificationFailed, match=r"removing 1 channels of `0` isn't the same .* \(relative error 5.0e-01, .*it differs"
    ):
        scan_network(subject(), tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "splits", "error", "text"),
    [
        ({"keep": ("*",)}, {}, NothingPruned, "groups are frozen, so there is nothing to scan. `0`: `\\*` is listed in keep"),
        (
            {"split": "test"},
            {},
            RecipeError,
            "split 'test' is none of validation and training: a scan never looks at test images",
        ),
        ({"shares": (0.01,)}, {}, NothingPruned, "there is nothing to scan"),
        ({}, {"calibration": labelled(1, 1)}, DataError, "fewer than 2 training images"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, changes: dict[str, Any], splits: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        scan_network(subject(**splits), tmp_path, replace(SETTINGS, **changes))
    assert not (tmp_path / "sensitivity.json").exists()
