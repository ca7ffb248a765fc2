"""Rank statistics against values computed by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from prunus import EvidenceError
from prunus.laboratory import agreement, correlations, lowest_overlap, spearman


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_spearman_without_ties() -> None:
    # Differences of the ranks: 0, 1, -1, 0, 0; 1 - 6 * 2 / (5 * 24) = 0.9
    assert spearman([10, 20, 30, 40, 50], [1, 3, 2, 4, 5]) == pytest.approx(0.9)


def test_spearman_with_ties_shares_the_mean_rank() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5, so 4.5 / sqrt(22.5).
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(4.5 / math.sqrt(22.5))
    # The formula without ties, 1 - 6 * 0.5 / 60 = 0.95, would be another value.
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) != pytest.approx(0.95)


def test_spearman_equals_the_referee() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = generator.integers(0, 5, 30), generator.integers(0, 5, 30)
        assert spearman(a, b) == pytest.approx(stats.pearsonr(stats.rankdata(a), stats.rankdata(b)).statistic)


@pytest.mark.parametrize(("a", "b"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0, 0, 0]), ([1], [2]), ([], [])])
def test_spearman_is_undefined_where_nothing_is_ranked(a: list[float], b: list[float]) -> None:
    assert spearman(a, b) is None


def test_lengths_must_agree() -> None:
    with pytest.raises(EvidenceError, match=r"shapes \(2,\) and \(3,\) can't be compared: one value a channel each"):
        spearman([1, 2], [1, 2, 3])


def test_overlap_by_hand() -> None:
    reference = range(10)
    # The lowest two of ten are channels 0 and 1: the scores' lowest are 1 and 5, so one of two.
    assert lowest_overlap([5, 0, 6, 7, 8, 1, 9, 9, 9, 9], reference) == 0.5
    assert lowest_overlap(range(10), reference) == 1.0
    assert lowest_overlap(range(10, 0, -1), reference) == 0.0
    assert lowest_overlap(range(4), range(4), share=0.1) == 1.0  # at least one channel
    assert lowest_overlap([], []) is None


def test_overlap_of_ties_is_the_expected_one() -> None:
    # Channel 0 is in; one of the three tied channels 1, 2, 3 joins it, each with a chance of a third; 0 and 1 are the lowest.
    assert lowest_overlap([0, 5, 5, 5, 9, 9, 9, 9, 9, 9], range(10)) == pytest.approx((1 + 1 / 3) / 2)
    # A criterion that can't tell channels apart gets what chance gives.
    assert lowest_overlap([1] * 10, range(10)) == pytest.approx(0.2)
    # Three channels share the reference's lowest value: each of them counts.
    assert lowest_overlap([9, 9, 0, 0, 9, 9, 9, 9, 9, 9], [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]) == 0.5


def test_agreement_raw_normalised_and_within_layers() -> None:
    # Within both layers the order is the oracle's; but the second layer's scores are a hundred times too large.
    oracle = {"one": doubles(5, 6, 7), "two": doubles(1, 2, 3)}
    scores = {"one": doubles(0.5, 0.6, 0.7), "two": doubles(10, 20, 30), "unknown": doubles(1)}
    found = agreement(scores, oracle)
    # Ranks of the oracle 4 5 6 1 2 3, of the scores 1 2 3 4 5 6: sum of squares 54, 1 - 6 * 54 / 210.
    assert found.raw == pytest.approx(1 - 6 * 54 / 210)
    # Divided by sqrt(1.1) and sqrt(1400): 0.477 0.572 0.667 and 0.267 0.535 0.802, ranks 2 4 5 1 3 6; squares 4 1 1 0 1 9.
    assert found.l2 == pytest.approx(1 - 6 * 16 / 210)
    assert found.layers == {"one": pytest.approx(1), "two": pytest.approx(1)} and found.within == pytest.approx(1)
    assert found.channels == 6 and found.overlap_raw == 0.0 and found.overlap_l2 == 1.0


def test_agreement_on_a_sample_normalises_over_the_whole_layer() -> None:
    oracle = {"one": doubles(1, 2, 3), "two": doubles(4, 5, 6)}
    scores = {"one": doubles(1, 2, 3, 1000), "two": doubles(4, 5, 6, 0)}
    sample = {"one": torch.tensor([0, 1, 2]), "two": torch.tensor([0, 1, 2])}
    found = agreement(scores, oracle, sample)
    assert found.l2 == pytest.approx(1) and found.raw == pytest.approx(1)
    sample["one"] = torch.tensor([0, 1, 3])  # 1000 is the largest of all now, and 0.999998 of its layer's norm
    found = agreement(scores, oracle, sample)
    assert found.raw == pytest.approx(1 - 6 * (9 + 3) / 210) and found.l2 == pytest.approx(1 - 6 * (9 + 3) / 210)


def test_layers_of_two_channels_say_nothing() -> None:
    found = agreement({"one": doubles(1, 2), "two": doubles(3, 1, 2)}, {"one": doubles(1, 2), "two": doubles(1, 2, 3)})
    assert found.layers == {"two": pytest.approx(-0.5)} and found.within == pytest.approx(-0.5)


def test_correlations_are_symmetric_and_on_common_groups() -> None:
    several = {
        "a": {"one": doubles(1, 2, 3), "two": doubles(1, 2, 3)},
        "b": {"one": doubles(3, 2, 1)},
        "c": {"one": doubles(1, 1, 1)},
    }
    table = correlations(several)
    assert table == [[pytest.approx(1), pytest.approx(-1), None], [pytest.approx(-1), pytest.approx(1), None], [None] * 3]
    assert correlations({"a": several["a"], "b": {"two": doubles(1, 3, 2)}}, "l2")[0][1] == pytest.approx(0.5)
