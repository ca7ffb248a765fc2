"""The binary search of AOFP: the trace of METHODS A5.7 to the digit, and the variants of the two released codes."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from prunus.sparsity.filter_search import FilterSearch

ENERGY = torch.tensor([0.0, 0.004, 0.5, 0.496], dtype=torch.float64)


def expected_harm(search: FilterSearch) -> Tensor:
    """Mean over all halves of S that hold a filter of t = sum of the energies in the half / energy alive: exact expectations."""
    among = search.candidates.nonzero()[:, 0].tolist()
    total, count = torch.zeros_like(ENERGY), torch.zeros_like(ENERGY)
    for half in combinations(among, search.half):
        harm = ENERGY[list(half)].sum() / ENERGY[search.alive].sum()
        total[list(half)] += harm
        count[list(half)] += 1
    return total / count.clamp_min(1)


def test_the_trace_by_hand() -> None:
    """T = (.3333, .3360, .6667, .6640): halve to {0, 1}; T = (0, .004): 0 goes; of {1, 2, 3} then 1; {2, 3} fails for ever."""
    search = FilterSearch.over(4)
    trace: list[tuple[list[int], list[float], list[int]]] = []
    for _ in range(6):
        among, harm = search.candidates.nonzero()[:, 0], expected_harm(search)
        gone = search.decide(harm, lambda t: t < 0.01)
        if gone.any():
            search.remove(gone)
        trace.append((among.tolist(), [round(float(t), 4) for t in harm[among]], gone.nonzero()[:, 0].tolist()))
    assert trace[0] == ([0, 1, 2, 3], [0.3333, 0.336, 0.6667, 0.664], [])
    assert trace[1] == ([0, 1], [0.0, 0.004], [0])
    assert trace[2] == ([1, 2, 3], [0.004, 0.5, 0.496], [1])
    assert [step[::2] for step in trace[3:]] == [([2, 3], [])] * 3
    assert search.alive.tolist() == [False, False, True, True] and search.failures == 3
    assert search.over_after(3) and not search.over_after(4)


def test_a_lower_half_goes_as_a_whole() -> None:
    """Of five filters the two lowest, ties to the first; the mean of the worse one decides."""
    search = FilterSearch.over(5)
    harm = torch.tensor([0.3, 0.005, 0.005, 0.3, 0.005], dtype=torch.float64)
    assert search.decide(harm, lambda t: t < 0.01).tolist() == [False, True, True, False, False]
    assert search.decide(harm, lambda t: t < 0.005).tolist() == [False] * 5  # at the threshold: narrowed down to them
    assert search.candidates.tolist() == [False, True, True, False, False]
    assert search.decide(harm, lambda t: t <= 0.005).tolist() == [False, True, False, False, False]


def test_a_filter_that_fails_alone_starts_the_search_anew() -> None:
    search = FilterSearch.over(4)
    for candidates, failures in (([0, 1], 0), ([0, 1, 2, 3], 1)):
        search.decide(torch.full((4,), 0.5), lambda t: t < 0.01)
        assert search.candidates.nonzero()[:, 0].tolist() == candidates and search.failures == failures
    search.remove(torch.tensor([True, False, False, False]))
    assert search.failures == 0 and search.candidates.tolist() == [False, True, True, True]


def test_the_floor_holds_and_one_filter_is_no_half() -> None:
    search = FilterSearch.over(4, floor=3)
    gone = search.decide(torch.zeros(4), lambda t: True)
    assert gone.tolist() == [True, False, False, False]
    search.remove(gone)
    assert search.over_after(3)
    assert FilterSearch.over(1).over_after(3)


@pytest.mark.parametrize(("count", "half", "power"), [(64, 32, 32), (48, 24, 16), (40, 20, 16), (3, 1, 1), (2, 1, 1), (5, 2, 2)])
def test_the_first_half_of_the_two_codes(count: int, half: int, power: int) -> None:
    assert FilterSearch.over(count).half == half
    search = FilterSearch.over(count, first_half="power_of_two")
    assert search.half == power
    if power > 1:
        search.decide(torch.ones(count), lambda t: False)
        assert search.half == power // 2  # from then on by halves


def test_halves_are_drawn_from_the_candidates_evenly() -> None:
    search, generator = FilterSearch.over(6), torch.Generator().manual_seed(0)
    search.candidates[0] = False
    drawn = torch.stack([search.draw(generator) for _ in range(4000)])
    assert drawn.sum(1).unique().tolist() == [2]
    assert drawn.double().mean(0).tolist() == pytest.approx([0, 0.4, 0.4, 0.4, 0.4, 0.4], abs=0.03)
