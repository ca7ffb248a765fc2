"""The scan: exact counts, nothing evaluated twice. The allocator: what its curves ask for, in hand-made numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus import ArtifactError, Budget, BudgetNotMet, EvidenceError, InvalidBudget, NothingPruned, PrunusWarning, UnknownName
from prunus.allocation.sensitivity import SensitivityPoint, drops, largest_shares, read_points, scan, scan_plans
from prunus.types import ChannelGraph, PruningPlan, Scores
from small_nets import Plain, images

Case = tuple[ChannelGraph, Scores]
WIDTHS = {"one.0": 16, "two.0": 32, "three.0": 32}


@pytest.fixture(scope="module")
def plain() -> Case:
    """Widths 16, 32 and 32; channel i of every group scores i, so that the lowest are the first."""
    graph = prunus.trace(Plain().eval(), images())
    return graph, Scores({g.name: torch.arange(g.num_channels).float() for g in graph.prunable}, "rising")


def removed(plan: PruningPlan) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in plan.keep.items() if not bool(mask.all())}


def curve(group: str, *accuracies: float) -> list[SensitivityPoint]:
    """Accuracies after removing an eighth, two eighths, ... of a group."""
    n = WIDTHS[group]
    return [SensitivityPoint(group, n, n // 8 * (i + 1), accuracy) for i, accuracy in enumerate(accuracies)]


WHOLE = SensitivityPoint("", 80, 0, 0.9)


# -- the scan


def test_a_scan_prunes_one_group_alone_by_exact_counts(plain: Case) -> None:
    """int(p * n) channels go: of 16, 0.1 is 1 (not 2), 0.25 is 4; of 32, 0.1 is 3, 0.25 is 8; the lowest scores."""
    plans = scan_plans(*plain, (0.1, 0.25))
    assert [removed(plan) for plan in plans] == [
        {},
        *({"one.0": 1}, {"one.0": 4}, {"two.0": 3}, {"two.0": 8}, {"three.0": 3}, {"three.0": 8}),
    ]
    assert plans[2].keep["one.0"].tolist() == [False] * 4 + [True] * 12
    assert plans[2].predicted == plain[0].cost_model.cost({"one.0": 12}) and plans[0].predicted == plain[0].cost()


def test_shares_that_floating_point_puts_below_a_whole_number_count() -> None:
    """0.29 * 100 is 28.999999999999996, and 29 channels of 100 are meant."""
    model = Plain((10, 100, 20)).eval()
    graph = prunus.trace(model, images())
    plans = scan_plans(graph, prunus.score(model, graph, "l1"), (0.29,))
    assert [plan.num_removed for plan in plans] == [0, 2, 29, 5]


def test_shares_of_the_same_count_are_one_point_and_limits_hold(plain: Case) -> None:
    assert [removed(p) for p in scan_plans(*plain, (0.01, 0.05, 0.06), ("two*",))] == [{}, {"three.0": 1}]
    limits = Budget(channels=1.0, min_channels=10, multiple_of=8)
    found = [removed(plan) for plan in scan_plans(*plain, (0.3, 0.9), limits=limits)]
    assert found == [{}, {"two.0": 8}, {"two.0": 16}, {"three.0": 8}, {"three.0": 16}]  # 16 -> 8 would fall below 10


def test_points_tell_what_was_evaluated(plain: Case) -> None:
    stored: list[SensitivityPoint] = []
    points = scan(*plain, lambda plan: 0.9 - 0.01 * plan.num_removed, (0.1, 0.5), keep=("t*",), finished=stored.append)
    assert points == (WHOLE, SensitivityPoint("one.0", 16, 1, 0.89), SensitivityPoint("one.0", 16, 8, pytest.approx(0.82)))
    assert tuple(stored) == points and [p.share for p in points] == [0.0, 1 / 16, 0.5]


def test_a_scan_that_was_stopped_goes_on_where_it_was(plain: Case) -> None:
    asked: list[dict[str, int]] = []
    stored: list[SensitivityPoint] = []

    def evaluate(plan: PruningPlan) -> float:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(removed(plan))
        return 1 / (1 + plan.num_removed)

    with pytest.raises(KeyboardInterrupt):
        scan(*plain, evaluate, (0.25, 0.5), finished=stored.append)
    assert asked == [{}, {"one.0": 4}, {"one.0": 8}, {"two.0": 8}] and len(stored) == 4
    asked.clear()
    again: list[SensitivityPoint] = []
    points = scan(*plain, evaluate, (0.25, 0.5), known=stored, finished=again.append)
    assert asked == [{"two.0": 16}, {"three.0": 8}, {"three.0": 16}] and [p.removed for p in again] == [16, 8, 16]
    assert points == scan(*plain, lambda plan: 1 / (1 + plan.num_removed), (0.25, 0.5))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"shares": (0.5, 1.0)}, InvalidBudget, r"shares=\[0.5, 1.0\]: a scan removes shares .* between 0 and 1"),
        ({"shares": ()}, InvalidBudget, r"shares=\[\]"),
        ({"keep": ("ones",)}, UnknownName, "unknown group in keep 'ones': did you mean one.0"),
        ({"keep": ("*",)}, NothingPruned, r"none of the 3 groups that may be pruned can lose one of these shares \(10%, 20%"),
        ({"evaluate": lambda _: float("nan")}, EvidenceError, "the accuracy of the whole network is nan: no drop can be told"),
        (
            {"evaluate": lambda plan: float("inf") if plan.num_removed else 1.0},
            EvidenceError,
            "the accuracy of the network without 1 channels of `one.0` is inf",
        ),
        (
            {"known": [SensitivityPoint("one.0", 8, 1, 0.5)]},
            EvidenceError,
            "they know 8 channels of `one.0`, this one has 16; scan this network",
        ),
        ({"known": [SensitivityPoint("four", 8, 1, 0.5)]}, EvidenceError, "8 channels of `four`, this one has no such group"),
    ],
)
def test_what_a_scan_refuses(plain: Case, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        scan(*plain, **{"evaluate": lambda _: 0.5, **options})


# -- curves


def test_the_largest_share_within_a_drop(plain: Case) -> None:
    """0.90 - 0.89 is a little more than 0.01 in floating point; behind a dip a larger share is allowed again."""
    points = [WHOLE, *curve("one.0", 0.91, 0.89, 0.7), *curve("two.0", 0.895, 0.85, 0.892), *curve("three.0", 0.8)]
    found = largest_shares(points)
    assert {name: point and point.removed for name, point in found.items()} == {"one.0": 4, "two.0": 12, "three.0": None}
    assert largest_shares(points, 0.1)["three.0"] == points[-1]
    assert [round(drop, 6) for _, drop in drops(reversed(points))["one.0"]] == [-0.01, 0.01, 0.2]
    with pytest.raises(EvidenceError, match=r"lack the accuracy of the whole network \(group ''\)"):
        drops(points[1:])


# -- the allocator


def test_epsilon_is_the_one_that_the_budget_asks_for(plain: Case) -> None:
    """Drops grow by 0.02, 0.01 and 0.04 an eighth: at epsilon 0.02 one loses 1/8, two 2/8, three 1/16; 68 channels are left."""
    points = [
        WHOLE,
        *curve("one.0", *(0.9 - 0.02 * i for i in range(1, 7))),
        *curve("two.0", *(0.9 - 0.01 * i for i in range(1, 7))),
        *curve("three.0", *(0.9 - 0.04 * i for i in range(1, 7))),
    ]
    plan = prunus.allocate(*plain, Budget(channels=68, tolerance=0.0), "sensitivity", points=points)
    assert removed(plan) == {"one.0": 2, "two.0": 8, "three.0": 2}
    assert plan.provenance["epsilon"] == pytest.approx(0.02) and plan.provenance["unmeasured"] == []
    twice = prunus.allocate(*plain, Budget(channels=56, tolerance=0.0), "sensitivity", points=points)
    assert removed(twice) == {"one.0": 4, "two.0": 16, "three.0": 4} and twice.provenance["epsilon"] == pytest.approx(0.04)


def test_fixed_takes_the_largest_scanned_shares_and_only_checks_the_budget(plain: Case) -> None:
    points = [WHOLE, *curve("one.0", 0.91, 0.89, 0.7), *curve("two.0", 0.895, 0.85, 0.892), *curve("three.0", 0.8)]
    plan = prunus.allocate(*plain, Budget(channels=0.99), "sensitivity", points=points, fixed=True)
    assert removed(plan) == {"one.0": 4, "two.0": 12}
    wide = prunus.allocate(*plain, Budget(channels=0.99), "sensitivity", points=points, epsilon=0.1, fixed=True)
    assert removed(wide) == {"one.0": 4, "two.0": 12, "three.0": 4}
    even = prunus.allocate(*plain, Budget(channels=0.99, multiple_of=8), "sensitivity", points=points, fixed=True)
    assert removed(even) == {"two.0": 8}  # never more than the scan allows
    with pytest.raises(BudgetNotMet, match=r"sensitivity with fixed=True misses the budget \(channels 64 > 40\)") as caught:
        prunus.allocate(*plain, Budget(channels=0.5), "sensitivity", points=points, fixed=True)
    assert removed(caught.value.plan) == {"one.0": 4, "two.0": 12}


def test_what_was_not_scanned_stays_whole_and_what_lies_beyond_goes_last(plain: Case) -> None:
    points = [WHOLE, *curve("one.0", 0.2, 0.1), *curve("two.0", 0.9, 0.9)]
    plan = prunus.allocate(*plain, Budget(channels=72), "sensitivity", points=points)
    assert removed(plan) == {"two.0": 8} and plan.provenance["epsilon"] == 0.0
    plan = prunus.allocate(*plain, Budget(channels=68), "sensitivity", points=points)
    assert removed(plan) == {"one.0": 4, "two.0": 8} and plan.provenance["epsilon"] == pytest.approx(0.8)
    plan = prunus.allocate(*plain, Budget(channels=56), "sensitivity", points=points)
    assert removed(plan) == {"one.0": 8, "two.0": 16} and plan.provenance["unmeasured"] == ["one.0", "two.0"]


def test_equal_drops_are_taken_share_by_share(plain: Case) -> None:
    """Flat curves, as few images give them: all groups lose alike, not the first group everything."""
    points = [WHOLE, *(point for name in WIDTHS for point in curve(name, *[0.9] * 7))]
    assert removed(prunus.allocate(*plain, Budget(channels=0.5), "sensitivity", points=points)) == {
        "one.0": 8,
        "two.0": 16,
        "three.0": 16,
    }


def test_a_gain_counts_as_no_drop(plain: Case) -> None:
    """One gains, two stays the same: neither drops, so both lose half, not the one that gained everything."""
    points = [WHOLE, *curve("one.0", *[0.95] * 7), *curve("two.0", *[0.9] * 7), *curve("three.0", *[0.5] * 7)]
    plan = prunus.allocate(*plain, Budget(channels=56), "sensitivity", points=points)
    assert removed(plan) == {"one.0": 8, "two.0": 16} and plan.provenance["epsilon"] == 0.0


def test_a_dip_is_no_obstacle_where_a_larger_share_is_within_epsilon(plain: Case) -> None:
    points = [WHOLE, *curve("one.0", *[0.88] * 7), *curve("two.0", 0.5, 0.9, 0.4), *curve("three.0", *[0.88] * 7)]
    plan = prunus.allocate(*plain, Budget(channels=72), "sensitivity", points=points)
    assert removed(plan) == {"two.0": 8} and plan.provenance["epsilon"] == 0.0


def test_it_scans_by_itself_within_the_budgets_limits(plain: Case) -> None:
    asked: list[dict[str, int]] = []

    def evaluate(plan: PruningPlan) -> float:
        asked.append(removed(plan))
        return 0.9 - (0.5 if "one.0" in plan.keep else 0.0)

    budget = Budget(channels=0.8, min_channels=12, tolerance=0.0)
    plan = prunus.allocate(*plain, budget, "sensitivity", evaluate=evaluate, shares=(0.25, 0.5))
    assert asked == [{}, {"one.0": 4}, *({name: n} for name in ("two.0", "three.0") for n in (8, 16))]
    assert removed(plan) == {"two.0": 8, "three.0": 8}


def test_an_unreachable_budget_is_told_before_anything_is_evaluated(plain: Case) -> None:
    def evaluate(_: PruningPlan) -> float:
        pytest.fail("evaluated")

    with pytest.raises(BudgetNotMet, match="can't be reached"):
        prunus.allocate(*plain, Budget(channels=10, min_channels=8), "sensitivity", evaluate=evaluate)


def test_points_of_a_file_and_the_criterion_they_are_of(plain: Case, tmp_path: Path) -> None:
    points = [WHOLE, *curve("two.0", 0.9, 0.9)]
    path = tmp_path / "sensitivity.json"
    path.write_text(json.dumps({"criterion": "rising", "points": [point.to_json() for point in points]}))
    assert read_points(path) == (tuple(points), "rising")
    assert removed(prunus.allocate(*plain, Budget(channels=72), "sensitivity", points=str(path))) == {"two.0": 8}
    other = Scores(plain[1].by_group, "l1")
    with pytest.warns(PrunusWarning, match="the scan removed channels by rising, and l1 removes others"):
        prunus.allocate(plain[0], other, Budget(channels=72), "sensitivity", points=path)
    check = Scores(plain[1].by_group, "random")  # as a run makes it before training
    assert removed(prunus.allocate(plain[0], check, Budget(channels=72), "sensitivity", points=path)) == {"two.0": 8}
    path.write_text("[]")
    with pytest.raises(ArtifactError, match=r"can't read the points of a scan from .*sensitivity\.json \(TypeError"):
        prunus.allocate(*plain, Budget(channels=72), "sensitivity", points=path)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, EvidenceError, "run `prunus sensitivity` and give its sensitivity.json as the option points, or hand in evaluate"),
        ({"points": [WHOLE], "shares": (0.5,)}, InvalidBudget, "points are of one that is done: give one"),
        ({"points": [WHOLE], "epsilon": 0.1}, InvalidBudget, "finds epsilon from the budget: to hold it, set fixed=True"),
        ({"points": [WHOLE], "epsilon": -0.1, "fixed": True}, InvalidBudget, "epsilon=-0.1 is no drop of accuracy"),
        ({"points": [WHOLE]}, NothingPruned, "3 groups are at their floors or unscored"),
        ({"points": [{"group": "one.0"}]}, EvidenceError, r"\{'group': 'one.0'\} is no point of a scan \(KeyError: 'channels'\)"),
        ({"points": curve("one.0", 0.5)}, EvidenceError, "lack the accuracy of the whole network"),
        ({"points": [WHOLE, SensitivityPoint("one.0", 99, 1, 0.5)]}, EvidenceError, "this one has 16"),
    ],
)
def test_mistakes_are_told(plain: Case, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        prunus.allocate(*plain, Budget(channels=0.9), "sensitivity", **options)


def test_rows_get_only_what_they_ask_for(plain: Case) -> None:
    """The others are called as before: a function without evaluate and measure is a row."""
    evaluate: Callable[[PruningPlan], float] = lambda _: 0.5  # noqa: E731
    given = prunus.allocate(*plain, Budget(channels=0.5), "uniform", evaluate=evaluate, measure=evaluate)
    assert removed(given) == {"one.0": 8, "two.0": 16, "three.0": 16}
