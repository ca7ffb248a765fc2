"""Operations that compute over channels (mixing groups) and weights that are computed from parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from difficulties.movement import HEAD
from difficulties.network import G, Net, Program, conv, conv_bn

STEM = G(8, "stem.weight/0 stem.bias/0", "head.weight/1", mixing=True)


def _group_deviation(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    b, c, h, w = y.shape
    parts = y.reshape(b, 2, -1)
    deviation = (parts.var(2, keepdim=True) + 1).sqrt().expand(parts.shape).reshape(b, c, h, w)
    return m.head(y / deviation)


def _along_channels(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    gate = m.along(y.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)
    return m.head(y * gate[:, :, None, None])


def _channels_last_norm(m: Any, x: Tensor) -> Tensor:
    return m.head(m.norm(m.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _spatial_attention(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    gate = m.attend(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1))
    return m.head(x * gate.sigmoid())


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation: the weight has mean 0 and variance 1 over its inputs."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.pow(2).mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(input, w, self.bias, self.stride, self.padding)


class Doubled(nn.Module):
    """A parametrisation that works element by element."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _parametrised() -> nn.Module:
    net = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4), nn.ReLU(), conv(4, 2))
    parametrize.register_parametrization(net[2], "weight", Doubled())
    return net


def _weight_norm() -> nn.Module:
    net = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4), nn.ReLU(), conv(4, 2))
    parametrizations.weight_norm(net[2])
    return net


