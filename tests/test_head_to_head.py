"""benchmarks/head_to_head.py: what its tables name exists, networks come back from their files, and sides are compared fairly."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from torch import nn

import prunus
from prunus.sparsity import SPARSITY_METHODS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = ("head_to_head", "_head_to_head", "_head_to_head_page", "_rows", "_curves", "_peer_pruning", "_criteria")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts of benchmarks/ import one another by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(BENCHMARKS.parent)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def module(name: str) -> ModuleType:
    return import_module(name)


def test_tables_and_rows_name_what_there_is() -> None:
    tables, rows = module("_head_to_head").read_tables(BENCHMARKS / "head_to_head.toml")
    places = {
        "cifar10": "images.zip",
        "cats_dogs": "photos.zip",
        "resnet20_weights": "20.safetensors",
        "resnet56_weights": "56.safetensors",
    }
    for table in tables.values():
        recipe = table.recipe_of(1, {name: places[name] for name in table.data})
        assert (recipe.seed, recipe.recover.distill) == (1, 0.0), "distillation is a rung of its own rows"
        assert set(table.rows) <= rows.keys() and table.scratch_of in table.rows
        assert rows[table.scratch_of].by == "prunus"
    used = {name for table in tables.values() for name in table.rows}
    assert used == rows.keys()
    for row in rows.values():
        known = {"prunus": {*prunus.CRITERIA, *SPARSITY_METHODS}, "control": {"longer", "scratch-e", "scratch-b"}}
        assert row.by == "torch-pruning" or row.way in known[row.by]


def test_rows_of_torch_pruning_name_its_importances() -> None:
    pytest.importorskip("torch_pruning")
    peer = module("_peer_pruning")
    _, rows = module("_head_to_head").read_tables(BENCHMARKS / "head_to_head.toml")
    own = [row for row in rows.values() if row.by == "torch-pruning"]
    assert {row.way for row in own} == peer.IMPORTANCES.keys()
    assert {row.way for row in own if row.sparse} == peer.TRAINED.keys()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", ["l2", "taylor", "lamp"])
def test_the_peers_ratio_is_searched_until_its_cost_is_that_of_the_target(way: str) -> None:
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model, example = small_net().eval(), torch.randn(2, 3, 16, 16)
    full = prunus.trace(model, example).cost().macs
    batches = [(torch.randn(4, 3, 16, 16), torch.randint(5, (4,)))]
    small = module("_peer_pruning").pruned(model, example, way, full // 3, ("6",), batches, global_pruning=True)
    assert prunus.trace(small, example).cost().macs == pytest.approx(full / 3, rel=0.03)
    assert small[6].out_features == 5 and model[0].out_channels == 32, "the head stays, and so does the network that was given"


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


@pytest.mark.parametrize("name", ["cifar:resnet20", "torchvision:mobilenet_v2"])
def test_networks_come_back_from_their_files(tmp_path: Path, name: str) -> None:
    """Pruned by Prunus, saved as a bare state, put into a full-size network: the same outputs."""
    from prunus.sources import load_model

    example = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    full = load_model(name, num_classes=4).double().eval()
    small = prunus.prune(full, example, prunus.Budget(macs=0.5), allocator="uniform", verify=False).model.eval()
    save_file({key: value.contiguous() for key, value in small.state_dict().items()}, tmp_path / "small.safetensors")
    again = module("_head_to_head").shaped(load_model(name, num_classes=4).double(), tmp_path / "small.safetensors")
    with torch.no_grad():
        assert torch.allclose(again(example), small(example), rtol=1e-9, atol=0)
    cost, same = (prunus.trace(model, example).cost() for model in (small, again))
    assert (cost.macs, cost.parameters) == (same.macs, same.parameters)


def row_of(name: str, by: str, validation: float, after: list[float], seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    found = {"row": name, "by": by, "way": "l1", "ratio": 2, "seeds": list(seeds)}
    return {**found, "validation": {"mean": validation}, "after": {"values": after}}


def test_only_rows_with_all_seeds_are_drawn() -> None:
    kept, after = {"mean": 0.5}, {"mean": 0.8, "std": 0.01}
    rows = [{"row": name, "seeds": seeds, "macs_kept": kept, "after": after} for name, seeds in (("all", [0, 1]), ("one", [0]))]
    points = module("_head_to_head_page").points
    assert points(rows, "all") == [(50.0, 80.0, 1.0)] and points(rows, "one") == []


def test_the_best_of_each_side_is_chosen_by_validation_and_compared_on_the_test_images() -> None:
    ours, theirs = [0.80, 0.83, 0.82], [0.79, 0.80, 0.81]
    rows = [
        row_of("lucky", "prunus", 0.7, [0.99, 0.99, 0.99]),
        row_of("chosen", "prunus", 0.9, ours),
        row_of("peer", "torch-pruning", 0.8, theirs),
        row_of("glance", "prunus", 0.99, [0.99], seeds=(0,)),  # one seed: a look, no more
        {**row_of("chance", "prunus", 1.0, [1.0, 1.0, 1.0]), "way": "random"},  # a control, whoever does it
    ]
    found = module("_head_to_head_page").compare(rows, 2)
    assert found["rows"] == {"prunus": "chosen", "torch-pruning": "peer"}
    assert found["difference"]["values"] == pytest.approx([0.01, 0.03, 0.01])
    referee = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found["interval"] == pytest.approx([referee.low, referee.high])


def test_seeds_that_only_one_side_has_are_not_compared() -> None:
    compare = module("_head_to_head_page").compare
    ours = row_of("ours", "prunus", 0.9, [0.9, 0.8], seeds=(1, 2))
    peer = row_of("peer", "torch-pruning", 0.9, [0.5, 0.7], seeds=(0, 1))
    found = compare([ours, peer], 2)
    assert (found["seeds"], found["interval"]) == ([1], None)
    assert found["difference"]["values"] == pytest.approx([0.2])
    assert compare([ours], 2) is None and compare([ours, peer], 3) is None


def test_a_part_says_whether_its_cost_is_that_of_the_others() -> None:
    page = module("_head_to_head_page")
    row = module("_head_to_head").Row("peer", "torch-pruning", "l1")
    figures = {"before": 0.1, "after": 0.5, "validation": 0.5, "macs": 50, "parameters": 5}
    part = {
        "row": "peer",
        "ratio": 2,
        "seed": 0,
        "cpu": "x",
        "base": "a",
        **figures,
        "seconds": {"pruning": 1.0, "recovery": 2.0},
    }
    assert page.summary(row, 2, {"a": {**part, "macs_kept": 0.504}})["equal_macs"]
    assert not page.summary(row, 2, {"a": {**part, "macs_kept": 0.504}, "b": {**part, "macs_kept": 0.51}})["equal_macs"]
    assert page.summary(row, 4, {"a": {**part, "macs_kept": 0.504}}) is None


def test_seconds_of_two_processors_have_no_mean() -> None:
    page = module("_head_to_head_page")
    row = module("_head_to_head").Row("longer", "control", "longer")
    figures = {"before": 0.1, "after": 0.5, "validation": 0.5, "macs": 50, "parameters": 5, "macs_kept": 1.0}
    part = {"row": "longer", "ratio": 2, "base": "a", **figures}
    slow = {**part, "cpu": "slow", "seconds": {"pruning": 1.0, "recovery": 30.0}}
    fast = {**part, "cpu": "fast", "seconds": {"pruning": 1.0, "recovery": 10.0}}
    parts = {"0": {**slow, "seed": 0}, "1": {**slow, "seed": 1}, "2": {**fast, "seed": 2}}
    assert page.machines(parts) == ["slow", "fast"]
    found = page.summary(row, 2, parts)
    assert found["seconds"]["recovery"]["values"] == [30.0, 30.0] and len(found["after"]["values"]) == 3
    other = {**parts, "3": {**fast, "seed": 3, "row": "random"}}
    alone = page.summary(module("_head_to_head").Row("random", "prunus", "random"), 2, other)
    assert alone["seconds"] is None
    told = {"command": "c", "environment": {"torch": "2"}, "peer": "p", "epochs": 4, "compared": [], "parts": other}
    text = page.page({**told, "rows": [found, alone]})
    assert "on slow, torch 2" in text and "2 of 4 parts were made on fast: seconds leave them out." in text
    assert "| 1 | 30 |" in text and "|  |  |  |" in text


def test_a_stored_part_is_not_replaced_by_one_made_again(tmp_path: Path) -> None:
    """Controls from scratch need their neighbour's network: where it is made again, its stored figures stay."""
    from argparse import Namespace

    asked = {"rows": None, "ratios": None, "seeds": None}
    chosen = Namespace(table="digits", data=[], pilot=None, folder=tmp_path, **asked)
    work = module("head_to_head").HeadToHead(chosen)
    row, ratio, seed = work.parts()[0]
    stored = work.kept(row, ratio, seed)
    assert stored is not None, "the table is complete"
    work.file(row, ratio, seed).write_text(json.dumps({**stored, "after": 0.0}))
    assert work.kept(row, ratio, seed) == stored


