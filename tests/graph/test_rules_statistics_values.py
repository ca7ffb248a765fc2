"""Normalisation, reductions and element-wise operations: what is tied, mixed, numbered and frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from labels_seen import seen, w, x
from prunus.types import Units

ATEN = torch.ops.aten
WHOLE = Units(groups=True, norm_groups=True)
NORMALISED = "normalised with a fixed width"
MEETS = "meets a tensor whose width is fixed"

CASES: dict[str, tuple[Any, ...]] = {
    "batch norm": (
        lambda a, m, v, s, b: F.batch_norm(a, m, v, s, b),
        x(2, 3, 4, a1=0),
        w(3, a0=100),
        w(3, a0=110),
        w(3, a0=120),
        w(3, a0=130),
        {
            "out": [{1: "0-2"}],
            "tied": ["0 100 110 120 130", "1 101 111 121 131", "2 102 112 122 132"],
            "roles": ["scales 120-122", "scales 130-132", "statistics 100-102", "statistics 110-112"],
            "norms": [("batch_norm", "given 3", "given 4")],
        },
    ),
    "batch norm, batch channels": (
        lambda a, m, v: F.batch_norm(a, m, v),
        x(2, 3, 4, a0=50, a1=0),
        w(3, a0=100),
        w(3, a0=110),
        {
            "out": [{0: "50 51", 1: "0-2"}],
            "tied": ["0 100 110", "1 101 111", "2 102 112"],
            "roles": ["statistics 100-102", "statistics 110-112"],
        },
    ),
    "batch norm, training": (
        lambda a, s: F.batch_norm(a, None, None, s, None, training=True),
        x(2, 3, 4, a0=50, a1=0, a2=60),
        w(3, a0=120),
        {
            "out": [{0: "50 51", 1: "0-2", 2: "60-63"}],
            "tied": ["0 120", "1 121", "2 122"],
            "roles": ["scales 120-122"],
            "mixed": [([(0, 0)], "50 51", 0, None), ([(0, 2)], "60-63", 2, None)],
            "norms": [("batch_norm", "given 1", None)],
        },
    ),
    "batch norm, fixed": (
        lambda a, s: F.batch_norm(a, None, None, s, training=True),
        x(2, 3, 4),
        w(3, a0=120),
        {"out": [{}], "frozen": {"120-122": NORMALISED}, "roles": ["scales 120-122"], "norms": [("batch_norm", "given 1", None)]},
    ),
    "batch norm functional": (
        lambda a, s, b, m, v: ATEN._native_batch_norm_legit(a, s, b, m, v, True, 0.1, 1e-5),
        x(2, 3, 4, a0=50, a1=0),
        w(3, a0=120),
        w(3, a0=130),
        w(3, a0=100),
        w(3, a0=110),
        {
            "out": [{0: "50 51", 1: "0-2"}, {0: "0-2"}, {0: "0-2"}],
            "tied": ["0 100 110 120 130", "1 101 111 121 131", "2 102 112 122 132"],
            "roles": ["scales 120-122", "scales 130-132", "statistics 100-102", "statistics 110-112"],
            "mixed": [([(0, 0)], "50 51", 0, None)],
            "norms": [("batch_norm", "given 1", "given 2")],
        },
    ),
    "batch norm no training": (
        lambda a, s, b, m, v: ATEN._native_batch_norm_legit_no_training(a, s, b, m, v, 0.1, 1e-5),
        x(2, 3, 4, a0=50, a1=0),
        w(3, a0=120),
        w(3, a0=130),
        w(3, a0=100),
        w(3, a0=110),
        {
            "out": [{0: "50 51", 1: "0-2"}, {}, {}],
            "tied": ["0 100 110 120 130", "1 101 111 121 131", "2 102 112 122 132"],
            "roles": ["scales 120-122", "scales 130-132", "statistics 100-102", "statistics 110-112"],
            "norms": [("batch_norm", "given 1", "given 2")],
        },
    ),
    "layer norm": (
        lambda a, s, b: F.layer_norm(a, (3,), s, b),
        x(2, 5, 3, a1=50, a2=0),
        w(3, a0=100),
        w(3, a0=200),
        {
            "out": [{1: "50-54", 2: "0-2"}],
            "tied": ["0 100 200", "1 101 201", "2 102 202"],
            "roles": ["scales 100-102", "scales 200-202"],
            "mixed": [([(0, 2), (2, 0), (3, 0)], "0-2", 2, {1: [2]})],
        },
    ),
    "layer norm two axes": (
        lambda a, s: F.layer_norm(a, (5, 3), s),
        x(2, 5, 3, a1=50, a2=0),
        w(5, 3, a0=100, a1=200),
        {
            "out": [{1: "50-54", 2: "0-2"}],
            "tied": ["0 200", "1 201", "2 202", "50 100", "51 101", "52 102", "53 103", "54 104"],
            "roles": ["scales 100-104", "scales 200-202"],
            "mixed": [([(0, 1), (2, 0)], "50-54", 1, {1: [4, 3]}), ([(0, 2), (2, 1)], "0-2", 2, {1: [4, 2]})],
        },
    ),
    "layer norm fixed": (
        lambda a, s: F.layer_norm(a, (3,), s),
        x(2, 5, 3, a2=0),
        w(3),
        {"out": [{2: "0-2"}], "frozen": {"0-2": NORMALISED}, "mixed": [([(0, 2), (2, 0)], "0-2", 2, {1: [2]})]},
    ),
    "layer norm plain, bare": (
        lambda a: F.layer_norm(a, (5, 3)),
        x(2, 5, 3, a0=9, a1=50),
        {"out": [{0: "9 10", 1: "50-54"}], "mixed": [([(0, 1)], "50-54", 1, {1: [4, 3]})]},
    ),
    "rms norm": (
        lambda a, s: ATEN._fused_rms_norm(a, [3], s, 1e-5),
        x(2, 5, 3, a2=0),
        w(3, a0=100),
        {"out": [{2: "0-2"}, {}], "tied": ["0 100", "1 101", "2 102"], "mixed": [([(0, 2)], "0-2", None, None)]},
    ),
    "group norm": (
        lambda a, s, b: F.group_norm(a, 2, s, b),
        x(2, 4, 5, a1=0),
        w(4, a0=100),
        w(4, a0=200),
        {
            "out": [{1: "0-3"}],
            "tied": ["0 2 100 102 200 202", "1 3 101 103 201 203"],
            "roles": ["scales 100-103", "scales 200-203"],
            "mixed": [([(0, 1), (1, 0), (2, 0)], "0-3", 1, {4: 3})],
        },
    ),
    "group norm whole": (
        lambda a, s: F.group_norm(a, 2, s),
        x(2, 4, 5, a1=0),
        w(4, a0=100),
        WHOLE,
        {"out": [{1: "0-3"}], "tied": ["0 1 100 101", "2 3 102 103"], "roles": ["scales 100-103"]},
    ),
    "group norm, one group, whole": (
        lambda a: F.group_norm(a, 1),
        x(2, 4, 5, a1=0),
        WHOLE,
        {"out": [{1: "0-3"}], "mixed": [([(0, 1)], "0-3", 1, {4: 3})]},
    ),
    "group norm, group a channel": (
        lambda a, s: F.group_norm(a, 4, s),
        x(2, 4, 5, a1=0),
        w(4, a0=100),
        {"out": [{1: "0-3"}], "tied": ["0 100", "1 101", "2 102", "3 103"], "roles": ["scales 100-103"]},
    ),
    "group norm of an image": (lambda a, s: F.group_norm(a, 2, s), x(2, 4, 5), w(4, a0=100), {"out": [{}]}),
    "group norm fixed": (
        lambda a, s: F.group_norm(a, 2, s),
        x(2, 4, 5, a1=0),
        w(4),
        {
            "out": [{1: "0-3"}],
            "tied": ["0 2", "1 3"],
            "frozen": {"0-3": NORMALISED},
            "mixed": [([(0, 1), (1, 0)], "0-3", 1, {4: 3})],
        },
    ),
    "weight norm": (
        lambda v, g: torch._weight_norm(v, g, 0),
        w(3, 2, 4, a0=0, a1=10),
        w(3, 1, 1, a0=20),
        {
            "out": [{0: "0-2", 1: "10 11"}],
            "tied": ["0 20", "1 21", "2 22"],
            "mixed": [([(0, 1)], "10 11", 1, None)],
            "parametric": True,
        },
    ),
    "weight norm last": (
        lambda v, g: torch._weight_norm(v, g, 2),
        w(3, 2, 4, a0=0, a1=10, a2=30),
        w(1, 1, 4, a2=20),
        {
            "out": [{0: "0-2", 1: "10 11", 2: "30-33"}],
            "tied": ["20 30", "21 31", "22 32", "23 33"],
            "mixed": [([(0, 0)], "0-2", 0, None), ([(0, 1)], "10 11", 1, None)],
            "parametric": True,
        },
    ),
    "mean": (lambda a: a.mean(1), x(2, 3, 4, a1=0, a2=50), {"out": [{1: "50-53"}], "mixed": [([(0, 1)], "0-2", None, None)]}),
    "mean keepdim": (
        lambda a: a.mean((1, -1), keepdim=True),
        x(2, 3, 4, 5, a0=70, a1=0, a2=50),
        {"out": [{0: "70 71", 2: "50-53"}], "mixed": [([(0, 1)], "0-2", None, None)]},
    ),
    "mean of pixels": (lambda a: a.mean((2, 3)), x(2, 3, 4, 5, a1=0), {"out": [{1: "0-2"}]}),
    "sum of all": (lambda a: a.sum(), x(2, 3, a1=0), {"out": [{}], "mixed": [([(0, 1)], "0-2", None, None)]}),
    "mean of all, empty list": (lambda a: a.mean([]), x(2, 3, a1=0), {"out": [{}], "mixed": [([(0, 1)], "0-2", None, None)]}),
    "max over axis": (
        lambda a: a.max(1),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{1: "50-53"}, {1: "50-53"}], "mixed": [([(0, 1)], "0-2", None, None)], "numbers": ["0-2"]},
    ),
    "max over pixels": (lambda a: a.max(2), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}, {1: "0-2"}]}),
    "max keepdim": (lambda a: a.max(0, keepdim=True), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}, {1: "0-2"}]}),
    "argmax": (
        lambda a: a.argmax(1),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{1: "50-53"}], "mixed": [([(0, 1)], "0-2", None, None)], "numbers": ["0-2"]},
    ),
    "argmin of all": (
        lambda a: a.argmin(),
        x(2, 3, a1=0),
        {"out": [{}], "mixed": [([(0, 1)], "0-2", None, None)], "numbers": ["0-2"]},
    ),
    "median": (
        lambda a: a.median(1),
        x(2, 3, 4, a1=0),
        {"out": [{}, {}], "mixed": [([(0, 1)], "0-2", None, None)], "numbers": ["0-2"]},
    ),
    "var_mean": (lambda a: torch.var_mean(a, 1), x(2, 3, 4, a1=0), {"out": [{}, {}], "mixed": [([(0, 1)], "0-2", None, None)]}),
    "maximum of two": (torch.max, x(2, 3, a1=0), x(2, 3, a1=100), {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]}),
    "amax": (lambda a: a.amax(-1), x(2, 3, 4, a1=0, a2=50), {"out": [{1: "0-2"}], "mixed": [([(0, 2)], "50-53", None, None)]}),
    "softmax": (
        lambda a: a.softmax(-1),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{1: "0-2", 2: "50-53"}], "mixed": [([(0, 2)], "50-53", 2, None)]},
    ),
    "softmax pixels": (lambda a: a.softmax(2), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}]}),
    "cumsum": (lambda a: a.cumsum(1), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}], "mixed": [([(0, 1)], "0-2", 1, None)]}),
    "relu": (torch.relu, x(2, 3, 4, a1=0), {"out": [{1: "0-2"}]}),
    "relu of a weight": (torch.relu, w(2, 3, a0=0, a1=10), {"out": [{0: "0 1", 1: "10-12"}], "parametric": True}),
    "add": (torch.add, x(2, 3, 4, a1=0), x(2, 3, 4, a1=100), {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]}),
    "add broadcast": (torch.add, x(2, 3, 4, a1=0), w(3, 1, a0=100), {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]}),
    "add a row": (
        torch.add,
        x(2, 3, 4, a1=0),
        x(4, a0=50),
        {"out": [{1: "0-2"}], "frozen": {"50-53": MEETS}, "fixed": {2: MEETS}},
    ),
    "add fixed": (torch.add, x(2, 3, 4, a1=0), x(2, 3, 4), {"out": [{}], "frozen": {"0-2": MEETS}, "fixed": {1: MEETS}}),
    "add one": (torch.mul, x(2, 3, 4, a1=0), x(2, 1, 1), {"out": [{1: "0-2"}]}),
    "add scalar tensor": (torch.add, x(2, 3, 4, a1=0), x(1), {"out": [{1: "0-2"}]}),
    "outer": (torch.mul, x(3, 1, a0=0), x(4, a0=50), {"out": [{0: "0-2", 1: "50-53"}]}),
    "three operands": (
        lambda a, b, c: torch.addcmul(a, b, c),
        x(2, 3, a1=0),
        x(2, 3, a1=100),
        x(3, a0=200),
        {"out": [{1: "0-2"}], "tied": ["0 100 200", "1 101 201", "2 102 202"]},
    ),
    "in place": (
        lambda a, b: a.add_(b),
        x(2, 3, a1=0),
        x(2, 3, a1=100),
        {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]},
    ),
    "in place into a view": (
        lambda a, b: a[:, :, 0].mul_(b),
        x(2, 3, 2),
        x(2, 3, a1=100),
        {"out": [{}], "frozen": {"100-102": MEETS}, "fixed": {1: MEETS}},
    ),
    "copied in place into a view": (
        lambda a, b: a[0].copy_(b),
        x(2, 3),
        x(3, a0=100),
        {"out": [{}], "frozen": {"100-102": MEETS}, "fixed": {0: MEETS}},
    ),
    "copied in place": (
        lambda a, b: a.copy_(b),
        x(2, 3),
        x(2, 3, a1=100),
        {"out": [{}], "frozen": {"100-102": MEETS}, "fixed": {1: MEETS}},
    ),
    "expanded fixed": (lambda a, b: a + b.expand(2, 3), x(2, 3, a1=0), x(2, 1), {"out": [{1: "0-2"}]}),
    "where": (
        torch.where,
        x(2, 3, a1=0, dtype=torch.bool),
        x(2, 3, a1=100),
        x(2, 3, a1=200),
        {"out": [{1: "0-2"}], "tied": ["0 100 200", "1 101 201", "2 102 202"]},
    ),
    "zeros like": (torch.zeros_like, x(2, 3, a1=0), {"out": [{1: "0-2"}]}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_rule_says(name: str) -> None:
    program, *given, expected = CASES[name]
    units = given.pop() if isinstance(given[-1], Units) else None
    assert seen(program, *given, units=units) == expected
