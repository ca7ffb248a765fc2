"""The pieces of recipes on the page of training methods can be read, and name methods and presets that there are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from prunus.config import parse_recipe
from prunus.sparsity import resolve_method

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = Path(__file__).parents[1] / "docs" / "training_methods.md"
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_is_part_of_a_recipe(block: str) -> None:
    tree: dict[str, Any] = {"model": {"source": "cifar:resnet20"}, **tomllib.loads(block)}
    recipe = parse_recipe(tree)
    if recipe.sparsity is not None:
        resolve_method(recipe.sparsity.method, recipe.sparsity.preset, recipe.sparsity.options)
    else:
        assert recipe.train.sparse_gradients == 0.9


def test_every_block_is_found() -> None:
    assert len(BLOCKS) == 6
