"""Attention as one operation: which heads, positions and widths are tied, mixed, frozen and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from labels_seen import seen, x

ATEN = torch.ops.aten
WIDTH = (
    "attention divides by the square root of the queries' width, so that removing from it changes every weight "
    "(give `scale` to make the head width prunable)"
)
MASK = "meets an attention mask whose width is fixed"
CAUSAL = "channels lie on the positions of causal attention"
HEADS = "queries and keys or values have different numbers of heads"
RANKS = "attention over tensors of different rank"


def inference(f: Callable[..., Any]) -> Callable[..., Any]:
    """In inference mode, composite operations arrive whole."""

    def run(*tensors: Tensor) -> Any:
        with torch.inference_mode():
            return f(*tensors)

    return run


def sdpa(**options: Any) -> Callable[..., Any]:
    return inference(lambda *tensors: F.scaled_dot_product_attention(*tensors, **options))


CASES: dict[str, tuple[Any, ...]] = {
    "sdpa heads": (
        sdpa(),
        x(2, 4, 5, 3, a1=0),
        x(2, 4, 6, 3, a1=10),
        x(2, 4, 6, 7, a1=20),
        {
            "out": [{1: "0-3"}],
            "tied": ["0 10 20", "1 11 21", "2 12 22", "3 13 23"],
            "layers": ["attention of activations: 10 x 3 x 6 x [0-3]", "attention of activations: 10 x 6 x 7 x [0-3]"],
        },
    ),
    "sdpa head width": (
        sdpa(),
        x(2, 4, 5, 3, a3=0),
        x(2, 4, 6, 3, a3=10),
        x(2, 4, 6, 7, a3=20),
        {
            "out": [{3: "20-26"}],
            "tied": ["0 10", "1 11", "2 12"],
            "frozen": {"0-2": WIDTH},
            "layers": ["attention of activations: 40 x [0-2] x 6", "attention of activations: 40 x 6 x [20-26]"],
            "heads": [("", 4)],
        },
    ),
    "sdpa one head width": (
        sdpa(),
        x(2, 1, 5, 3, a3=0),
        x(2, 1, 6, 3, a3=10),
        x(2, 1, 6, 7),
        {
            "out": [{}],
            "tied": ["0 10", "1 11", "2 12"],
            "frozen": {"0-2": WIDTH},
            "layers": ["attention of activations: 10 x [0-2] x 6", "attention of activations: 10 x 6 x 7"],
        },
    ),
    "sdpa scale, fixed keys": (
        sdpa(scale=0.5),
        x(2, 4, 5, 3, a3=0),
        x(2, 4, 6, 3),
        x(2, 4, 6, 7),
        {
            "out": [{}],
            "frozen": {"0-2": "meets a width that is fixed"},
            "layers": ["attention of activations: 40 x 3 x 6", "attention of activations: 40 x 6 x 7"],
        },
    ),
    "sdpa scale": (
        sdpa(scale=0.5),
        x(2, 4, 5, 3, a3=0),
        x(2, 4, 6, 3, a3=10),
        x(2, 4, 6, 7, a3=20),
        {
            "out": [{3: "20-26"}],
            "tied": ["0 10", "1 11", "2 12"],
            "mixed": [([(0, 3), (1, 3)], "0-2", None, None)],
            "layers": ["attention of activations: 40 x [0-2] x 6", "attention of activations: 40 x 6 x [20-26]"],
        },
    ),
    "sdpa positions": (
        sdpa(),
        x(2, 4, 5, 3, a2=0),
        x(2, 4, 6, 3, a2=10),
        x(2, 4, 6, 7, a2=20),
        {
            "out": [{2: "0-4"}],
            "tied": ["10 20", "11 21", "12 22", "13 23", "14 24", "15 25"],
            "mixed": [([(1, 2), (2, 2)], "10-15", None, None)],
            "layers": ["attention of activations: 8 x 3 x [10-15] x [0-4]", "attention of activations: 8 x [10-15] x 7 x [0-4]"],
        },
    ),
    "sdpa positions and width": (
        sdpa(scale=0.5),
        x(2, 4, 5, 3, a3=0),
        x(2, 4, 6, 3, a2=10, a3=30),
        x(2, 4, 6, 7, a2=20),
        {
            "out": [{}],
            "tied": ["0 30", "1 31", "2 32", "10 20", "11 21", "12 22", "13 23", "14 24", "15 25"],
            "frozen": {"10-15": "channels lie on the positions and on the width of attention at once"},
            "mixed": [([(0, 3), (1, 3)], "0-2", None, None)],
            "layers": ["attention of activations: 40 x [0-2] x [10-15]", "attention of activations: 40 x [10-15] x 7"],
        },
    ),
    "sdpa heads and value width": (
        sdpa(),
        x(2, 4, 5, 3, a1=0),
        x(2, 4, 6, 3, a1=10),
        x(2, 4, 6, 7, a1=20, a3=30),
        {
            "out": [{1: "0-3"}],
            "tied": ["0 10 20", "1 11 21", "2 12 22", "3 13 23"],
            "frozen": {"30-36": "the width of values whose heads go as a whole"},
            "layers": ["attention of activations: 10 x 3 x 6 x [0-3]", "attention of activations: 10 x 6 x 7 x [0-3]"],
        },
    ),
    "sdpa batch": (
        sdpa(),
        x(2, 4, 5, 3, a0=0),
        x(2, 4, 6, 3, a0=10),
        x(2, 4, 6, 7, a0=20),
        {
            "out": [{0: "0 1"}],
            "tied": ["0 10 20", "1 11 21"],
            "layers": ["attention of activations: 20 x 3 x 6 x [0 1]", "attention of activations: 20 x 6 x 7 x [0 1]"],
        },
    ),
    "sdpa mask": (
        sdpa(),
        x(2, 4, 5, 3, a1=0),
        x(2, 4, 6, 3, a1=10),
        x(2, 4, 6, 7, a1=20),
        x(4, 5, 6, a0=40),
        {
            "out": [{1: "0-3"}],
            "tied": ["0 10 20 40", "1 11 21 41", "2 12 22 42", "3 13 23 43"],
            "layers": ["attention of activations: 10 x 3 x 6 x [0-3]", "attention of activations: 10 x 6 x 7 x [0-3]"],
        },
    ),
    "sdpa mask fixed": (
        sdpa(),
        x(2, 4, 5, 3, a1=0),
        x(2, 4, 6, 3, a1=10),
        x(2, 4, 6, 7, a1=20),
        x(4, 5, 6),
        {
            "out": [{}],
            "tied": ["0 10 20", "1 11 21", "2 12 22", "3 13 23"],
            "frozen": {"0-3": MASK},
            "layers": ["attention of activations: 40 x 3 x 6", "attention of activations: 40 x 6 x 7"],
        },
    ),
    "sdpa mask keys": (
        sdpa(),
        x(2, 4, 5, 3),
        x(2, 4, 6, 3, a2=10),
        x(2, 4, 6, 7, a2=20),
        x(1, 1, 6, a2=40),
        {
            "out": [{}],
            "tied": ["10 20 40", "11 21 41", "12 22 42", "13 23 43", "14 24 44", "15 25 45"],
            "mixed": [([(1, 2), (2, 2), (3, 2)], "10-15", None, None)],
            "layers": ["attention of activations: 40 x 3 x [10-15]", "attention of activations: 40 x [10-15] x 7"],
        },
    ),
    "sdpa mask keys broadcast": (
        sdpa(),
        x(2, 4, 5, 3),
        x(2, 4, 6, 3, a2=10),
        x(2, 4, 6, 7, a2=20),
        x(5, 1),
        {
            "out": [{}],
            "tied": ["10 20", "11 21", "12 22", "13 23", "14 24", "15 25"],
            "mixed": [([(1, 2), (2, 2)], "10-15", None, None)],
            "layers": ["attention of activations: 40 x 3 x [10-15]", "attention of activations: 40 x [10-15] x 7"],
        },
    ),
    "sdpa mask new": (
        sdpa(),
        x(2, 4, 5, 3),
        x(2, 4, 6, 3),
        x(2, 4, 6, 7),
        x(4, 1, 6, a0=40),
        {
            "out": [{}],
            "frozen": {"40-43": MASK},
            "layers": ["attention of activations: 40 x 3 x 6", "attention of activations: 40 x 6 x 7"],
        },
    ),
    "sdpa causal": (
        sdpa(is_causal=True),
        x(2, 4, 6, 3, a2=0),
        x(2, 4, 6, 3, a2=10),
        x(2, 4, 6, 7, a2=20),
        {
            "out": [{}],
            "tied": ["10 20", "11 21", "12 22", "13 23", "14 24", "15 25"],
            "frozen": {"0-5": CAUSAL, "10-15": CAUSAL},
            "layers": ["attention of activations: 48 x 3 x 6", "attention of activations: 48 x 6 x 7"],
        },
    ),
    "sdpa causal heads": (
        sdpa(is_causal=True),
        x(2, 4, 6, 3, a1=0),
        x(2, 4, 6, 3, a1=10),
        x(2, 4, 6, 7, a1=20),
        {
            "out": [{1: "0-3"}],
            "tied": ["0 10 20", "1 11 21", "2 12 22", "3 13 23"],
            "layers": ["attention of activations: 12 x 3 x 6 x [0-3]", "attention of activations: 12 x 6 x 7 x [0-3]"],
        },
    ),
    "sdpa fixed values": (
        sdpa(),
        x(2, 4, 5, 3),
        x(2, 4, 6, 3),
        x(2, 4, 6, 7, a2=20),
        {
            "out": [{}],
            "frozen": {"20-25": "meets a width that is fixed"},
            "layers": ["attention of activations: 40 x 3 x 6", "attention of activations: 40 x 6 x 7"],
        },
    ),
    "sdpa shared keys": (
        lambda q, k, v: inference(F.scaled_dot_product_attention)(q, k, v),
        x(2, 4, 5, 3, a1=0),
        x(2, 1, 6, 3),
        x(2, 1, 6, 7),
        {
            "out": [{1: "0-3"}],
            "layers": ["attention of activations: 10 x 3 x 6 x [0-3]", "attention of activations: 10 x 6 x 7 x [0-3]"],
        },
    ),
    "sdpa fewer heads": (
        lambda q, k, v: ATEN.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        x(2, 4, 5, 3, a1=0),
        x(2, 2, 6, 3, a1=10),
        x(2, 2, 6, 7, a1=20),
        {
            "out": [{1: "0-3"}],
            "tied": ["0 1 10 20", "2 3 11 21"],
            "layers": [
                "matrix product of activations: 5 x 3 x 6 x [0-3 0-3]",
                "matrix product of activations: 5 x 6 x 7 x [0-3 0-3]",
            ],
        },
    ),
    "mul by fourth root": (
        lambda a: ATEN.mul.Scalar(a, 16**-0.25),
        x(2, 3, 5, 16, a3=0),
        {"out": [{3: "0-15"}], "frozen": {"0-15": WIDTH}, "heads": [("", 3)]},
    ),
    "mul by fourth root one head": (
        lambda a: ATEN.mul.Scalar(a, 16**-0.25),
        x(2, 1, 5, 16, a3=0),
        {"out": [{3: "0-15"}], "frozen": {"0-15": WIDTH}},
    ),
    "mul by a number": (lambda a: ATEN.mul.Scalar(a, 0.3), x(2, 3, 5, 16, a3=0), {"out": [{3: "0-15"}]}),
    "mul by fourth root of three axes": (lambda a: ATEN.mul.Scalar(a, 16**-0.25), x(2, 3, 16, a2=0), {"out": [{2: "0-15"}]}),
    "sdpa causal fixed": (
        sdpa(is_causal=True),
        x(2, 4, 6, 3, a2=0),
        x(2, 4, 6, 3),
        x(2, 4, 6, 7),
        {
            "out": [{}],
            "frozen": {"0-5": CAUSAL},
            "layers": ["attention of activations: 48 x 3 x 6", "attention of activations: 48 x 6 x 7"],
        },
    ),
    "sdpa mask positions": (
        sdpa(),
        x(2, 4, 5, 3, a2=0),
        x(2, 4, 6, 3),
        x(2, 4, 6, 7),
        x(5, 6, a0=40),
        {
            "out": [{2: "0-4"}],
            "tied": ["0 40", "1 41", "2 42", "3 43", "4 44"],
            "layers": ["attention of activations: 8 x 3 x 6 x [0-4]", "attention of activations: 8 x 6 x 7 x [0-4]"],
        },
    ),
    "sdpa fewer key heads": (
        lambda q, k, v: inference(lambda *a: ATEN.scaled_dot_product_attention(*a, enable_gqa=True))(q, k, v),
        x(2, 4, 5, 3, a1=0),
        x(2, 2, 6, 3, a1=10),
        x(2, 2, 6, 7, a1=20),
        {
            "out": [{}],
            "frozen": {"0-3": HEADS, "10 11": HEADS, "20 21": HEADS},
            "layers": ["attention of activations: 40 x 3 x 6", "attention of activations: 40 x 6 x 7"],
        },
    ),
    "sdpa of other ranks": (
        sdpa(),
        x(2, 4, 5, 3, a1=0),
        x(4, 6, 3, a0=10),
        x(2, 4, 6, 7),
        {"out": [{}], "frozen": {"0-3": RANKS, "10-13": RANKS}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_rule_says(name: str) -> None:
    program, *given, expected = CASES[name]
    assert seen(program, *given) == expected
