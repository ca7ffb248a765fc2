"""Linear layers, matrix products and embeddings: what is read, written, mixed and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from labels_seen import seen, w, x

FIXED = "meets a width that is fixed"
READ = "read by a weight whose width is fixed"


def inference(f: Callable[..., Any]) -> Callable[..., Any]:
    """In inference mode, composite operations arrive whole."""

    def run(*tensors: Tensor) -> Any:
        with torch.inference_mode():
            return f(*tensors)

    return run


def idx(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


CASES: dict[str, tuple[Any, ...]] = {
    "linear": (
        F.linear,
        x(2, 3, a1=0),
        w(4, 3, a0=100, a1=200),
        w(4, a0=300),
        {
            "out": [{1: "100-103"}],
            "tied": ["0 200", "1 201", "2 202", "100 300", "101 301", "102 302", "103 303"],
            "roles": ["reads 200-202", "writes 100-103", "writes 300-303"],
            "reading": [(2, 0)],
            "layers": ["matrix product: 2 x [200-202] x [100-103]"],
        },
    ),
    "linear three axes": (
        F.linear,
        x(2, 5, 3, a1=50, a2=0),
        w(4, 3, a0=100, a1=200),
        {
            "out": [{1: "50-54", 2: "100-103"}],
            "tied": ["0 200", "1 201", "2 202"],
            "roles": ["reads 200-202", "writes 100-103"],
            "reading": [(1, 0)],
            "layers": ["matrix product: 1 x [200-202] x [100-103] x [50-54 50-54]"],
        },
    ),
    "linear whole": (
        lambda a, b, c: inference(F.linear)(a, b, c),
        x(2, 5, 3, a2=0),
        w(4, 3, a0=100, a1=200),
        w(4, a0=300),
        {
            "out": [{2: "100-103"}],
            "tied": ["0 200", "1 201", "2 202", "100 300", "101 301", "102 302", "103 303"],
            "roles": ["reads 200-202", "writes 100-103", "writes 300-303"],
            "reading": [(1, 1)],
            "layers": ["matrix product: 10 x [200-202] x [100-103]"],
        },
    ),
    "linear of an image": (
        F.linear,
        x(2, 3),
        w(4, 3, a0=100, a1=200),
        {
            "out": [{1: "100-103"}],
            "frozen": {"200-202": "its weight also reads an input whose width is fixed"},
            "roles": ["reads 200-202", "writes 100-103"],
            "reading": [(1, 0)],
            "layers": ["matrix product: 2 x [200-202] x [100-103]"],
        },
    ),
    "linear one output, bias": (
        F.linear,
        x(2, 3, a1=0),
        w(1, 3, a1=200),
        w(1),
        {
            "out": [{}],
            "tied": ["0 200", "1 201", "2 202"],
            "roles": ["reads 200-202"],
            "reading": [(2, 0)],
            "layers": ["matrix product: 2 x [200-202] x 1"],
        },
    ),
    "mm weight on the left": (
        torch.mm,
        w(4, 3, a0=100, a1=200),
        x(3, 5, a0=0, a1=50),
        {
            "out": [{0: "100-103", 1: "50-54"}],
            "tied": ["0 200", "1 201", "2 202"],
            "roles": ["reads 200-202", "writes 100-103"],
            "reading": [(0, 1)],
            "layers": ["matrix product: 1 x [0-2] x [50-54] x [100-103]"],
        },
    ),
    "mm activations": (
        torch.mm,
        x(4, 3, a0=100, a1=200),
        x(3, 5, a0=0, a1=50),
        {
            "out": [{0: "100-103", 1: "50-54"}],
            "tied": ["0 200", "1 201", "2 202"],
            "mixed": [([(0, 1), (1, 0)], "200-202", None, None)],
            "layers": ["matrix product of activations: 1 x [0-2] x [50-54] x [100-103]"],
        },
    ),
    "bmm activations": (
        torch.bmm,
        x(2, 4, 3, a1=100, a2=200),
        x(2, 3, 5, a1=0, a2=50),
        {
            "out": [{1: "100-103", 2: "50-54"}],
            "tied": ["0 200", "1 201", "2 202"],
            "mixed": [([(0, 2), (1, 1)], "200-202", None, None)],
            "layers": ["matrix product of activations: 2 x [0-2] x [50-54] x [100-103]"],
        },
    ),
    "bmm batch": (
        torch.bmm,
        x(2, 4, 3, a0=10, a1=100),
        x(2, 3, 5, a0=20, a2=50),
        {
            "out": [{0: "10 11", 1: "100-103", 2: "50-54"}],
            "tied": ["10 20", "11 21"],
            "layers": ["matrix product of activations: 1 x 3 x [50-54] x [10 11] x [100-103]"],
        },
    ),
    "bmm batch one side": (
        torch.bmm,
        x(2, 4, 3, a1=100),
        x(2, 3, 5, a0=20, a2=50),
        {
            "out": [{1: "100-103", 2: "50-54"}],
            "frozen": {"20 21": FIXED},
            "layers": ["matrix product of activations: 2 x 3 x [50-54] x [100-103]"],
        },
    ),
    "mv": (
        torch.mv,
        w(4, 3, a0=100, a1=200),
        x(3, a0=0),
        {
            "out": [{0: "100-103"}],
            "tied": ["0 200", "1 201", "2 202"],
            "roles": ["reads 200-202", "writes 100-103"],
            "reading": [(0, 1)],
            "layers": ["matrix product: 1 x [0-2] x 1 x [100-103]"],
        },
    ),
    "dot": (
        torch.dot,
        x(3, a0=0),
        w(3, a0=200),
        {
            "out": [{}],
            "tied": ["0 200", "1 201", "2 202"],
            "roles": ["reads 200-202"],
            "reading": [(1, 0)],
            "layers": ["matrix product: 1 x [200-202] x 1"],
        },
    ),
    "addmv": (
        lambda a, b, c: torch.addmv(c, a, b),
        w(4, 3, a0=100, a1=200),
        x(3, a0=0),
        w(4, a0=300),
        {
            "out": [{0: "100-103"}],
            "tied": ["0 200", "1 201", "2 202", "100 300", "101 301", "102 302", "103 303"],
            "roles": ["reads 200-202", "writes 100-103", "writes 300-303"],
            "reading": [(1, 1)],
            "layers": ["matrix product: 1 x [0-2] x 1 x [100-103]"],
        },
    ),
    "baddbmm": (
        lambda a, b, c: torch.baddbmm(c, a, b),
        x(2, 4, 3, a2=0),
        x(2, 3, 5, a1=200, a2=50),
        x(2, 4, 5, a2=300),
        {
            "out": [{2: "50-54"}],
            "tied": ["0 200", "1 201", "2 202", "50 300", "51 301", "52 302", "53 303", "54 304"],
            "roles": ["writes 300-304"],
            "mixed": [([(1, 2), (2, 1)], "0-2", None, None)],
            "layers": ["matrix product of activations: 8 x [200-202] x [50-54]"],
        },
    ),
    "mm fixed": (
        torch.mm,
        x(4, 3, a1=0),
        w(3, 5, a1=50),
        {
            "out": [{1: "50-54"}],
            "frozen": {"0-2": READ},
            "roles": ["writes 50-54"],
            "reading": [(1, 0)],
            "layers": ["matrix product: 4 x [0-2] x [50-54]"],
        },
    ),
    "mm inner fixed activation": (
        torch.mm,
        x(4, 3, a1=0),
        x(3, 5, a1=50),
        {"out": [{1: "50-54"}], "frozen": {"0-2": READ}, "layers": ["matrix product of activations: 4 x [0-2] x [50-54]"]},
    ),
    "addmm scalar bias": (
        lambda a, b, c: torch.addmm(c, a, b),
        x(4, 3, a1=0),
        w(3, 5, a0=200, a1=50),
        w(1),
        {
            "out": [{1: "50-54"}],
            "tied": ["0 200", "1 201", "2 202"],
            "roles": ["reads 200-202", "writes 50-54"],
            "reading": [(2, 0)],
            "layers": ["matrix product: 4 x [200-202] x [50-54]"],
        },
    ),
    "addmm bias without labels": (
        lambda a, b, c: torch.addmm(c, a, b),
        x(4, 3, a1=0),
        w(3, 5, a0=200, a1=50),
        w(5),
        {
            "out": [{}],
            "tied": ["0 200", "1 201", "2 202"],
            "frozen": {"50-54": FIXED},
            "roles": ["reads 200-202", "writes 50-54"],
            "reading": [(2, 0)],
            "layers": ["matrix product: 4 x [200-202] x [50-54]"],
        },
    ),
    "embedding": (
        lambda a: F.embedding(idx(0, 2), a),
        w(5, 3, a0=0, a1=100),
        {"out": [{1: "100-102"}], "roles": ["writes 100-102"]},
    ),
    "embedding fixed": (lambda a: F.embedding(idx(0, 2), a), w(5, 3), {"out": [{}]}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_rule_says(name: str) -> None:
    program, *given, expected = CASES[name]
    assert seen(program, *given) == expected
