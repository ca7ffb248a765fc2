"""Which classes of channels are tied, so that the parts of a split keep equal numbers whatever is removed."""

from __future__ import annotations

import time

import numpy as np
import pytest

from prunus.graph.balance import balance, uneven_sets


def partition(classes: np.ndarray) -> list[list[int]]:
    """Labels that are one class, in the order of their first label."""
    return sorted([np.flatnonzero(classes == c).tolist() for c in np.unique(classes)])


def test_without_splits_nothing_is_tied() -> None:
    classes = np.array([3, 0, 3])
    assert balance(classes, []) is classes
    assert balance(np.zeros(0, np.int64), [(np.zeros(0, np.int64), 2)]).tolist() == []


def test_two_parts_are_paired_in_the_order_in_which_they_come() -> None:
    assert partition(balance(np.arange(7), [(np.array([0, 1, 2, 3, 4, 5]), 2)])) == [[0, 3], [1, 4], [2, 5], [6]]


def test_classes_that_lie_evenly_in_both_halves_stay_alone() -> None:
    classes = np.array([0, 1, 2, 1, 0, 3])  # halves (0 1 2), (1 0 3): only 2 and 3 are uneven
    assert partition(balance(classes, [(np.arange(6), 2)])) == [[0, 4], [1, 3], [2, 5]]


def test_a_wide_class_waits_for_narrow_ones() -> None:
    classes = np.array([0, 0, 1, 2, 3, 4])  # 0 counts twice in the first half, all others once
    assert partition(balance(classes, [(np.arange(6), 2)])) == [[0, 1, 4, 5], [2, 3]]


def test_what_comes_to_no_zero_is_one_set() -> None:
    found = uneven_sets(np.array([[0, 0, 0, 0], [1, 1, 2, 2]]))
    assert [sorted(s.tolist()) for s in found] == [[0, 1, 2]]
    assert [sorted(s.tolist()) for s in uneven_sets(np.array([[0, 0, 0], [1, 1, 1]]))] == [[0, 1]]
    assert uneven_sets(np.array([[0, 1], [1, 0]])) == []


def test_the_largest_surplus_is_matched_first() -> None:
    # surplus: 0 is +3, 1 is +1; 2, 3, 4 and 5 are -1
    found = uneven_sets(np.array([[0, 0, 0, 1], [2, 3, 4, 5]]))
    assert [sorted(s.tolist()) for s in found] == [[1, 2], [0, 3, 4, 5]]
    # surplus: 0 is +3, 1 and 2 are -2, 3 is +1
    assert [sorted(s.tolist()) for s in uneven_sets(np.array([[0, 0, 0, 3], [1, 1, 2, 2]]))] == [[0, 1, 2, 3]]


def test_more_parts_lose_the_same_slots() -> None:
    assert partition(balance(np.arange(6), [(np.arange(6), 3)])) == [[0, 2, 4], [1, 3, 5]]
    classes = np.array([0, 1, 0, 2, 0, 3])  # the first slot is one class already
    assert partition(balance(classes, [(np.arange(6), 3)])) == [[0, 2, 4], [1, 3, 5]]


def test_a_class_in_two_slots_ties_both() -> None:
    classes = np.array([0, 1, 2, 1, 3, 4, 5, 6, 7])  # label 1 lies in the second slot of one part, the first of the next
    assert partition(balance(classes, [(np.arange(9), 3)])) == [[0, 1, 3, 4, 6, 7], [2, 5, 8]]


def test_a_later_split_sees_what_an_earlier_one_tied() -> None:
    splits = [(np.array([0, 1, 2, 3]), 2), (np.array([0, 4, 2, 5]), 2), (np.array([6, 7, 0, 1]), 2)]
    # the first ties 0 2 and 1 3; the second, which halves (0 4) and (2 5), only 4 and 5; the third 0 and 6, 1 and 7
    assert partition(balance(np.arange(8), splits)) == [[0, 2, 6], [1, 3, 7], [4, 5]]


@pytest.mark.parametrize("seed", range(20))
def test_every_class_lies_evenly_in_all_parts_of_all_splits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = 24
    classes = rng.integers(0, size, size)
    splits = [(rng.permutation(size)[:12], int(rng.choice([2, 3, 4]))) for _ in range(2)]
    found = balance(classes, splits[::-1])
    labels, parts = splits[0]  # the last one that was balanced
    table = found[labels].reshape(parts, -1)
    for c in np.unique(table):
        assert len(set((table == c).sum(axis=1).tolist())) == 1
    assert all(len(set(found[classes == c].tolist())) == 1 for c in classes)  # nothing comes apart


def test_time_grows_with_the_size_of_the_splits_alone() -> None:
    """Ten times the splits of ten times the channels: each costs its own size, not the network's (then it were a hundred)."""

    def took(splits: int) -> float:
        labels = np.arange(100 * splits)
        halves = [(labels[100 * i : 100 * (i + 1)], 2) for i in range(splits)]
        begin = time.process_time()
        balance(np.arange(len(labels)), halves)
        return time.process_time() - begin

    took(10)
    assert took(400) < 25 * max(took(40), 1e-3)