def test_rows_on_different_trained_networks_are_named() -> None:
    mixed = module("_head_to_head_page").mixed_bases
    assert mixed([{"bases": {"0": "a", "1": "b"}}, {"bases": {"0": "a", "1": "c"}}]) == ["1"]
    assert mixed([{"bases": {"0": "a", "1": "b"}}, {"bases": {"0": "a"}}]) == []


def test_a_digest_tells_networks_apart() -> None:
    digest = module("_head_to_head").digest
    model = small_net()
    before = digest(model)
    assert digest(small_net().requires_grad_(False)) != before, "other random weights"
    with torch.no_grad():
        again = digest(model)
        model[3].bias[0] += 1e-6
    assert (again, digest(model) == before) == (before, False)


def test_a_call_may_make_some_parts_only(tmp_path: Path) -> None:
    from argparse import Namespace

    asked = {"rows": "taylor,random", "ratios": "4", "seeds": None}
    chosen = Namespace(table="digits", data=[], pilot=None, folder=tmp_path, **asked)
    work = module("head_to_head").HeadToHead(chosen)
    made = [(row.name, ratio, seed) for row, ratio, seed in work.parts() if work.wanted(row, ratio, seed)]
    assert made == [(row, 4, seed) for row in ("taylor", "random") for seed in (0, 1, 2)]


