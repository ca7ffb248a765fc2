"""Recipes of the laboratory of tickets: the one that comes with Prunus, and errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest

import prunus
from prunus.errors import RecipeError
from prunus.ticket_recipe import load_ticket_recipe, parse_ticket_recipe

NETWORKS = {"a": {"model": "mlp:4"}}


def test_the_default_laboratory() -> None:
    recipe = load_ticket_recipe(Path(prunus.__file__).parent / "recipes" / "tickets" / "digits.toml")
    assert recipe.networks["dense"].model == "mlp:300-100" and len(recipe.seeds) >= 3
    assert recipe.lottery is not None and recipe.lottery.networks == ("dense", "convolutional")
    assert 0.8**recipe.lottery.rounds < 0.2
    assert all((recipe.deconstruction, recipe.supermasks, recipe.rethinking))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"networks": NETWORKS}, "nothing to do: add a section lottery"),
        ({"networks": NETWORKS, "lottery": {"networks": ["b"]}}, "unknown network 'b': known are a"),
        ({"networks": NETWORKS, "lottery": {"networks": ["a"], "round": 3}}, "lottery.round: Extra inputs are not permitted"),
        ({"networks": {"a": {"model": "mlp:4", "lr": -1}}}, "networks.a.lr: Input should be greater than 0"),
        ({"networks": NETWORKS, "rethinking": {"networks": ["a"], "channels": 1.0}}, "rethinking.channels"),
        ({"networks": NETWORKS, "rethinking": {}}, "nothing to rethink: name networks, or runs"),
        ({"lottery": {"networks": ["a"]}}, "unknown network 'a': known are none"),
        ({"networks": NETWORKS, "seeds": [], "lottery": {"networks": ["a"]}}, "seeds: Tuple should have at least 1 item"),
    ],
)
def test_mistakes_are_told(tree: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_ticket_recipe(tree)
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe at"):
        load_ticket_recipe(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("seeds = [")
    with pytest.raises(RecipeError, match="can't be read as TOML"):
        load_ticket_recipe(tmp_path / "bad.toml")
