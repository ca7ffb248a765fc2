"""Widths that Python holds in attributes: found while tracing, set to what is left by removal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difficulties.network import OUTPUT, G, Net, Program, conv, image

HEAD = G(2, "head.weight/0 head.bias/0", frozen=OUTPUT)


def _res2(m: Any, x: Tensor) -> Tensor:
    a, b, c = torch.split(F.relu(m.stem(x)), m.width, 1)
    b = F.relu(m.second(b))
    return m.head(torch.cat([a, b, F.relu(m.third(b + c))], 1))


def _with_a_rest(m: Any, x: Tensor) -> Tensor:
    a, b, rest = torch.split(F.relu(m.stem(x)), m.width, 1)
    return m.head(torch.cat([m.second(a), m.third(b), rest], 1))


def _named_later(m: Any, x: Tensor) -> Tensor:
    width = m.width  # the statement that splits doesn't name the attribute, the function does
    a, b = torch.split(F.relu(m.stem(x)), [width, m.rest], 1)
    return m.head(torch.cat([m.second(a), b], 1))


def _listed(m: Any, x: Tensor) -> Tensor:
    parts = torch.split(F.relu(m.stem(x)), m.splits, 1)
    return m.head(torch.cat([f(p) for f, p in zip((m.first, m.second, m.third), parts, strict=True)], 1))


def _partial(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.stem(x))
    return m.head(torch.cat([m.part(y[:, : m.touched]), y[:, m.touched :]], 1))


def _partial_in_place(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.stem(x))
    y = y.clone()
    y[:, : m.touched, :, :] = m.part(y[:, : m.touched, :, :])
    return m.head(y)


def _from_the_end(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.stem(x))
    return m.head(m.part(y[:, -m.touched :]))


def _head_width(m: Any, x: Tensor) -> Tensor:
    n = x.shape[0]
    q, k, v = (f(x).view(n, m.heads, m.width, -1) for f in (m.q, m.k, m.v))
    attention = (q.transpose(2, 3) @ k * 0.5).softmax(-1)
    return m.head((v @ attention).reshape(n, m.heads * m.width, *x.shape[2:]))


def _product(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.stem(x)).view(x.shape[0], m.heads * m.width, -1)
    return m.head(y.view(x.shape[0], m.heads, m.width, -1).sum(1))


class _OwnNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.normalized_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias)


class _OwnDepthwise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, 1, 3, 3))
        self.channels = width

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1, groups=self.channels)


class _LikeItsInput(nn.Module):
    """Reads a number from the shape of its input, and uses it for a tensor of another width that is as large by construction."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = F.relu(self.inner(x)).permute(0, 2, 3, 1).reshape(b, h * w, c)
        return self.outer(y.transpose(1, 2).reshape(b, c, h, w))


class _Update(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.width, self.body = width, conv(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x))


def _held_by_a_part(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.stem(x))
    state, context = torch.split(y, [m.update.width, y.shape[1] - m.update.width], 1)
    return m.head(torch.cat([m.update(state), context], 1))


