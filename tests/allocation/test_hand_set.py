"""Shares and thresholds set by hand, and thresholds made from a layer's scores: exact counts, by hand."""

from __future__ import annotations

import pytest
import torch

import prunus
from prunus import Budget, BudgetNotMet, InvalidBudget, UnknownName
from small_nets import build, images


@pytest.fixture(scope="module")
def plain() -> tuple[prunus.ChannelGraph, prunus.Scores]:
    """Groups one.0, two.0 and three.0 of 16, 32 and 32 channels; channel i of a group of n scores (i + 1) / n."""
    graph = prunus.trace(build("Plain"), images())
    values = {g.name: torch.arange(1, g.num_channels + 1) / g.num_channels for g in graph.prunable}
    return graph, prunus.Scores(values, "ramp", comparable=True)


Case = tuple[prunus.ChannelGraph, prunus.Scores]


def removed(plan: prunus.PruningPlan) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in plan.keep.items()}


# -- shares


def test_shares_are_in_the_given_proportions(plain: Case) -> None:
    """80 channels, 60 to stay: s * (16 + 2 * 32) = 20 at s = 1/4, so 4 of 16 and 16 of 32 go; three.0 isn't listed."""
    plan = prunus.allocate(*plain, Budget(channels=60), "per_layer", ratios={"one.*": 1, "two.0": 2})
    assert removed(plan) == {"one.0": 4, "two.0": 16}
    assert plan.keep["one.0"].tolist() == [False] * 4 + [True] * 12


def test_the_first_glob_that_fits_counts(plain: Case) -> None:
    plan = prunus.allocate(*plain, Budget(channels=70), "per_layer", ratios={"two.*": 1, "t*": 1000, "one.0": 0.001})
    assert removed(plan)["three.0"] == 10
    assert removed(plan)["two.0"] + removed(plan)["one.0"] == 0


def test_fixed_shares_are_removed_exactly(plain: Case) -> None:
    plan = prunus.allocate(*plain, Budget(macs=0.99), "per_layer", ratios={"two.*": 0.25, "three.*": 0.5}, fixed=True)
    assert removed(plan) == {"two.0": 8, "three.0": 16}


# -- thresholds


def test_fixed_thresholds_remove_what_is_below_and_nothing_else(plain: Case) -> None:
    """Scores are i / 32: five are below 6/32, and the one that is 6/32 stays; of i / 16 seven are below 1/2."""
    numbers = {"two.0": 6 / 32, "one.0": 0.5}
    plan = prunus.allocate(*plain, Budget(macs=0.99), "thresholds", thresholds=numbers, fixed=True)
    assert removed(plan) == {"two.0": 5, "one.0": 7}


def test_a_fixed_threshold_above_all_scores_leaves_the_floor(plain: Case) -> None:
    budget = Budget(macs=0.99, max_pruning_ratio=1.0, min_channels=3)
    plan = prunus.allocate(*plain, budget, "thresholds", thresholds={"one.0": 7.0}, fixed=True)
    assert removed(plan) == {"one.0": 13}


def test_scaled_thresholds_are_one_ranking_of_scores_over_thresholds(plain: Case) -> None:
    """Of 48 channels the 24 with the lowest score / threshold go: those of two.0, whose threshold is double, far more often."""
    plan = prunus.allocate(
        *plain, Budget(channels=56, max_pruning_ratio=1.0), "thresholds", thresholds={"one.*": 1.0, "two.*": 2.0}
    )
    ratio = torch.cat([plain[1].by_group["one.0"] / 1.0, plain[1].by_group["two.0"] / 2.0])
    lowest = ratio.argsort(stable=True)[:24]
    assert removed(plan) == {"one.0": int((lowest < 16).sum()), "two.0": int((lowest >= 16).sum())}
    assert removed(plan)["two.0"] > 2 * removed(plan)["one.0"]


def test_one_c_for_all_layers() -> None:
    """A layer of large scores and one of small ones lose what lies as many deviations below their own mean: (1, 2, 3, 10) has
    mean 4 and deviation 3.54, so its first three lie 0.85, 0.57 and 0.28 below; (0.01, 0.02, 0.03, 0.04) 1.34 and 0.45."""
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 2, 1))
    graph = prunus.trace(net, torch.randn(1, 2, 3, 3))
    worth = {"0": torch.tensor([1.0, 2.0, 3.0, 10.0]), "2": torch.tensor([0.01, 0.02, 0.03, 0.04])}
    scores = prunus.Scores(worth, "by hand", comparable=True)
    gone = [
        removed(prunus.allocate(graph, scores, Budget(channels=8 - n, max_pruning_ratio=0.75), "mean_minus_deviations"))
        for n in (1, 2, 3, 4)
    ]
    assert gone == [{"0": 0, "2": 1}, {"0": 1, "2": 1}, {"0": 2, "2": 1}, {"0": 2, "2": 2}]


# -- what can't be


def test_a_missed_budget_is_an_error_with_the_plan(plain: Case) -> None:
    with pytest.raises(BudgetNotMet, match=r"per_layer with fixed=True misses the budget \(macs [\d,]+ > 60,064\): remove more"):
        prunus.allocate(*plain, Budget(macs=0.5), "per_layer", ratios={"one.0": 0.1}, fixed=True)


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (UnknownName, {"ratios": {"tow.*": 1}}, r"unknown group or layer in ratios 'tow\.\*'"),
        (UnknownName, {"ratio": {"two.*": 1}}, r"unknown option of allocator per_layer 'ratio': did you mean ratios"),
        (
            InvalidBudget,
            {"ratios": {"two.*": 0}},
            r"ratios: 'two\.\*' must have a number above zero, not 0: leave out what stays",
        ),
        (InvalidBudget, {"ratios": {"two.*": 1.5}, "fixed": True}, r"1\.5 is no share that can be removed: with fixed=True"),
    ],
)
def test_options_that_make_no_sense(plain: Case, error: type[Exception], options: dict[str, object], message: str) -> None:
    with pytest.raises(error, match=message):
        prunus.allocate(*plain, Budget(macs=0.5), "per_layer", **options)


def test_options_are_for_names() -> None:
    row = prunus.ALLOCATORS["per_layer"].with_options({"ratios": {"*": 1.0}})
    graph = prunus.trace(build("Plain"), images())
    scores = prunus.score(build("Plain"), graph, "l1")
    assert prunus.allocate(graph, scores, Budget(macs=0.5), row).counts() == (
        prunus.allocate(graph, scores, Budget(macs=0.5), "per_layer").counts()
    )
    with pytest.raises(UnknownName, match=r"options \['ratios'\] are for allocators that are given by name"):
        prunus.allocate(graph, scores, Budget(macs=0.5), row, ratios={})
    with pytest.raises(UnknownName, match=r"None is no allocator: give a name \(auto, uniform, .*left out, it is auto"):
        prunus.allocate(graph, scores, Budget(macs=0.5), None)  # pyright: ignore[reportArgumentType]
