"""Ways of calling and programming a network: inputs, outputs, control flow."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difficulties.network import OUTPUT, G, Net, Program, conv, image

STEM = G(6, "stem.weight/0 stem.bias/0", "head.weight/1")
MIXING_STEM = G(6, "stem.weight/0 stem.bias/0", "head.weight/1", mixing=True)
HEAD = G(2, "head.weight/0 head.bias/0", frozen=OUTPUT)


@dataclass
class Detection:
    """An output that is a dataclass."""

    boxes: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Slotted:
    """An output without a `__dict__`."""

    __slots__ = ("boxes",)
    boxes: Tensor


class Pair(NamedTuple):
    """An output that is a named tuple."""

    first: Tensor
    second: list[Tensor]


def _two_heads(wrap: Any) -> Any:
    def build() -> nn.Module:
        return Program(
            lambda m, x: wrap(m.boxes(y := F.relu(m.stem(x))), m.scores(y)), stem=conv(3, 6), boxes=conv(6, 4), scores=conv(6, 2)
        )

    return build


_TWO_HEADS = {
    "stem": G(6, "stem.weight/0 stem.bias/0", "boxes.weight/1 scores.weight/1"),
    "boxes": G(4, "boxes.weight/0 boxes.bias/0", frozen=OUTPUT),
    "scores": G(2, "scores.weight/0 scores.bias/0", frozen=OUTPUT),
}


def _branch_on_values(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    return m.head(F.relu(y) if y.sum() > -1e9 else y)


def _item(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    return m.head(y / (1 + y.abs().mean((0, 2, 3)).max().item() * 0 + y.shape[0]))


def _keyword(m: Any, *, left: Tensor, right: Tensor) -> Tensor:
    return m.head(F.relu(m.stem(left) + m.other(right)))


def _in_place_input(m: Any, x: Tensor) -> Tensor:
    x.sub_(0.5).mul_(2)
    return m.head(m.stem(x).relu_())


_TWO_STEMS = {"stem": G(6, "stem.weight/0 stem.bias/0 other.weight/0 other.bias/0", "head.weight/1"), "head": HEAD}


def _two_stems(run: Any) -> Any:
    return lambda: Program(run, stem=conv(3, 6), other=conv(1, 6), head=conv(6, 2))


NETS = [
    Net(
        "branch on values",
        lambda: Program(_branch_on_values, stem=conv(3, 6), head=conv(6, 2)),
        {"stem": MIXING_STEM, "head": HEAD},
    ),
    Net(
        "item",
        lambda: Program(_item, stem=conv(3, 6), head=conv(6, 2)),
        {"stem": MIXING_STEM, "head": HEAD},
    ),
    Net("dict input", _two_stems(_keyword), _TWO_STEMS, lambda: {"left": image(2, 3, 8, 8), "right": image(2, 1, 8, 8)}),
    Net(
        "tuple input",
        _two_stems(lambda m, left, right: _keyword(m, left=left, right=right)),
        _TWO_STEMS,
        lambda: (image(2, 3, 8, 8), image(2, 1, 8, 8)),
    ),
    Net("tuple output", _two_heads(lambda a, b: (a, [b])), _TWO_HEADS),
    Net("dict output", _two_heads(lambda a, b: {"boxes": a, "more": {"scores": b}}), _TWO_HEADS),
    Net("dataclass output", _two_heads(Detection), _TWO_HEADS),
    Net("named tuple output", _two_heads(lambda a, b: Pair(a, [b])), _TWO_HEADS),
    Net("namespace output", _two_heads(lambda a, b: SimpleNamespace(boxes=a, scores=b)), _TWO_HEADS),
    Net(
        "slotted output",
        lambda: Program(lambda m, x: Slotted(m.head(F.relu(m.stem(x)))), stem=conv(3, 6), head=conv(6, 2)),
        {"stem": STEM, "head": HEAD},
    ),
    Net(
        "in-place on the input", lambda: Program(_in_place_input, stem=conv(3, 6), head=conv(6, 2)), {"stem": STEM, "head": HEAD}
    ),
    Net(
        "token mixing by linear",
        lambda: Program(
            lambda m, x: m.head(F.relu(m.stem(x.flatten(2).transpose(1, 2)))), stem=nn.Linear(3, 6), head=nn.Linear(6, 2)
        ),
        {"stem": G(6, "stem.weight/0", "head.weight/1", scales="stem.bias/0"), "head": HEAD},
    ),
    Net(
        "dropout of channels",
        lambda: Program(lambda m, x: m.head(m.drop(m.stem(x))), stem=conv(3, 6), drop=nn.Dropout2d(0.5), head=conv(6, 2)),
        {"stem": STEM, "head": HEAD},
    ),
    Net(
        "embedding",
        lambda: Program(lambda m, x: m.head(F.relu(m.stem(x))), stem=nn.Embedding(10, 6), head=nn.Linear(6, 2)),
        {"stem": G(6, "stem.weight/1", "head.weight/1"), "head": HEAD},
        lambda: torch.tensor([[1, 2, 3], [4, 5, 6]]),
    ),
]