class _Permuted(nn.Module):
    """Channels in the order that a buffer gives; `twice` uses the same buffer for two tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(width))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.order]


def _permuted_residual(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.stem(x))
    return m.head(F.relu(m.permute(y)) + m.second(y))


def _picked(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.index_select(F.relu(m.stem(x)), 1, m.permute.order[:4].clone()))


def _expanded(m: Any, x: Tensor) -> Tensor:
    return m.head(F.relu(m.stem(x)) * m.scale.expand(-1, m.width, -1, -1))


NETS = [
    Net(
        "held width of a hierarchical split",
        lambda: Program(_res2, stem=conv(3, 12), second=conv(4, 4), third=conv(4, 4), head=conv(12, 2), width=4),
        {
            # the parts share one attribute, so they lose the same slots; b + c ties the second part's writer to the third part
            "stem": G(
                4, "stem.weight/0 stem.bias/0 second.weight/0 second.bias/0", "second.weight/1 third.weight/1 head.weight/1"
            ),
            "third": G(4, "third.weight/0 third.bias/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "held width with a rest",
        lambda: Program(_with_a_rest, stem=conv(3, 10), second=conv(4, 4), third=conv(4, 4), head=conv(10, 2), width=4),
        {
            "stem": G(4, "stem.weight/0 stem.bias/0", "second.weight/1 third.weight/1"),
            "stem#2": G(2, "stem.weight/0 stem.bias/0", "head.weight/1"),
            "second": G(4, "second.weight/0 second.bias/0", "head.weight/1"),
            "third": G(4, "third.weight/0 third.bias/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "held width named earlier",
        lambda: Program(_named_later, stem=conv(3, 8), second=conv(3, 4), head=conv(9, 2), width=3, rest=5),
        {
            "stem": G(3, "stem.weight/0 stem.bias/0", "second.weight/1"),
            "stem#2": G(5, "stem.weight/0 stem.bias/0", "head.weight/1"),
            "second": G(4, "second.weight/0 second.bias/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "held list of widths",
        lambda: Program(
            _listed, stem=conv(3, 12), first=conv(6, 4), second=conv(3, 4), third=conv(3, 4), head=conv(12, 2), splits=[6, 3, 3]
        ),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0", "first.weight/1"),
            "stem#2": G(3, "stem.weight/0 stem.bias/0", "second.weight/1"),
            "stem#3": G(3, "stem.weight/0 stem.bias/0", "third.weight/1"),
            **{name: G(4, f"{name}.weight/0 {name}.bias/0", "head.weight/1") for name in ("first", "second", "third")},
            "head": HEAD,
        },
    ),
    Net(
        "held width of a partial convolution",
        lambda: Program(_partial, stem=conv(3, 12), part=conv(3, 5), head=conv(14, 2), touched=3),
        {
            "stem": G(3, "stem.weight/0 stem.bias/0", "part.weight/1"),
            "stem#2": G(9, "stem.weight/0 stem.bias/0", "head.weight/1"),
            "part": G(5, "part.weight/0 part.bias/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "held width of a partial convolution in place",
        lambda: Program(_partial_in_place, stem=conv(3, 12), part=conv(3, 3), head=conv(12, 2), touched=3),
        {
            "stem": G(3, "stem.weight/0 stem.bias/0 part.weight/0 part.bias/0", "part.weight/1 head.weight/1"),
            "stem#2": G(9, "stem.weight/0 stem.bias/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "held width from the end",
        lambda: Program(_from_the_end, stem=conv(3, 7), part=conv(3, 5), head=conv(5, 2), touched=3),
        {
            "stem": G(4, "stem.weight/0 stem.bias/0"),
            "stem#2": G(3, "stem.weight/0 stem.bias/0", "part.weight/1"),
            "part": G(5, "part.weight/0 part.bias/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "held width of attention heads",
        lambda: Program(_head_width, q=conv(3, 8, 1), k=conv(3, 8, 1), v=conv(3, 8, 1), head=conv(8, 2, 1), heads=2, width=4),
        {
            # one attribute holds the width of all three, so they lose the same slots
            "q": G(4, "q.weight/0 q.bias/0 k.weight/0 k.bias/0 v.weight/0 v.bias/0", "head.weight/1", mixing=True),
            "head": HEAD,
        },
    ),
    Net(
        "product of held widths",
        lambda: Program(_product, stem=conv(3, 8), head=nn.Conv1d(4, 2, 1), heads=2, width=4),
        {"stem": G(4, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net(
        "unflatten to a held shape",
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Unflatten(1, (2, 4)), nn.Flatten(2), nn.Linear(4 * 36, 2)),
        {"0": G(4, "0.weight/0 0.bias/0", "3.weight/1"), "3": G(2, "3.weight/0 3.bias/0", frozen=OUTPUT)},
    ),
    Net(
        "held normalized shape",
        lambda: nn.Sequential(nn.Linear(3, 6), _OwnNorm(6), nn.ReLU(), nn.Linear(6, 2)),
        {
            "0": G(6, "0.weight/0 0.bias/0", "3.weight/1", mixing=True, scales="1.weight/0 1.bias/0"),
            "3": G(2, "3.weight/0 3.bias/0", frozen=OUTPUT),
        },
        lambda: image(4, 3),
    ),
    Net(
        "held number of depthwise groups",
        lambda: nn.Sequential(conv(3, 6), _OwnDepthwise(6), conv(6, 2)),
        {"0": G(6, "0.weight/0 0.bias/0", "2.weight/1"), "2": G(2, "2.weight/0 2.bias/0", frozen=OUTPUT)},
    ),
    Net(
        "held width of an expansion",
        lambda: Program(_expanded, stem=conv(3, 6), head=conv(6, 2), scale=nn.Parameter(torch.rand(1, 1, 1, 1) + 1), width=6),
        {"stem": G(6, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net(  # the inner width must stay as large as the input's: one of each goes together
        "width read from the shape of the input",
        lambda: nn.Sequential(conv(3, 6), nn.ReLU(), _LikeItsInput(6), nn.ReLU(), conv(6, 2)),
        {
            "0": G(6, "0.weight/0 0.bias/0 2.inner.weight/0 2.inner.bias/0", "2.inner.weight/1 2.outer.weight/1"),
            "2.outer": G(6, "2.outer.weight/0 2.outer.bias/0", "4.weight/1"),
            "4": G(2, "4.weight/0 4.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "width held by a part of the module",
        lambda: Program(_held_by_a_part, stem=conv(3, 8), update=_Update(3, 4), head=conv(9, 2)),
        {
            "stem": G(3, "stem.weight/0 stem.bias/0", "update.body.weight/1"),
            "stem#2": G(5, "stem.weight/0 stem.bias/0", "head.weight/1"),
            "update.body": G(4, "update.body.weight/0 update.body.bias/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "channel numbers in a buffer",
        lambda: nn.Sequential(conv(3, 6), _Permuted(6), nn.ReLU(), conv(6, 2)),
        {"0": G(6, "0.weight/0 0.bias/0", "3.weight/1"), "3": G(2, "3.weight/0 3.bias/0", frozen=OUTPUT)},
    ),
    Net(
        "residual over permuted channels",
        lambda: Program(_permuted_residual, stem=conv(3, 6), permute=_Permuted(6), second=conv(6, 6), head=conv(6, 2)),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0 second.weight/0 second.bias/0", "second.weight/1 head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "channel numbers made on the way",
        lambda: Program(_picked, stem=conv(3, 6), permute=_Permuted(6), head=conv(4, 2)),
        {"stem": G(6, "stem.weight/0 stem.bias/0", frozen="picked by absolute index"), "head": HEAD},
        outcome="frozen",
    ),
    Net(
        "a group of a convolution writes one channel",
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4, groups=4), nn.ReLU(), conv(4, 2)),
        {
            "0": G(4, "0.weight/0 0.bias/0 2.bias/0", "4.weight/1", scales="2.weight/0"),
            "4": G(2, "4.weight/0 4.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "group norm with a channel a group",
        lambda: nn.Sequential(conv(3, 6), nn.GroupNorm(6, 6), nn.ReLU(), conv(6, 2)),
        {"0": G(6, "0.weight/0 0.bias/0", "3.weight/1"), "3": G(2, "3.weight/0 3.bias/0", frozen=OUTPUT)},
    ),
    Net(
        "instance norm without parameters",
        lambda: nn.Sequential(conv(3, 6), nn.InstanceNorm2d(6), nn.ReLU(), conv(6, 2)),
        {"0": G(6, "0.weight/0 0.bias/0", "3.weight/1"), "3": G(2, "3.weight/0 3.bias/0", frozen=OUTPUT)},
    ),
]
