"""Convolutions: what is read, written, tied and counted."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn import functional as F

from labels_seen import seen, w, x
from prunus.types import Units

WHOLE = Units(groups=True, norm_groups=True)
READ = "read by a weight whose width is fixed"
PIXELS = "channels lie on a pixel axis"
DEPTHWISE = "a depthwise convolution with a fixed width"
INNER = "the width of a group of a convolution whose groups go as a whole"
GROUPED = "a grouped convolution with a fixed width"

CASES: dict[str, tuple[Any, ...]] = {
    "conv plain": (
        F.conv2d,
        x(2, 3, 5, 5, a1=0),
        w(4, 3, 3, 3, a0=100, a1=200),
        w(4, a0=300),
        {
            "out": [{1: "100-103"}],
            "tied": ["0 200", "1 201", "2 202", "100 300", "101 301", "102 302", "103 303"],
            "roles": ["reads 200-202", "writes 100-103", "writes 300-303"],
            "reading": [(1, 1)],
            "layers": ["convolution(3, 3): 162 x [200-202] x [100-103]"],
        },
    ),
    "conv plain no bias, stride": (
        lambda a, b: F.conv2d(a, b, stride=2),
        x(2, 3, 5, 5, a1=0),
        w(4, 3, 3, 3, a0=100, a1=200),
        {
            "out": [{1: "100-103"}],
            "tied": ["0 200", "1 201", "2 202"],
            "roles": ["reads 200-202", "writes 100-103"],
            "reading": [(1, 1)],
            "layers": ["convolution(3, 3): 72 x [200-202] x [100-103]"],
        },
    ),
    "conv of an image": (
        F.conv2d,
        x(2, 3, 5, 5),
        w(4, 3, 1, 1, a0=100, a1=200),
        w(4, a0=300),
        {
            "out": [{1: "100-103"}],
            "tied": ["100 300", "101 301", "102 302", "103 303"],
            "frozen": {"200-202": "its weight also reads an input whose width is fixed"},
            "roles": ["reads 200-202", "writes 100-103", "writes 300-303"],
            "reading": [(1, 1)],
            "layers": ["convolution(1, 1): 50 x [200-202] x [100-103]"],
        },
    ),
    "conv fixed weight in": (
        F.conv2d,
        x(2, 3, 5, 5, a1=0),
        w(4, 3, 1, 1, a0=100),
        {
            "out": [{1: "100-103"}],
            "frozen": {"0-2": READ},
            "roles": ["writes 100-103"],
            "reading": [(1, 1)],
            "layers": ["convolution(1, 1): 50 x 3 x [100-103]"],
        },
    ),
    "conv fixed weight out, bias": (
        F.conv2d,
        x(2, 3, 5, 5, a1=0),
        w(4, 3, 1, 1, a1=200),
        w(4, a0=300),
        {
            "out": [{}],
            "tied": ["0 200", "1 201", "2 202"],
            "frozen": {"300-303": "meets a width that is fixed"},
            "roles": ["reads 200-202", "writes 300-303"],
            "reading": [(1, 1)],
            "layers": ["convolution(1, 1): 50 x [200-202] x 4"],
        },
    ),
    "conv unlabelled weight": (
        F.conv1d,
        x(2, 3, 5, a1=0),
        w(4, 3, 2),
        {"out": [{}], "frozen": {"0-2": READ}, "reading": [(1, 1)], "layers": ["convolution(2,): 16 x 3 x 4"]},
    ),
    "conv batch channels": (
        F.conv2d,
        x(2, 3, 5, 5, a0=50, a1=0),
        w(4, 3, 1, 1, a0=100, a1=200),
        {
            "out": [{0: "50 51", 1: "100-103"}],
            "tied": ["0 200", "1 201", "2 202"],
            "roles": ["reads 200-202", "writes 100-103"],
            "reading": [(1, 1)],
            "layers": ["convolution(1, 1): 25 x [200-202] x [100-103] x [50 51]"],
        },
    ),
    "conv of weights": (
        F.conv2d,
        w(2, 3, 1, 1, a0=50, a1=0),
        w(4, 3, 1, 1, a0=100, a1=200),
        {
            "out": [{0: "50 51", 1: "100-103"}],
            "tied": ["0 200", "1 201", "2 202"],
            "roles": ["reads 200-202", "writes 100-103"],
            "reading": [(1, 1)],
            "layers": ["convolution(1, 1): 1 x [200-202] x [100-103] x [50 51]"],
            "parametric": True,
        },
    ),
    "conv along channels": (
        lambda a, b: F.conv1d(a, b, padding=1),
        x(2, 1, 6, a2=0),
        w(1, 1, 3),
        {
            "out": [{2: "0-5"}],
            "reading": [(1, 1)],
            "mixed": [([(0, 2)], "0-5", 2, None)],
            "layers": ["convolution(3,): 6 x 1 x 1 x [0-5]"],
        },
    ),
    "conv along channels, shrinking": (
        F.conv1d,
        x(2, 1, 6, a2=0),
        w(1, 1, 3),
        {"out": [{}], "frozen": {"0-5": PIXELS}, "reading": [(1, 1)], "layers": ["convolution(3,): 24 x 1 x 1"]},
    ),
    "conv along channels, stride": (
        lambda a, b: F.conv1d(a, b, stride=2, padding=1),
        x(2, 1, 6, a2=0),
        w(1, 1, 3),
        {"out": [{}], "frozen": {"0-5": PIXELS}, "reading": [(1, 1)], "layers": ["convolution(3,): 18 x 1 x 1"]},
    ),
    "conv over rows": (
        lambda a, b: F.conv2d(a, b, padding=(1, 0)),
        x(2, 1, 6, 4, a2=0),
        w(2, 1, 3, 1, a0=100),
        {
            "out": [{1: "100 101", 2: "0-5"}],
            "roles": ["writes 100 101"],
            "reading": [(1, 1)],
            "mixed": [([(0, 2)], "0-5", 2, None)],
            "layers": ["convolution(3, 1): 24 x 1 x [100 101] x [0-5]"],
        },
    ),
    "depthwise": (
        lambda a, b, c: F.conv2d(a, b, c, groups=3),
        x(2, 3, 5, 5, a1=0),
        w(3, 1, 3, 3, a0=100),
        w(3, a0=300),
        {
            "out": [{1: "0-2"}],
            "tied": ["0 100 300", "1 101 301", "2 102 302"],
            "roles": ["scales 100-102", "writes 300-302"],
            "layers": ["convolution(3, 3) in 3 groups: 162 x 1 x [100-102]"],
        },
    ),
    "depthwise multiplier": (
        lambda a, b, c: F.conv2d(a, b, c, groups=3),
        x(2, 3, 5, 5, a1=0),
        w(6, 1, 3, 3, a0=100),
        w(6, a0=300),
        {
            "out": [{1: "0 0 1 1 2 2"}],
            "tied": ["0 100 101 300 301", "1 102 103 302 303", "2 104 105 304 305"],
            "roles": ["scales 100-105", "writes 300-305"],
            "layers": ["convolution(3, 3) in 3 groups: 162 x 1 x [100-105]"],
        },
    ),
    "depthwise image": (
        lambda a, b: F.conv2d(a, b, groups=3),
        x(2, 3, 5, 5),
        w(3, 1, 1, 1, a0=100),
        {
            "out": [{}],
            "frozen": {"100-102": DEPTHWISE},
            "roles": ["scales 100-102"],
            "layers": ["convolution(1, 1) in 3 groups: 50 x 1 x [100-102]"],
        },
    ),
    "depthwise fixed weight": (
        lambda a, b: F.conv2d(a, b, groups=3),
        x(2, 3, 5, 5, a1=0),
        w(3, 1, 1, 1),
        {"out": [{}], "frozen": {"0-2": DEPTHWISE}, "layers": ["convolution(1, 1) in 3 groups: 50 x 1 x 3"]},
    ),
    "transposed": (
        lambda a, b, c: F.conv_transpose2d(a, b, c, stride=2),
        x(2, 3, 4, 5, a1=0),
        w(3, 4, 2, 2, a0=100, a1=200),
        w(4, a0=300),
        {
            "out": [{1: "200-203"}],
            "tied": ["0 100", "1 101", "2 102", "200 300", "201 301", "202 302", "203 303"],
            "roles": ["reads 100-102", "writes 200-203", "writes 300-303"],
            "reading": [(1, 0)],
            "layers": ["transposed convolution(2, 2): 160 x [100-102] x [200-203]"],
        },
    ),
    "transposed depthwise": (
        lambda a, b: F.conv_transpose1d(a, b, groups=3),
        x(2, 3, 4, a1=0),
        w(3, 1, 2, a0=100),
        {
            "out": [{1: "0-2"}],
            "tied": ["0 100", "1 101", "2 102"],
            "roles": ["scales 100-102"],
            "layers": ["transposed convolution(2,) in 3 groups: 16 x [100-102] x 1"],
        },
    ),
    "transposed depthwise multiplier": (
        lambda a, b: F.conv_transpose1d(a, b, groups=3),
        x(2, 3, 4, a1=0),
        w(3, 2, 2, a0=100, a1=200),
        {
            "out": [{1: "0 0 1 1 2 2"}],
            "tied": ["0 100", "1 101", "2 102"],
            "frozen": {"200 201": "multiplier of a depthwise transposed convolution"},
            "roles": ["scales 100-102"],
            "layers": ["transposed convolution(2,) in 3 groups: 16 x [100-102] x [200 201]"],
        },
    ),
    "transposed depthwise multiplier, unlabelled slots": (
        lambda a, b: F.conv_transpose1d(a, b, groups=3),
        x(2, 3, 4, a1=0),
        w(3, 2, 2, a0=100),
        {
            "out": [{1: "0 0 1 1 2 2"}],
            "tied": ["0 100", "1 101", "2 102"],
            "roles": ["scales 100-102"],
            "layers": ["transposed convolution(2,) in 3 groups: 16 x [100-102] x 2"],
        },
    ),
    "grouped": (
        lambda a, b, c: F.conv2d(a, b, c, groups=2),
        x(2, 4, 3, 3, a1=0),
        w(6, 2, 1, 1, a0=100, a1=200),
        w(6, a0=300),
        {
            "out": [{1: "100-102 100-102"}],
            "tied": ["0 2 200", "1 3 201", "100 103 300 303", "101 104 301 304", "102 105 302 305"],
            "roles": ["reads 200 201", "writes 100-105", "writes 300-305"],
            "reading": [(1, 1)],
            "layers": ["convolution(1, 1) in 2 groups: 18 x [200 201] x [100-105]"],
        },
    ),
    "grouped image": (
        lambda a, b: F.conv2d(a, b, groups=2),
        x(2, 4, 3, 3),
        w(6, 2, 1, 1, a0=100, a1=200),
        {
            "out": [{1: "100-102 100-102"}],
            "tied": ["100 103", "101 104", "102 105"],
            "roles": ["reads 200 201", "writes 100-105"],
            "reading": [(1, 1)],
            "layers": ["convolution(1, 1) in 2 groups: 18 x [200 201] x [100-105]"],
        },
    ),
    "grouped unlabelled out": (
        lambda a, b: F.conv2d(a, b, groups=2),
        x(2, 4, 3, 3, a1=0),
        w(6, 2, 1, 1, a1=200),
        {
            "out": [{}],
            "tied": ["0 2 200", "1 3 201"],
            "roles": ["reads 200 201"],
            "reading": [(1, 1)],
            "layers": ["convolution(1, 1) in 2 groups: 18 x [200 201] x 6"],
        },
    ),
    "grouped transposed": (
        lambda a, b: F.conv_transpose1d(a, b, groups=2),
        x(2, 4, 3, a1=0),
        w(4, 3, 1, a0=100, a1=200),
        {
            "out": [{1: "200-202 200-202"}],
            "tied": ["0 2 100 102", "1 3 101 103"],
            "roles": ["reads 100-103", "writes 200-202"],
            "reading": [(1, 0)],
            "layers": ["transposed convolution(1,) in 2 groups: 6 x [100-103] x [200-202]"],
        },
    ),
    "grouped transposed image": (
        lambda a, b: F.conv_transpose1d(a, b, groups=2),
        x(2, 4, 3),
        w(4, 3, 1, a0=100, a1=200),
        {
            "out": [{1: "200-202 200-202"}],
            "tied": ["100 102", "101 103"],
            "roles": ["reads 100-103", "writes 200-202"],
            "reading": [(1, 0)],
            "layers": ["transposed convolution(1,) in 2 groups: 6 x [100-103] x [200-202]"],
        },
    ),
    "grouped transposed fixed": (
        lambda a, b: F.conv_transpose1d(a, b, groups=2),
        x(2, 4, 3, a1=0),
        w(4, 3, 1, a1=200),
        {
            "out": [{1: "200-202 200-202"}],
            "frozen": {"0-3": READ},
            "roles": ["writes 200-202"],
            "reading": [(1, 0)],
            "layers": ["transposed convolution(1,) in 2 groups: 6 x 4 x [200-202]"],
        },
    ),
    "one channel a group": (
        lambda a, b: F.conv2d(a, b, groups=2),
        x(2, 4, 3, 3, a1=0),
        w(2, 2, 1, 1, a0=100, a1=200),
        {
            "out": [{1: "100 101"}],
            "tied": ["0 1 100", "2 3 101"],
            "frozen": {"200 201": INNER},
            "roles": ["scales 100 101"],
            "reading": [(1, 1)],
            "layers": ["convolution(1, 1) in 2 groups: 18 x [200 201] x [100 101]"],
        },
    ),
    "whole groups": (
        lambda a, b: F.conv2d(a, b, groups=2),
        x(2, 4, 3, 3, a1=0),
        w(6, 2, 1, 1, a0=100, a1=200),
        WHOLE,
        {
            "out": [{1: "100 100 100 103 103 103"}],
            "tied": ["0 1 100-102", "2 3 103-105"],
            "frozen": {"200 201": INNER},
            "roles": ["scales 100-105"],
            "reading": [(1, 1)],
            "layers": ["convolution(1, 1) in 2 groups: 18 x [200 201] x [100-105]"],
        },
    ),
    "whole groups transposed": (
        lambda a, b: F.conv_transpose2d(a, b, groups=2),
        x(2, 4, 3, 3, a1=0),
        w(4, 3, 1, 1, a0=100, a1=200),
        WHOLE,
        {
            "out": [{1: "100 100 100 102 102 102"}],
            "tied": ["0 1 100 101", "2 3 102 103"],
            "frozen": {"200-202": INNER},
            "roles": ["scales 100-103"],
            "reading": [(1, 0)],
            "layers": ["transposed convolution(1, 1) in 2 groups: 18 x [100-103] x [200-202]"],
        },
    ),
    "whole groups image": (
        lambda a, b: F.conv2d(a, b, groups=2),
        x(2, 4, 3, 3),
        w(6, 2, 1, 1, a0=100),
        WHOLE,
        {
            "out": [{}],
            "frozen": {"100-105": GROUPED},
            "reading": [(1, 1)],
            "layers": ["convolution(1, 1) in 2 groups: 18 x 2 x [100-105]"],
        },
    ),
    "whole groups fixed": (
        lambda a, b: F.conv2d(a, b, groups=2),
        x(2, 4, 3, 3, a1=0),
        w(6, 2, 1, 1),
        WHOLE,
        {"out": [{}], "frozen": {"0-3": GROUPED}, "reading": [(1, 1)], "layers": ["convolution(1, 1) in 2 groups: 18 x 2 x 6"]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_rule_says(name: str) -> None:
    program, *given, expected = CASES[name]
    units = given.pop() if isinstance(given[-1], Units) else None
    assert seen(program, *given, units=units) == expected