def test_curves_are_a_picture() -> None:
    curves = module("_curves")
    drawn = [curves.Curve(f"{side}<{i}>", side, [(25, 60 + i, 1), (50, 80 + i, 2)]) for side in curves.COLOURS for i in range(3)]
    tree = ElementTree.fromstring(curves.curves("a title", "a unit", drawn))
    space = "{http://www.w3.org/2000/svg}"
    assert len(tree.findall(f"{space}polyline")) == 9 and len(tree.findall(f"{space}polygon")) == 6, "bands for two of each side"
    assert "control<2>" in [text.text for text in tree.findall(f"{space}text")]


def test_lines_that_would_look_alike_are_left_out_and_the_picture_says_so() -> None:
    curves = module("_curves")
    most = len(curves.DASHES)
    drawn = [curves.Curve(f"row-{i:02}", "prunus", [(25, 60 + i, 1), (50, 80 + i, 2)]) for i in range(most + 3)]
    told, whole = curves.curves("a title", "a unit", drawn), curves.curves("a title", "a unit", drawn[3:])
    assert f"a unit; the best {most} rows of each side" in told and "the best" not in whole
    assert told.count("<polyline") == whole.count("<polyline") == most
    assert "row-02" not in told and "row-03" in told


def test_ticks_are_round_and_labels_keep_apart() -> None:
    curves = module("_curves")
    assert curves._ticks(53.9, 83.9) == [50, 60, 70, 80, 90]
    assert curves._ticks(84.88, 85.67) == pytest.approx([84.8, 85.0, 85.2, 85.4, 85.6, 85.8])
    assert len(curves._ticks(3.0, 3.0)) >= 1
    assert curves._apart([25, 26, 33, 34, 50, 51], 2.0) == [25, 33, 50]
