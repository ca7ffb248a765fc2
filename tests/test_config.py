"""The recipe: what it accepts, what it refuses, and that every refusal names the field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from prunus import RecipeError
from prunus.config import Recipe, load_recipe, parse_recipe

RECIPE = """
name = "cats-1"
seed = 3

[model]
source = "torchvision:resnet18"
weights = "resnet18.safetensors"
arguments = { num_classes = 2 }

[data]
source = "folder:cats_dogs.zip"
image_size = 160
mean = [0.5, 0.5, 0.5]

[train]
epochs = 2
lr = 0.1

[prune]
budget = { macs = 0.4, parameters = "5M" }
criterion = "taylor"
criterion_options = { per_example = true }
keep = ["layer4.*"]
multiple_of = 8

[recover]
epochs = 3
optimizer = "adamw"

[export]
onnx = false
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_reads_every_section(recipe: Path) -> None:
    run = load_recipe(recipe)
    assert (run.name, run.seed, run.model.source, run.model.arguments) == (
        "cats-1",
        3,
        "torchvision:resnet18",
        {"num_classes": 2},
    )
    assert (run.data.image_size, run.data.mean, run.data.batch_size) == (160, (0.5, 0.5, 0.5), 64)
    assert (run.train.epochs, run.train.lr, run.train.optimizer) == (2, 0.1, "sgd")
    assert (run.recover.epochs, run.recover.lr, run.recover.optimizer) == (3, 0.02, "adamw")
    assert run.export.onnx is False
    budget = run.prune.to_budget()
    assert budget.targets == {"macs": 0.4, "parameters": "5M"}
    assert (budget.multiple_of, budget.min_channels, budget.max_pruning_ratio, budget.tolerance) == (8, 1, 0.95, 0.01)
    assert run.prune.keep == ("layer4.*",)


def test_only_the_model_is_needed() -> None:
    run = parse_recipe({"model": {"source": "cifar:resnet20"}})
    assert run.train.epochs == 0  # no training before pruning unless asked for
    assert run.prune.budget == {"macs": 0.5}
    assert run.prune.to_budget().macs == 0.5


def test_a_recipe_without_rungs_climbs_what_measured_best() -> None:
    def rungs(**sections: Any) -> tuple[tuple[str, ...], float]:
        recover = parse_recipe({"model": {"source": "cifar:resnet20"}, **sections}).recover
        return recover.rungs, recover.distill

    ladder = ("recalibrate", "reconstruct", "distill")
    assert rungs() == rungs(recover={"epochs": 3}) == rungs(recover={"preset": "quick"}) == (ladder, 0.9)
    assert rungs(recover={"distill": 0.5}) == (ladder, 0.5)
    assert rungs(recover={"distill": 0.0}) == (("recalibrate", "reconstruct", "fine-tune"), 0.0)
    plain = ("recalibrate", "fine-tune")
    assert rungs(functions={"loss": "own.py:loss"}) == (plain, 0.0), "a teacher's answers are classes"
    assert rungs(sparsity={"method": "resrep"}) == (plain, 0.0), "what is cut is nearly silent by then"
    assert rungs(recover={"rungs": ["compensate"]}) == (("compensate",), 0.0)


def test_round_trip(recipe: Path) -> None:
    run = load_recipe(recipe)
    assert parse_recipe(json.loads(json.dumps(run.model_dump()))) == run


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("prune.criterion=l1", "prune.criterion", "l1"),
        ("prune.criterion='l1'", "prune.criterion", "l1"),
        ("prune.rounds = 4", "prune.rounds", 4),
        ("seed=7", "seed", 7),
        ("data.image_size=96", "data.image_size", 96),
        ("export.onnx=true", "export.onnx", True),
        ("prune.keep=['a', 'b.*']", "prune.keep", ("a", "b.*")),
        ("prune.budget={ channels = 100 }", "prune.budget", {"channels": 100}),
        ("prune.budget.macs=0.3", "prune.budget", {"macs": 0.3, "parameters": "5M"}),
        ("prune.budget=macs=0.25,latency=8ms", "prune.budget", {"macs": 0.25, "latency": "8ms"}),
        ("model.arguments.num_classes=5", "model.arguments", {"num_classes": 5}),
        ("model.source=path/to=odd.py:net", "model.source", "path/to=odd.py:net"),
    ],
)
def test_set_replaces_one_field(recipe: Path, override: str, path: str, value: Any) -> None:
    run: Any = load_recipe(recipe, [override])
    for part in path.split("."):
        run = getattr(run, part)
    assert run == value


