"""Mask criteria: the hand-computed case of the literature's definitions, and every row by its formula."""

from __future__ import annotations

import pytest
import torch

from prunus.errors import EvidenceError, UnknownName
from prunus.tickets import MASK_CRITERIA, Masks, WeightHistory, keep_highest, mask_scores

HISTORY = WeightHistory(
    torch.tensor([1.0, -2.0, 0.5, -0.1]), torch.tensor([0.9, -0.2, -1.5, 0.3]), torch.tensor([0.1, -0.2, 3.0, 5.0])
)
INF = float("inf")


def scores(criterion: str) -> torch.Tensor:
    return mask_scores(criterion, {"w": HISTORY}, torch.Generator().manual_seed(0))["w"]


@pytest.mark.parametrize(
    ("criterion", "expected", "kept"),
    [
        ("large_final", [0.9, 0.2, 1.5, 0.3], {2, 0}),
        ("small_final", [-0.9, -0.2, -1.5, -0.3], {1, 3}),
        ("large_init", [1.0, 2.0, 0.5, 0.1], {1, 0}),
        ("small_init", [-1.0, -2.0, -0.5, -0.1], {3, 2}),
        ("large_init_large_final", [0.9, 0.2, 0.5, 0.1], {0, 2}),
        ("small_init_small_final", [-1.0, -2.0, -1.5, -0.3], {3, 0}),
        ("magnitude_increase", [-0.1, -1.8, 1.0, 0.2], {2, 3}),
        ("movement", [0.1, 1.8, 2.0, 0.4], {2, 1}),
        ("snip", [0.1, 0.4, 1.5, 0.5], {2, 3}),
        ("grad", [0.1, 0.2, 3.0, 5.0], {3, 2}),
        ("large_final_same_sign", [0.9, 0.2, -INF, -INF], {0, 1}),
        ("large_final_diff_sign", [-INF, -INF, 1.5, 0.3], {2, 3}),
        ("magnitude_increase_same_sign", [-0.1, -1.8, -INF, -INF], {0, 1}),
        ("movement_diff_sign", [-INF, -INF, 2.0, 0.4], {2, 3}),
    ],
)
def test_by_hand(criterion: str, expected: list[float], kept: set[int]) -> None:
    found = scores(criterion)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    mask = keep_highest({"w": found}, Masks({"w": torch.ones(4, dtype=torch.bool)}), 2).by_name["w"]
    assert set(mask.nonzero().flatten().tolist()) == kept


def test_the_joint_threshold_is_the_smaller_of_both() -> None:
    """Bisection for the threshold that leaves k weights above it at both ends, as the original code does."""
    generator = torch.Generator().manual_seed(3)
    initial, final = torch.randn(500, generator=generator), torch.randn(500, generator=generator)
    low, high = 0.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        above = (initial.abs() > middle) & (final.abs() > middle)
        low, high = (middle, high) if int(above.sum()) >= 80 else (low, middle)
    bisected = (initial.abs() > low) & (final.abs() > low)
    found = mask_scores("large_init_large_final", {"w": WeightHistory(initial, final)}, generator)
    exact = keep_highest(found, Masks({"w": torch.ones(500, dtype=torch.bool)}), 80).by_name["w"]
    assert int(bisected.sum()) == 80 and torch.equal(exact, bisected)


def test_random_is_drawn_from_the_generator_and_others_are_not() -> None:
    assert torch.equal(scores("random"), scores("random"))
    other = mask_scores("random", {"w": HISTORY}, torch.Generator().manual_seed(1))["w"]
    assert not torch.equal(other, scores("random"))
    for name, row in MASK_CRITERIA.items():
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        found = row.score(HISTORY, generator)
        assert found.shape == (4,) and torch.equal(before, generator.get_state()) == (name != "random")


def test_the_table_is_whole() -> None:
    assert len(MASK_CRITERIA) == 11 + 2 * 8
    with pytest.raises(UnknownName, match="unknown mask criterion 'large': did you mean"):
        mask_scores("large", {}, torch.Generator())
    with pytest.raises(EvidenceError, match="needs the gradient of the first training step"):
        mask_scores("snip", {"w": WeightHistory(HISTORY.initial, HISTORY.final)}, torch.Generator())
