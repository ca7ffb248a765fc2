"""The recipes that come with Prunus: each is read, its network built and its budget met, with random weights and fake images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import prunus
from prunus.config import load_recipe
from prunus.sources import load_model, replace_head

RECIPES = sorted((Path(prunus.__file__).parent / "recipes").glob("*.toml"))
NAMES = [
    "cats_dogs",
    "cats_dogs_few",
    "cats_dogs_vgg16",
    "cifar_resnet20",
    "cifar_resnet56",
    "cifar_resnet56_resrep",
    "digits",
    "he2017_resnet50",
    "he2017_vgg16",
    "he2017_xception",
    "imagenet_resnet50",
    "imagenet_resnet50_resrep",
    "solar_cells",
]
CLASSES = {
    **dict.fromkeys(("digits", "cifar_resnet20", "cifar_resnet56", "cifar_resnet56_resrep"), 10),
    **dict.fromkeys(
        ("he2017_resnet50", "he2017_vgg16", "he2017_xception", "imagenet_resnet50", "imagenet_resnet50_resrep"), 1000
    ),
}


def test_all_are_there() -> None:
    assert [path.stem for path in RECIPES] == NAMES


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_the_budget_can_be_met(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    classes = CLASSES.get(path.stem, 2)
    channels, size = (1, 16) if path.stem == "digits" else (3, 32 if recipe.model.source.startswith("cifar") else 64)
    examples = torch.randn(2, channels, size, size)
    number = classes if recipe.transfer is None else None
    model = load_model(recipe.model.source, num_classes=number, in_channels=channels, arguments=recipe.model.arguments)
    if recipe.transfer is not None:
        replace_head(model, examples, classes, kind=recipe.transfer.head, hidden=32)
    graph = prunus.trace(model, examples, recipe.prune.keep, recipe.prune.mixing)
    budget = replace(recipe.prune.to_budget(), tolerance=0.1)
    plan = prunus.allocate(
        graph, prunus.score(model, graph, "l1"), budget, recipe.prune.allocator, **recipe.prune.allocator_options
    )
    assert all(row["met"] for row in plan.provenance["budget"])


def test_the_tutorials_counts() -> None:
    """4,224 filters in VGG-16's convolutions; rounds of 512 until 1,664 are left: five."""
    recipe = load_recipe(next(path for path in RECIPES if path.stem == "cats_dogs_vgg16"))
    model = load_model(recipe.model.source)
    assert recipe.transfer is not None
    replace_head(model, torch.randn(1, 3, 64, 64), 2, kind=recipe.transfer.head, hidden=32)
    graph = prunus.trace(model, torch.randn(1, 3, 64, 64), recipe.prune.keep)
    assert graph.num_prunable_channels == 4224
    removed = 4224 - int(recipe.prune.budget["channels"])
    assert removed == 5 * (recipe.prune.channels_per_round or 0)


def test_option_a_shortcuts_freeze_the_residual_widths() -> None:
    model = load_model("cifar:resnet20")
    graph = prunus.trace(model, torch.randn(1, 3, 32, 32))
    frozen = {group.name: group.frozen_because or "" for group in graph.frozen}
    assert "padded with constant channels" in frozen["conv1"] and "cifar.py" in frozen["conv1"]
    inner = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
    assert [group.name for group in graph.prunable] == inner
