"""Attention that arrives as one operation: heads, head width, positions; what its default scale depends on is frozen."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from difficulties.network import OUTPUT, G, Net, Program, conv


def _macs_of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Twice the multiply-adds of both products: torch's counter has no formula for the processor's kernel."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)(_macs_of_attention)  # type: ignore[no-untyped-call]


def _attention(heads: bool, **options: Any) -> Any:
    """Attention over pixels: (n, c, h, w) -> (n, heads, h * w, width), in heads of width 4 or in a single one."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        parts = (p(x).flatten(2).unflatten(1, (-1, 4) if heads else (1, -1)) for p in (m.query, m.key, m.value))
        query, key, value = (p.transpose(2, 3) for p in parts)
        y = F.scaled_dot_product_attention(query, key, value, **options)
        return m.head(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))

    return run


def _over_channels(**options: Any) -> Any:
    """Channels are the positions, pixels the width."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        query, key, value = (p(x).flatten(2).unsqueeze(1) for p in (m.query, m.key, m.value))
        y = F.scaled_dot_product_attention(query, key, value, **options)
        return m.head(y.squeeze(1).unflatten(2, x.shape[2:]))

    return run


def _with_learned_mask(m: Any, x: Tensor) -> Tensor:
    """A bias for each head, added to the weights of every image."""
    x = m.stem(x)
    parts = (p(x).flatten(2).unflatten(1, (-1, 4)).transpose(2, 3) for p in (m.query, m.key, m.value))
    y = F.scaled_dot_product_attention(*parts, attn_mask=m.bias.unsqueeze(0))
    return m.head(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


def _relative_bias(m: Any, x: Tensor) -> Tensor:
    """A table of biases, one for each head and distance of positions."""
    x = m.stem(x)
    parts = (p(x).flatten(2).unflatten(1, (-1, 4)).transpose(2, 3) for p in (m.query, m.key, m.value))
    distance = (torch.arange(64)[:, None] - torch.arange(64)).abs() // 8
    y = F.scaled_dot_product_attention(*parts, attn_mask=m.table[distance].permute(2, 0, 1).unsqueeze(0))
    return m.head(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


def _shared_keys(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    parts = (p(x).flatten(2).unflatten(1, (-1, 4)).transpose(2, 3) for p in (m.query, m.key, m.value))
    y = F.scaled_dot_product_attention(*parts, enable_gqa=True)
    return m.head(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


def _one_head_of_keys(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    parts = (p(x).flatten(2).unflatten(1, (-1, 4)).transpose(2, 3).contiguous() for p in (m.query, m.key, m.value))
    y = F.scaled_dot_product_attention(*parts, enable_gqa=True)
    return m.head(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


def _projections(run: Any, query: int = 8, key: int = 8, value: int = 8, **more: Any) -> Any:
    return lambda: Program(
        run, stem=conv(3, 6), query=conv(6, query, 1), key=conv(6, key, 1), value=conv(6, value, 1), head=conv(query, 2), **more
    )


STEM = G(6, "stem.weight/0 stem.bias/0", "query.weight/1 key.weight/1 value.weight/1")
HEAD = G(2, "head.weight/0 head.bias/0", frozen=OUTPUT)
Q, K, V = (f"{name}.weight/0 {name}.bias/0" for name in ("query", "key", "value"))
HEADS = {"stem": STEM, "query": G(2, f"{Q} {K} {V}", "head.weight/1", scales=""), "head": HEAD}
ROOT = "attention divides by the square root of the queries' width, so that removing from it changes every weight"
CAUSAL = "channels lie on the positions of causal attention in `aten._scaled_dot_product_flash_attention_for_cpu"

NETS = [
    # the default scale holds the width of the heads, so that whole heads are what goes
    Net("heads of attention", _projections(_attention(True)), HEADS),
    Net("heads of causal attention", _projections(_attention(True, is_causal=True)), HEADS),
    Net(
        "attention with a mask for each head",
        lambda: _projections(_with_learned_mask, bias=nn.Parameter(torch.randn(2, 64, 64)))(),
        {**HEADS, "query": G(2, f"{Q} {K} {V}", "head.weight/1", scales="bias/0")},
    ),
    Net(
        "attention with a table of relative positions",
        lambda: _projections(_relative_bias, 12, 12, 12, table=nn.Parameter(torch.randn(8, 3)))(),
        {**HEADS, "query": G(3, f"{Q} {K} {V}", "head.weight/1", scales="table/1")},
    ),
    Net(  # all heads of queries share one of keys and values
        "one head of keys",
        _projections(_one_head_of_keys, 12, 4, 4),
        {
            "stem": STEM,
            "query": G(3, Q, "head.weight/1"),
            "key": G(4, K, frozen="meets a width that is fixed in `aten._scaled_dot_product"),
            "value": G(4, V, frozen="the width of values whose heads go as a whole in `aten._scaled_dot_product"),
            "head": HEAD,
        },
    ),
    Net(  # queries and keys meet in a sum over their width; values don't
        "head width with a given scale",
        _projections(_attention(False, scale=0.5)),
        {"stem": STEM, "query": G(8, f"{Q} {K}", mixing=True), "value": G(8, V, "head.weight/1"), "head": HEAD},
    ),
    Net(
        "width of values next to a fixed width of queries",
        _projections(_attention(False)),
        {"stem": STEM, "query": G(8, f"{Q} {K}", mixing=True, frozen=ROOT), "value": G(8, V, "head.weight/1"), "head": HEAD},
    ),
    Net(  # the queries' positions are those of the result; over the keys' positions it sums
        "attention over channels",
        _projections(_over_channels()),
        {"stem": STEM, "query": G(8, Q, "head.weight/1"), "key": G(8, f"{K} {V}", mixing=True), "head": HEAD},
    ),
    Net(
        "causal attention over channels",
        _projections(_over_channels(is_causal=True)),
        {"stem": STEM, "query": G(8, Q, frozen=CAUSAL), "key": G(8, f"{K} {V}", frozen=CAUSAL), "head": HEAD},
    ),
    Net(  # two heads of queries for each head of keys
        "queries share keys",
        _projections(_shared_keys, 8, 4, 4),
        {
            "stem": STEM,
            "query": G(2, Q, frozen="two channel axes merge into one"),
            "key": G(4, K, frozen="read by a weight whose width is fixed"),
            "value": G(4, V, frozen="two channel axes merge into one"),
            "head": HEAD,
        },
    ),
]
