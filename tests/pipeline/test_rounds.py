"""What a round is asked for."""

from __future__ import annotations

from typing import Any

import pytest

import prunus
from prunus.config import PruneConfig, parse_recipe
from prunus.pipeline.rounds import plan_round
from prunus.pipeline.run import run
from small_nets import build, images


@pytest.mark.parametrize("rounds", [{}, {"rounds": 2}, {"channels_per_round": 6}])
def test_every_round_allocates_with_the_options_of_the_recipe(rounds: dict[str, int]) -> None:
    graph = prunus.trace(build("Plain"), images())
    scores = prunus.score(build("Plain"), graph, "l1")
    settings = PruneConfig(
        budget={"channels": 0.75}, allocator="per_layer", allocator_options={"ratios": {"two.0": 1.0}}, **rounds
    )  # type: ignore[arg-type]
    asked = plan_round(settings, graph, 1)
    plan = prunus.allocate(graph, scores, asked.budget, asked.allocator)
    assert {name for name, mask in plan.keep.items() if not mask.all()} == {"two.0"}


def test_a_recipe_with_wrong_options_fails_before_training(tmp_path: Any) -> None:
    tree = {
        "name": "small",
        "model": {"source": "cifar:resnet8-projection"},
        "data": {"source": "fake:3x12x12x4"},
        "prune": {"allocator": "per_layer", "allocator_options": {"ratios": {"layer9.*": 1.0}}, "criterion": "l1"},
    }
    with pytest.raises(prunus.UnknownName, match=r"unknown group or layer in ratios 'layer9\.\*'"):
        run(parse_recipe(tree), tmp_path / "out")
    assert not (tmp_path / "out" / "stages").exists()


@pytest.mark.parametrize(
    ("pace", "expected"),
    [("geometric", [63, 50, 39, 31, 25]), ("linear", [69, 58, 47, 36, 25]), ("cubic", [53, 36, 28, 25, 25])],
)
def test_paces_by_hand(pace: str, expected: list[int]) -> None:
    """From 80 channels to 25: 80 (25 / 80)^(n / 5); 80 - 11 n; 80 - 55 (1 - (1 - n / 5)^3)."""
    graph = prunus.trace(build("Plain"), images())
    settings = PruneConfig(budget={"channels": 25}, rounds=5, pace=pace)  # type: ignore[arg-type]
    assert [plan_round(settings, graph, number).budget.channels for number in range(1, 6)] == expected


@pytest.mark.parametrize("rounds", [{"rounds": 2}, {"channels_per_round": 6}])
@pytest.mark.parametrize(("allocator", "option"), [("sensitivity", "points"), ("search", "result")])
def test_what_was_found_on_the_unpruned_network_serves_one_round(rounds: dict[str, int], allocator: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is what was found on the unpruned network: it serves one round"):
        PruneConfig(allocator=allocator, allocator_options={option: "found.json"}, **rounds)  # type: ignore[arg-type]
    PruneConfig(allocator=allocator, **rounds)  # type: ignore[arg-type]


def test_shares_of_groups_are_of_the_network_before_the_first_round() -> None:
    """Half of 32 channels stay in all rounds together; of all groups a tenth, of 16 at least 2. A later round has less room in
    its file: the record of the earlier ones is in it, too."""
    graph = prunus.trace(build("Plain"), images())
    settings = PruneConfig(budget={"file_size": 30_000}, rounds=2, limits={"two*": 0.5, "three.0": 7}, max_pruning_ratio=0.9)  # type: ignore[arg-type]
    asked = plan_round(settings, graph, 2, carried=1200).budget
    assert asked.limits == {"group:one.0": 2, "group:two.0": 16, "group:three.0": 7}
    assert asked.file_size == 28_800