def _attention(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    query, key, value = (p(x).flatten(2) for p in (m.query, m.key, m.value))
    weights = (query.transpose(1, 2) @ key).softmax(-1)
    return m.head((value @ weights.transpose(1, 2)).view(x.shape[0], -1, *x.shape[2:]))


def _gram(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x).flatten(2)
    return m.head((y @ y.transpose(1, 2)).flatten(1))


NETS = [
    Net(
        "layer norm",
        lambda: Program(_channels_last_norm, stem=conv(3, 8), norm=nn.LayerNorm(8), head=conv(8, 2)),
        {
            "stem": G(8, "stem.weight/0 stem.bias/0", "head.weight/1", mixing=True, scales="norm.weight/0 norm.bias/0"),
            "head": HEAD,
        },
    ),
    Net(
        "group norm",
        lambda: Program(lambda m, x: m.head(m.norm(m.stem(x))), stem=conv(3, 8), norm=nn.GroupNorm(2, 8), head=conv(8, 2)),
        {
            "stem": G(4, "stem.weight/0 stem.bias/0", "head.weight/1", mixing=True, scales="norm.weight/0 norm.bias/0"),
            "head": HEAD,
        },
    ),
    Net(
        "softmax over channels",
        lambda: Program(lambda m, x: m.head(m.stem(x).softmax(1)), stem=conv(3, 8), head=conv(8, 2)),
        {"stem": STEM, "head": HEAD},
    ),
    Net(
        "spatial attention",
        lambda: Program(_spatial_attention, stem=conv_bn(3, 8), attend=conv(2, 1), head=conv(8, 2)),
        {"stem.0": G(8, "stem.0.weight/0", "head.weight/1", mixing=True), "head": HEAD},
    ),
    Net(  # the first layer's weight is standardised over the image's colours only: nothing mixes there
        "weight standardisation",
        lambda: Program(
            lambda m, x: m.head(F.relu(m.body(F.relu(m.stem(x))))),
            stem=StandardisedConv2d(3, 8, 3),
            body=StandardisedConv2d(8, 6, 3),
            head=conv(6, 2),
        ),
        {
            "stem": G(8, "stem.weight/0 stem.bias/0", "body.weight/1", mixing=True),
            "body": G(6, "body.weight/0 body.bias/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "parametrised weight",
        _parametrised,
        {
            "0": G(6, "0.weight/0 0.bias/0", "2.parametrizations.weight.original/1"),
            "2": G(4, "2.parametrizations.weight.original/0 2.bias/0", "4.weight/1"),
            "4": G(2, "4.weight/0 4.bias/0", frozen="output"),
        },
    ),
    Net(  # a filter's length runs over its inputs
        "weight norm",
        _weight_norm,
        {
            "0": G(6, "0.weight/0 0.bias/0", "2.parametrizations.weight.original1/1", mixing=True),
            "2": G(
                4,
                "2.parametrizations.weight.original1/0 2.bias/0",
                "4.weight/1",
                scales="2.parametrizations.weight.original0/0",
            ),
            "4": G(2, "4.weight/0 4.bias/0", frozen="output"),
        },
    ),
    Net(  # queries and keys meet in a product over their channels; values don't
        "attention",
        lambda: Program(
            _attention, stem=conv(3, 6), query=conv(6, 4, 1), key=conv(6, 4, 1), value=conv(6, 5, 1), head=conv(5, 2)
        ),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0", "query.weight/1 key.weight/1 value.weight/1"),
            "query": G(4, "query.weight/0 query.bias/0 key.weight/0 key.bias/0", mixing=True),
            "value": G(5, "value.weight/0 value.bias/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(  # a length over the channels, expanded to their number
        "unit length over channels",
        lambda: Program(lambda m, x: m.head(F.normalize(m.stem(x), dim=1)), stem=conv(3, 8), head=conv(8, 2)),
        {"stem": STEM, "head": HEAD},
    ),
    Net(  # no parameter tells the shape that the module holds: it is repaired
        "layer norm without parameters",
        lambda: Program(_channels_last_norm, stem=conv(3, 8), norm=nn.LayerNorm(8, elementwise_affine=False), head=conv(8, 2)),
        {"stem": STEM, "head": HEAD},
    ),
    Net(  # EvoNorm: the deviation of a group, spread over its channels again
        "deviation of a group of channels",
        lambda: Program(_group_deviation, stem=conv(3, 8), head=conv(8, 2)),
        {"stem": G(4, "stem.weight/0 stem.bias/0", "head.weight/1", mixing=True), "head": HEAD},
    ),
    Net(  # efficient channel attention: a convolution slides along the pooled channels, so that neighbours are mixed
        "convolution along the channels",
        lambda: Program(_along_channels, stem=conv(3, 8), along=nn.Conv1d(1, 1, 3, padding=1, bias=False), head=conv(8, 2)),
        {"stem": STEM, "head": HEAD},
    ),
    Net(
        "strided convolution along the channels",
        lambda: Program(
            lambda m, x: m.head(m.along(m.stem(x).mean((2, 3)).unsqueeze(1)).squeeze(1)),
            stem=conv(3, 8),
            along=nn.Conv1d(1, 1, 3, stride=2, bias=False),
            head=nn.Linear(3, 2),
        ),
        {"stem": G(8, "stem.weight/0 stem.bias/0", frozen="channels lie on a pixel axis"), "head": HEAD},
        outcome="frozen",
    ),
    Net(
        "gram matrix",
        lambda: Program(_gram, stem=conv(3, 4), head=nn.Linear(16, 2)),
        {"stem": G(4, "stem.weight/0 stem.bias/0", frozen="two channel axes merge into one"), "head": HEAD},
        outcome="frozen",
    ),
    Net(  # class numbers leave the network: their meaning is absolute
        "argmax output",
        lambda: Program(lambda m, x: m.head(F.relu(m.stem(x))).argmax(1), stem=conv(3, 6), head=conv(6, 4)),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0", "head.weight/1"),
            "head": G(4, "head.weight/0 head.bias/0", frozen="the number of a channel", mixing=True),
        },
    ),
    Net(
        "best class output",
        lambda: Program(lambda m, x: tuple(m.head(F.relu(m.stem(x))).max(1)), stem=conv(3, 6), head=conv(6, 4)),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0", "head.weight/1"),
            "head": G(4, "head.weight/0 head.bias/0", frozen="the number of a channel", mixing=True),
        },
    ),
]