def test_later_settings_win(recipe: Path) -> None:
    assert load_recipe(recipe, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("prune.criterion", r"can't read --set 'prune\.criterion': write section\.field=value"),
        ("=3", "can't read --set '=3'"),
        ("seed.deep=1", r"--set 'seed\.deep=1': seed is a value, not a section"),
        ("prune.ratio=0.5", r"unknown field 'prune\.ratio': did you mean prune\."),
        ("pruning.budget=0.5", r"unknown field 'pruning': did you mean prune"),
        ("train.epochs=-1", r"train\.epochs: Input should be greater than or equal to 0"),
        ("train.lr=fast", r"train\.lr: Input should be a valid number"),
        ("data.augment=flip", r"data\.augment: Input should be 'none', 'shift', 'crop-flip' or 'resized-crop-flip'"),
        ("name='two words'", "name: String should match pattern"),
        ("prune.budget={}", "prune: .*needs at least one of macs"),
        ("prune.budget={ flops = 0.5 }", "prune: .*unknown budget target 'flops': known are macs, parameters"),
        ("prune.budget={ min_channels = 4 }", "prune: .*unknown budget target 'min_channels'"),
        ("prune.budget={ macs = 0 }", "prune: .*macs=0 must be above zero"),
        ("prune.budget={ macs = 1.5 }", "prune: .*a float is the fraction to keep"),
        ("prune.budget=flops=0.5", r"prune\.budget: .*write TARGET=AMOUNT with TARGET one of macs"),
        ("prune.max_pruning_ratio=0", r"prune\.max_pruning_ratio: Input should be greater than 0"),
        ("prune.tolerance=nan", r"prune(\.tolerance)?: "),
    ],
)
def test_a_wrong_setting_names_the_field(recipe: Path, override: str, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        load_recipe(recipe, [override])


def test_all_problems_are_told_at_once(recipe: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, ["train.epochs=-1", "data.workers=x", "export.runs=3"])
    text = str(caught.value)
    assert text.startswith(f"{recipe}: ")
    assert all(field in text for field in ("train.epochs", "data.workers", "export.runs"))


def test_a_missing_model_is_named() -> None:
    with pytest.raises(RecipeError, match="recipe: model: Field required"):
        parse_recipe({})


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no recipe at .*nowhere\.toml"):
        load_recipe(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("content", [b"[model\nsource = 1", b"model = ", b"\xff\xfe binary"])
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"bad\.toml can't be read as TOML"):
        load_recipe(path)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="can't be read"):
        load_recipe(tmp_path)


def fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


def test_every_field_has_help() -> None:
    found = dict(fields(Recipe))
    assert {"seed", "model.source", "data.mean", "prune.budget", "recover.lr", "export.threads"} <= found.keys()
    assert [name for name, info in found.items() if len(info.description or "") < 10] == []


def test_a_recipe_does_not_change() -> None:
    run = parse_recipe({"model": {"source": "cifar:resnet20"}})
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 4  # type: ignore[misc]


def test_a_budget_on_latency() -> None:
    """Allocator and widths have defaults of their own; runtime and timing reach the budget."""
    from prunus.budgets import Timing

    tree = {"model": {"source": "cifar:resnet20"}, "prune": {"budget": {"latency": 0.5}, "runtime": "onnxruntime"}}
    settings = parse_recipe(tree).prune
    assert (settings.allocator, settings.multiple_of) == ("knapsack", "auto")
    assert (settings.to_budget().runtime, settings.to_budget().latency) == ("onnxruntime", 0.5)
    assert settings.to_timing() == Timing()
    text = {**tree, "prune": {"budget": "latency=0.5@compile,macs=0.7", "allocator": "global", "multiple_of": 4}}
    text["prune"]["timing"] = {"threads": 2, "dtype": "bfloat16"}
    settings = parse_recipe(text).prune
    budget = settings.to_budget()
    assert (budget.latency, budget.macs, budget.runtime, budget.multiple_of) == (0.5, 0.7, "compile", 4)
    assert settings.allocator == "global" and settings.to_timing() == Timing(threads=2, dtype="bfloat16")
    for wrong, why in (
        ({"budget": {"latency": 0.5}, "rounds": 2}, "a budget on latency is met in one round"),
        ({"budget": {"latency": "0.5@gpu"}}, "runtime='gpu' is none of eager, compile, onnxruntime"),
        ({"budget": "latency=0.5@onnxruntime", "timing": {"channels_last": True}}, "onnxruntime runs the exported network in fl"),
    ):
        with pytest.raises(RecipeError, match=why):
            parse_recipe({"model": {"source": "cifar:resnet20"}, "prune": wrong})
