"""Ranking, picking, scattering and distances: what passes, what is mixed and what is frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from labels_seen import Given, seen, x

ATEN = torch.ops.aten
SORTED = "sorted: places in the order aren't channels,"
BATCH = "channels lie on a batch axis of distances"
WRITTEN = "channels are written at absolute indices"
INTO_FIXED = "written into a tensor whose width is fixed"
PICKED = "channels are picked by absolute index"
SEARCHED = "channels are searched in an order"


def idx(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.long)


CASES: dict[str, tuple[Any, ...]] = {
    "topk": (
        lambda a: a.topk(2, 1),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{2: "50-53"}, {2: "50-53"}], "mixed": [([(0, 1)], "0-2", None, None)], "numbers": ["0-2"]},
    ),
    "topk pixels": (lambda a: a.topk(2, -1), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}, {1: "0-2"}]}),
    "sort": (lambda a: a.sort(1), x(2, 3, 4, a1=0, a2=50), {"out": [{2: "50-53"}, {2: "50-53"}], "frozen": {"0-2": SORTED}}),
    "sort pixels": (lambda a: a.sort(2), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}, {1: "0-2"}]}),
    "sort number": (lambda a: a.sort(0), x(4, a0=0), {"out": [{}, {}], "frozen": {"0-3": SORTED}}),
    "kthvalue": (
        lambda a: a.kthvalue(2, 1),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{1: "50-53"}, {1: "50-53"}], "mixed": [([(0, 1)], "0-2", None, None)], "numbers": ["0-2"]},
    ),
    "kthvalue pixels": (lambda a: a.kthvalue(2, 2), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}, {1: "0-2"}]}),
    "mode keepdim": (
        lambda a: a.mode(1, True),
        x(2, 3, 4, a1=0),
        {"out": [{}, {}], "mixed": [([(0, 1)], "0-2", None, None)], "numbers": ["0-2"]},
    ),
    "cummax": (
        lambda a: a.cummax(1),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{1: "0-2", 2: "50-53"}, {1: "0-2", 2: "50-53"}], "mixed": [([(0, 1)], "0-2", 1, None)], "numbers": ["0-2"]},
    ),
    "cummin pixels": (lambda a: a.cummin(2), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}, {1: "0-2"}]}),
    "cdist": (
        torch.cdist,
        x(2, 3, 5, a1=0, a2=50),
        x(2, 4, 5, a1=100, a2=150),
        {
            "out": [{1: "0-2", 2: "100-103"}],
            "tied": ["50 150", "51 151", "52 152", "53 153", "54 154"],
            "mixed": [([(0, 2), (1, 2)], "50-54", None, None)],
        },
    ),
    "cdist batch": (
        torch.cdist,
        x(2, 3, 5, a0=70, a1=0),
        x(2, 4, 5, a0=80),
        {"out": [{1: "0-2"}], "frozen": {"70 71": BATCH, "80 81": BATCH}},
    ),
    "cdist fixed": (
        torch.cdist,
        x(3, 5, a1=50),
        x(4, 5),
        {"out": [{}], "frozen": {"50-54": "compared with points of fixed width"}},
    ),
    "cdist nothing": (torch.cdist, x(3, 5), x(4, 5, a0=1), {"out": [{1: "1-4"}]}),
    "renorm": (
        lambda a: a.renorm(2, 1, 1.0),
        x(2, 3, 4, a0=70, a1=0, a2=50),
        {"out": [{0: "70 71", 1: "0-2", 2: "50-53"}], "mixed": [([(0, 0)], "70 71", 0, None), ([(0, 2)], "50-53", 2, None)]},
    ),
    "renorm last": (lambda a: a.renorm(2, -1, 1.0), x(2, 3, 4, a2=50), {"out": [{2: "50-53"}]}),
    "scatter": (
        lambda a, b: a.scatter(1, zeros(2, 3, 4), b),
        x(2, 3, 4, a1=0, a2=50),
        x(2, 3, 4, a1=100, a2=150),
        {"out": [{}], "frozen": {"0-2": WRITTEN, "50-53": INTO_FIXED, "100-102": WRITTEN, "150-153": INTO_FIXED}},
    ),
    "scatter pixels": (
        lambda a, b: a.scatter(2, zeros(2, 3, 4), b),
        x(2, 3, 4, a1=0),
        x(2, 3, 4, a1=100),
        {"out": [{}], "frozen": {"0-2": INTO_FIXED, "100-102": INTO_FIXED}},
    ),
    "scatter a number": (lambda a: a.scatter(-1, zeros(1, 1, 1).expand(2, 3, 2), 1.0), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}]}),
    "scatter into fixed": (
        lambda a, b: a.scatter_add(2, zeros(1, 1, 1).expand(2, 3, 4), b),
        x(2, 3, 4),
        x(2, 3, 4, a1=100),
        {"out": [{}], "frozen": {"100-102": INTO_FIXED}},
    ),
    "scatter fixed": (
        lambda a, b: a.scatter_add(2, zeros(1, 1, 1).expand(2, 3, 4), b),
        x(2, 3, 4, a1=0),
        x(2, 3, 4),
        {"out": [{}], "frozen": {"0-2": INTO_FIXED}},
    ),
    "index add": (
        lambda a, b: a.index_add(2, idx(1, 0), b),
        x(2, 3, 4, a1=0),
        x(2, 3, 2, a1=100),
        {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]},
    ),
    "index fill channels": (
        lambda a: a.index_fill(1, idx(1, 0), 0.0),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{2: "50-53"}], "frozen": {"0-2": WRITTEN}},
    ),
    "pick rows": (lambda a: a[:, :, idx(1, 0)], x(2, 3, 4, a1=0), {"out": [{1: "0-2"}]}),
    "pick channels": (lambda a: a[:, idx(1, 0)], x(2, 3, 4, a1=0, a2=50), {"out": [{2: "50-53"}], "frozen": {"0-2": PICKED}}),
    "pick two apart": (lambda a: a[idx(1, 0), :, idx(1, 2)], x(2, 3, 4, a1=0), {"out": [{1: "0-2"}]}),
    "pick two together": (lambda a: a[:, :, idx(1, 0), idx(1, 2)], x(2, 3, 4, 5, a1=0), {"out": [{1: "0-2"}]}),
    "pick grid": (
        lambda a: a[:, :, idx(1, 0)[:, None], idx(1, 2, 3)],
        x(2, 3, 4, 5, a0=70, a1=0),
        {"out": [{0: "70 71", 1: "0-2"}]},
    ),
    "pick images": (lambda a: a[idx(1, 0, 1)], x(2, 3, 4, a1=0, a2=50), {"out": [{1: "0-2", 2: "50-53"}]}),
    "pick images and their channels": (
        lambda a: a[idx(1, 0, 1)],
        x(2, 3, 4, a0=70, a1=0),
        {"out": [{1: "0-2"}], "frozen": {"70 71": PICKED}},
    ),
    "pick by mask": (lambda a: a[torch.tensor([True, False])], x(2, 3, 4, a1=0, a2=50), {"out": [{1: "0-2", 2: "50-53"}]}),
    "pick by mask of pixels": (
        lambda a: a[:, torch.ones(4, 5, dtype=torch.bool)],
        x(3, 4, 5, a0=0, a1=50),
        {"out": [{0: "0-2"}], "frozen": {"50-53": "channels are picked by a mask"}},
    ),
    "pick by bytes": (
        lambda a: ATEN.index(a, [None, torch.ones(4, dtype=torch.bool)]),
        x(3, 4, 5, a0=0, a2=50),
        {"out": [{0: "0-2", 2: "50-54"}]},
    ),
    "pick by buffer": (
        lambda a, b: a[:, b],
        x(2, 3, 4, a1=0, a2=50),
        Given(idx(2, 0), {}, True),
        {"out": [{1: "2 0", 2: "50-53"}], "indices": [("given 1", "0-2")]},
    ),
    "pick pixels by buffer": (
        lambda a, b: a.index_select(2, b),
        x(2, 3, 4, a1=0, a2=50),
        Given(idx(2, 0, 1), {}, True),
        {"out": [{1: "0-2", 2: "52 50 51"}], "indices": [("given 1", "50-53")]},
    ),
    "pick channels by two buffers": (
        lambda a, b: a[b, b],
        x(3, 3, 4, a0=70, a1=0),
        Given(idx(2, 0), {}, True),
        {"out": [{}], "frozen": {"70-72": PICKED, "0-2": PICKED}},
    ),
    "pick by a buffer of two axes": (
        lambda a, b: a[:, b],
        x(2, 3, 4, a1=0),
        Given(idx(2, 0).view(2, 1), {}, True),
        {"out": [{}], "frozen": {"0-2": PICKED}},
    ),
    "assign images": (
        lambda a, b: ATEN.index_put(a, [idx(1, 0)], b),
        x(2, 3, 4, a1=0),
        x(2, 3, 4, a1=100),
        {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]},
    ),
    "assign pixels": (
        lambda a, b: ATEN.index_put(a, [None, None, idx(1, 0)], b),
        x(2, 3, 4, a1=0),
        x(2, 3, 2, a1=100),
        {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]},
    ),
    "assign channels": (
        lambda a, b: ATEN.index_put(a, [None, idx(1, 0)], b),
        x(2, 3, 4, a1=0, a2=50),
        x(2, 2, 4, a2=150),
        {"out": [{2: "50-53"}], "tied": ["50 150", "51 151", "52 152", "53 153"], "frozen": {"0-2": WRITTEN}},
    ),
    "assign broadcast": (
        lambda a, b: ATEN.index_put(a, [None, None, idx(1, 0)], b),
        x(2, 3, 4, a1=0),
        x(1, 1, 2),
        {"out": [{1: "0-2"}]},
    ),
    "assign fixed": (
        lambda a, b: ATEN.index_put(a, [None, None, idx(1, 0)], b),
        x(2, 3, 4, a1=0),
        x(3, 2),
        {"out": [{}], "frozen": {"0-2": INTO_FIXED}},
    ),
    "assign into fixed": (
        lambda a, b: ATEN.index_put(a, [None, None, idx(1, 0)], b),
        x(2, 3, 4),
        x(3, 2, a0=100),
        {"out": [{}], "frozen": {"100-102": INTO_FIXED}},
    ),
    "assign the indices' axis": (
        lambda a, b: ATEN.index_put(a, [idx(1, 0)], b),
        x(2, 3, 4, a1=0),
        x(2, 3, 4, a0=90, a1=100),
        {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"], "frozen": {"90 91": INTO_FIXED}},
    ),
    "select scatter": (
        lambda a, b: a.select_scatter(b, 2, 1),
        x(2, 3, 4, a1=0),
        x(2, 3, a1=100),
        {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]},
    ),
    "select scatter channel": (
        lambda a, b: a.select_scatter(b, 1, 1),
        x(2, 3, 4, a1=0, a2=50),
        x(2, 4, a1=150),
        {"out": [{2: "50-53"}], "tied": ["50 150", "51 151", "52 152", "53 153"], "frozen": {"0-2": WRITTEN}},
    ),
    "select scatter fixed": (
        lambda a, b: a.select_scatter(b, 2, 1),
        x(2, 3, 4, a1=0),
        x(2, 3),
        {"out": [{}], "frozen": {"0-2": INTO_FIXED}},
    ),
    "select scatter into fixed": (
        lambda a, b: a.select_scatter(b, 0, 1),
        x(2, 3, 4),
        x(3, 4, a0=100),
        {"out": [{}], "frozen": {"100-102": INTO_FIXED}},
    ),
    "slice scatter": (
        lambda a, b: a.slice_scatter(b, 2, 1, 3),
        x(2, 3, 4, a1=0),
        x(2, 3, 2, a1=100),
        {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]},
    ),
    "slice scatter channels": (
        lambda a, b: a.slice_scatter(b, 1, 0, 2),
        x(2, 3, 4, a1=0, a2=50),
        x(2, 2, 4, a1=100, a2=150),
        {"out": [{2: "50-53"}], "tied": ["50 150", "51 151", "52 152", "53 153"], "frozen": {"0-2": WRITTEN, "100 101": WRITTEN}},
    ),
    "searchsorted": (lambda a: torch.searchsorted(torch.arange(4.0), a), x(2, 3, a1=0), {"out": [{1: "0-2"}]}),
    "searchsorted sequence": (
        lambda a: torch.searchsorted(a, torch.zeros(2, 2)),
        x(2, 3, a1=0),
        {"out": [{}], "frozen": {"0-2": SEARCHED}},
    ),
    "searchsorted both": (
        lambda a, b: torch.searchsorted(a, b),
        x(2, 3, a1=0),
        x(2, 4, a1=50),
        {"out": [{}], "frozen": {"0-2": SEARCHED, "50-53": SEARCHED}},
    ),
    "searchsorted number": (lambda a: torch.searchsorted(a, 0.5), x(3, a0=0), {"out": [{}], "frozen": {"0-2": SEARCHED}}),
    "bucketize": (lambda a: torch.bucketize(a, torch.arange(4.0)), x(2, 3, a1=0), {"out": [{1: "0-2"}]}),
    "bucketize boundaries": (
        lambda a: torch.bucketize(torch.zeros(2), a),
        x(3, a0=0),
        {"out": [{}], "frozen": {"0-2": SEARCHED}},
    ),
    "nansum": (lambda a: a.nansum(1), x(2, 3, 4, a1=0, a2=50), {"out": [{1: "50-53"}], "mixed": [([(0, 1)], "0-2", None, None)]}),
    "count all": (lambda a: ATEN.count_nonzero(a), x(2, 3, a1=0), {"out": [{}], "mixed": [([(0, 1)], "0-2", None, None)]}),
    "count axis": (
        lambda a: ATEN.count_nonzero.dim_IntList(a, [1]),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{1: "50-53"}], "mixed": [([(0, 1)], "0-2", None, None)]},
    ),
    "aminmax": (
        lambda a: torch.aminmax(a, dim=1),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{1: "50-53"}, {1: "50-53"}], "mixed": [([(0, 1)], "0-2", None, None)]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_rule_says(name: str) -> None:
    program, *given, expected = CASES[name]
    assert seen(program, *given) == expected
