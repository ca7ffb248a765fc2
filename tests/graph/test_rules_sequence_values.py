"""Recurrent layers, packed sequences, bags of embeddings, bilinear products: what is read, written and frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from labels_seen import seen, w, x

ATEN = torch.ops.aten
HIDDEN = "a recurrent layer's gates and hidden state have one width, which Python holds,"
READ = "read by a weight whose width is fixed"
NO_WEIGHT = "a product of three tensors of which not just one is a weight"


def lstm(a: Tensor, *weights: Tensor) -> Any:
    state = torch.zeros(1, 2, 4)
    return ATEN.mkldnn_rnn_layer(a, *weights, state, state, False, [], 2, 4, 1, True, False, False, False)


def idx(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


CASES: dict[str, tuple[Any, ...]] = {
    "lstm": (
        lstm,
        x(5, 2, 3, a2=0),
        w(16, 3, a0=100, a1=200),
        w(16, 4, a0=300, a1=400),
        w(16, a0=500),
        w(16, a0=600),
        {
            "out": [{}, {}, {}],
            "tied": ["0 200", "1 201", "2 202"],
            "frozen": {"100-115": HIDDEN, "300-315": HIDDEN, "400-403": HIDDEN, "500-515": HIDDEN, "600-615": HIDDEN},
            "fixed": {2: HIDDEN},
            "roles": ["reads 200-202", "writes 100-115"],
            "reading": [(1, 1)],
            "layers": ["recurrent layer: 10 x [200-202] x 16", "recurrent layer: 10 x 4 x 16"],
        },
    ),
    "lstm of an image": (
        lstm,
        x(5, 2, 3, a1=0),
        w(16, 3, a0=100, a1=200),
        w(16, 4, a0=300, a1=400),
        w(16, a0=500),
        w(16, a0=600),
        {
            "out": [{}, {}, {}],
            "frozen": {
                "0 1": "channels lie on the time or batch axis of a recurrent layer",
                "200-202": READ,
                "100-115": HIDDEN,
                "300-315": HIDDEN,
                "400-403": HIDDEN,
                "500-515": HIDDEN,
                "600-615": HIDDEN,
            },
            "fixed": {2: HIDDEN},
            "roles": ["reads 200-202", "writes 100-115"],
            "reading": [(1, 1)],
            "layers": ["recurrent layer: 10 x [200-202] x 16", "recurrent layer: 10 x 4 x 16"],
        },
    ),
    "lstm fixed weight": (
        lstm,
        x(5, 2, 3, a2=0),
        w(16, 3),
        w(16, 4),
        w(16),
        w(16),
        {
            "out": [{}, {}, {}],
            "frozen": {"0-2": READ},
            "fixed": {2: HIDDEN},
            "reading": [(1, 1)],
            "layers": ["recurrent layer: 10 x 3 x 16", "recurrent layer: 10 x 4 x 16"],
        },
    ),
    "pack": (lambda a: ATEN._pack_padded_sequence(a, idx(4, 3), False), x(4, 2, 3, a2=0), {"out": [{1: "0-2"}, {}]}),
    "pack time": (
        lambda a: ATEN._pack_padded_sequence(a, idx(4, 3), False),
        x(4, 2, 3, a0=0),
        {"out": [{}, {}], "frozen": {"0-3": "channels lie on the time or batch axis of a packed sequence"}},
    ),
    "bag": (
        lambda a: F.embedding_bag(idx(0, 1, 2), a, idx(0, 2)),
        w(5, 3, a0=50, a1=0),
        {"out": [{1: "0-2"}], "roles": ["writes 0-2"]},
    ),
    "bag weights": (
        lambda a, b: F.embedding_bag(idx(0, 1, 2), a, idx(0, 2), mode="sum", per_sample_weights=b),
        w(5, 3, a1=0),
        x(3, a0=50),
        {
            "out": [{1: "0-2"}],
            "frozen": {"50-52": "its values choose or weigh the rows of an embedding"},
            "roles": ["writes 0-2"],
        },
    ),
    "bilinear": (
        torch.nn.functional.bilinear,
        x(2, 3, a1=0),
        x(2, 4, a1=10),
        w(5, 3, 4, a0=100, a1=110, a2=120),
        w(5, a0=300),
        {
            "out": [{1: "100-104"}],
            "tied": [
                "0 110",
                "1 111",
                "2 112",
                "10 120",
                "11 121",
                "12 122",
                "13 123",
                "100 300",
                "101 301",
                "102 302",
                "103 303",
                "104 304",
            ],
            "roles": ["writes 100-104", "reads 110-112", "reads 120-123"],
            "reading": [(1, 1), (1, 2)],
            "layers": ["bilinear product: 8 x [110-112] x [100-104]"],
        },
    ),
    "bilinear fixed": (
        torch.nn.functional.bilinear,
        x(2, 3, a1=0),
        x(2, 4, a1=10),
        w(5, 3, 4, a0=100),
        {
            "out": [{1: "100-104"}],
            "frozen": {"0-2": READ, "10-13": READ},
            "roles": ["writes 100-104"],
            "layers": ["bilinear product: 8 x 3 x [100-104]"],
        },
    ),
    "bilinear no weight": (
        torch.nn.functional.bilinear,
        x(2, 3, a1=0),
        x(2, 4, a1=10),
        x(5, 3, 4, a0=100),
        {"out": [{}], "frozen": {"0-2": NO_WEIGHT, "100-104": NO_WEIGHT, "10-13": NO_WEIGHT}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_rule_says(name: str) -> None:
    program, *given, expected = CASES[name]
    assert seen(program, *given) == expected
