"""Ranking, scattering, distances, random draws, decompositions, spectral norms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.flop_counter import register_flop_formula

from difficulties.network import OUTPUT, G, Net, Program, conv


def _macs_of_vector_product(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """Twice the multiply-adds: torch's counter has no formula for products with a vector."""
    return 2 * math.prod(a)


register_flop_formula([torch.ops.aten.mv, torch.ops.aten.dot, torch.ops.aten.vdot])(_macs_of_vector_product)  # type: ignore[no-untyped-call]


def _chain(move: Any, width: int = 6, read: int = 6) -> Any:
    return lambda: Program(lambda m, x: m.head(move(m.stem(x))), stem=conv(3, width), head=conv(read, 2))


def _scattered_pixels(y: Tensor) -> Tensor:
    """Sorting and putting back: the same entries in other places of each channel."""
    flat = y.flatten(2)
    order = flat.argsort(2)
    return torch.zeros_like(flat).scatter(2, order, flat.sigmoid()).unflatten(2, y.shape[2:])


def _codebook(m: Any, x: Tensor) -> Tensor:
    """Distances to learned points."""
    y = m.stem(x).flatten(2).transpose(1, 2)
    return m.head(torch.cdist(y, m.points.unsqueeze(0))) + m.direct(y)


def _one_hot(y: Tensor) -> Tensor:
    return torch.zeros_like(y).scatter(1, y.argmax(1, keepdim=True), 1.0)


def _drawn(y: Tensor) -> Tensor:
    chosen = y.mean((2, 3)).softmax(1).multinomial(1)[:, 0]
    return y[torch.arange(len(y)), chosen].unsqueeze(1)


def _moved_in_place(y: Tensor) -> Tensor:
    return y.clone().transpose_(1, 3).unsqueeze_(0).squeeze_(0).transpose_(1, 3)


def _loss(m: Any, x: Tensor) -> Tensor:
    return F.cross_entropy(m.head(F.relu(m.stem(x))).mean((2, 3)), torch.tensor([0, 1]))


def _normed(norm: Any) -> Any:
    return lambda: nn.Sequential(conv(3, 6), nn.ReLU(), norm(conv(6, 4)), nn.ReLU(), conv(4, 2))


STEM = G(6, "stem.weight/0 stem.bias/0", "head.weight/1")
HEAD = G(2, "head.weight/0 head.bias/0", frozen=OUTPUT)
PLAIN = {"stem": STEM, "head": HEAD}
MIXING = {"stem": G(6, "stem.weight/0 stem.bias/0", "head.weight/1", mixing=True), "head": HEAD}


def _frozen(why: str, reads: str = "", mixing: bool = False) -> dict[str, G]:
    return {"stem": G(6, "stem.weight/0 stem.bias/0", reads, frozen=why, mixing=mixing), "head": HEAD}


def _refusing(name: str, move: Any, why: str, reads: str = "", mixing: bool = False, read: int = 6) -> Net:
    return Net(name, _chain(move, 6, read), _frozen(why, reads, mixing), outcome="frozen")


def _spectral(weight: str, u: str, v: str) -> dict[str, G]:
    """A weight divided by its largest singular value, which is found by products with two vectors, along both of its axes."""
    return {
        "0": G(6, "0.weight/0 0.bias/0", f"2.{weight}/1 2.{v}/0", mixing=True),
        "2": G(4, f"2.{weight}/0 2.bias/0", f"2.{weight}/0 2.{u}/0 4.weight/1", mixing=True),
        "4": G(2, "4.weight/0 4.bias/0", frozen=OUTPUT),
    }


NETS = [
    Net("largest two channels", _chain(lambda y: y * y.topk(2, 1)[0].mean(1, keepdim=True)), MIXING),
    Net("largest pixels", _chain(lambda y: y.flatten(2).topk(16, 2)[0].unflatten(2, (4, 4))), PLAIN),
    Net("sorted pixels", _chain(lambda y: y.sort(-1)[0]), PLAIN),
    _refusing("sorted channels", lambda y: y.sort(1)[0], "sorted: places in the order aren't channels, in `aten.sort"),
    _refusing(
        "quantile over channels",
        lambda y: y * y.quantile(0.5, 1, keepdim=True),
        "sorted: places in the order aren't channels, in `aten.sort",
        "head.weight/1",
        mixing=True,
    ),
    Net("running maximum over channels", _chain(lambda y: y.cummax(1)[0]), MIXING),
    Net("running minimum over pixels", _chain(lambda y: y.cummin(2)[0]), PLAIN),
    Net("smallest channel but one", _chain(lambda y: y * y.kthvalue(2, 1, keepdim=True)[0]), MIXING),
    Net("smallest and largest channel", _chain(lambda y: y * sum(torch.aminmax(y, dim=1, keepdim=True))), MIXING),
    Net(
        "distances to a codebook",
        lambda: Program(
            _codebook, stem=conv(3, 6), points=nn.Parameter(torch.randn(4, 6)), head=nn.Linear(4, 2), direct=nn.Linear(6, 2)
        ),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0", "direct.weight/1", mixing=True, scales="points/1"),
            "head": G(2, "head.weight/0 head.bias/0 direct.weight/0", frozen=OUTPUT, scales="direct.bias/0"),
        },
    ),
    Net("channels renormalised one by one", _chain(lambda y: y.renorm(2, 1, 1.0)), PLAIN),
    Net("images renormalised", _chain(lambda y: y.renorm(2, 0, 1.0)), MIXING),
    Net("scattered pixels", _chain(_scattered_pixels), PLAIN),
    Net("images added by index", _chain(lambda y: y.index_add(0, torch.tensor([1, 0]), y.relu())), PLAIN),
    _refusing("one-hot channels", _one_hot, "the number of a channel is used in `aten.scatter.value`", mixing=True),
    _refusing(
        "channels filled by index",
        lambda y: y.index_fill(1, torch.tensor([1, 2]), 0.0),
        "channels are written at absolute indices in `aten.index_fill",
    ),
    _refusing(
        "values above zero",
        lambda y: y * y.masked_select(y > 0).mean(),
        "the size of the result depends on values, not on channels, in `aten.masked_select",
        "head.weight/1",
    ),
    _refusing(
        "number of different values",
        lambda y: y * len(y.sign().unique()),
        "the size of the result depends on values, not on channels, in `aten._unique2",
        "head.weight/1",
    ),
    _refusing(
        "random choice of a channel", _drawn, "random numbers are drawn by channel in `aten.multinomial", mixing=True, read=1
    ),
    _refusing(
        "singular values",
        lambda y: y * torch.linalg.svdvals(y.flatten(2)).mean(),
        "a matrix is decomposed or inverted, which makes all its entries depend on one another, in `aten._linalg_svd",
        "head.weight/1",
    ),
    Net("shapes changed in place", _chain(_moved_in_place), PLAIN),
    Net(
        "spectral norm",
        _normed(parametrizations.spectral_norm),
        _spectral("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v"),
    ),
    Net("spectral norm, old style", _normed(spectral_norm), _spectral("weight_orig", "weight_u", "weight_v")),
    Net(
        "loss inside the network",
        lambda: Program(_loss, stem=conv(3, 6), head=conv(6, 2)),
        {
            "stem": STEM,
            "head": G(2, "head.weight/0 head.bias/0", frozen="a loss compares the channels with targets", mixing=True),
        },
    ),
]
