"""Every form of convolution, normalisation and residual sum: removal is exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difficulties.network import OUTPUT, G, Net, Program, conv, conv_bn, image


def _sequence(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts)


def _residual_projection(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    return m.head((F.relu(m.second(m.first(x)) + m.shortcut(x))).mean((2, 3)))


def _residual_identity(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    x = x + m.second(m.first(x))
    return m.head(F.relu(x).mean((2, 3)))


def _dense(m: Any, x: Tensor) -> Tensor:
    features = [m.stem(x)]
    for layer in (m.first, m.second):
        features.append(layer(torch.cat(features, 1)))
    return m.head(torch.cat(features, 1).mean((2, 3)))


def _squeeze_excite(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    gate = torch.sigmoid(m.expand(F.relu(m.squeeze(F.adaptive_avg_pool2d(x, 1)))))
    return m.head(x * gate)


def _reused(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    for _ in range(3):
        x = x + F.relu(m.block(x))
    return m.head(x)


def _tied() -> nn.Module:
    net = Program(lambda m, x: m.head(F.relu(m.second(F.relu(m.first(m.stem(x)))))), stem=conv(3, 6))
    net.first, net.second = conv(6, 6), conv(6, 6)
    net.second.weight = net.first.weight
    net.head = conv(6, 2)
    return net


def _auxiliary(m: Any, x: Tensor) -> Any:
    x = m.stem(x)
    out = m.head(x.mean((2, 3)))
    return (out, m.aux(m.aux_conv(x).mean((2, 3)))) if m.training else out


def _upsampler(m: Any, x: Tensor) -> Tensor:
    return m.head(F.relu(m.up(F.relu(m.project(x)).view(x.shape[0], -1, 4, 4))))


NETS = [
    Net(
        "chain",
        lambda: _sequence(conv(3, 8), nn.ReLU(), conv(8, 6), nn.ReLU(), conv(6, 4)),
        {
            "0": G(8, "0.weight/0 0.bias/0", "2.weight/1", scales=""),
            "2": G(6, "2.weight/0 2.bias/0", "4.weight/1", scales=""),
            "4": G(4, "4.weight/0 4.bias/0", frozen=OUTPUT, scales=""),
        },
    ),
    Net(  # every channel owns 4 x 4 columns of the linear layer
        "flatten",
        lambda: _sequence(conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5)),
        {
            "0": G(8, "0.weight/0", "5.weight/1", scales="1.weight/0 1.bias/0"),
            "5": G(5, "5.weight/0 5.bias/0", frozen=OUTPUT, scales=""),
        },
    ),
    Net(
        "residual projection",
        lambda: Program(
            _residual_projection,
            stem=conv_bn(3, 6),
            first=conv_bn(6, 8),
            second=conv_bn(8, 10),
            shortcut=conv(6, 10, 1),
            head=nn.Linear(10, 3),
        ),
        {
            "stem.0": G(6, "stem.0.weight/0", "first.0.weight/1 shortcut.weight/1"),
            "first.0": G(8, "first.0.weight/0", "second.0.weight/1"),
            "second.0": G(10, "second.0.weight/0 shortcut.weight/0 shortcut.bias/0", "head.weight/1"),
            "head": G(3, "head.weight/0 head.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "residual identity",
        lambda: Program(_residual_identity, stem=conv_bn(3, 6), first=conv_bn(6, 8), second=conv_bn(8, 6), head=nn.Linear(6, 3)),
        {
            "stem.0": G(6, "stem.0.weight/0 second.0.weight/0", "first.0.weight/1 head.weight/1"),
            "first.0": G(8, "first.0.weight/0", "second.0.weight/1"),
            "head": G(3, "head.weight/0 head.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "concatenation",
        lambda: Program(_dense, stem=conv_bn(3, 6), first=conv_bn(6, 4), second=conv_bn(10, 5), head=nn.Linear(15, 3)),
        {
            "stem.0": G(6, "stem.0.weight/0", "first.0.weight/1 second.0.weight/1 head.weight/1"),
            "first.0": G(4, "first.0.weight/0", "second.0.weight/1 head.weight/1"),
            "second.0": G(5, "second.0.weight/0", "head.weight/1"),
            "head": G(3, "head.weight/0 head.bias/0", frozen=OUTPUT),
        },
    ),
    Net(  # each channel is read twice by one axis
        "cat with itself",
        lambda: Program(lambda m, x: m.head(torch.cat([y := m.stem(x), y], 1)), stem=conv_bn(3, 6), head=conv(12, 2)),
        {
            "stem.0": G(6, "stem.0.weight/0", "head.weight/1"),
            "head": G(2, "head.weight/0 head.bias/0", frozen=OUTPUT),
        },
    ),
    Net(  # 3 groups: slots of the reads and of the writes are tied over the groups
        "grouped",
        lambda: _sequence(conv_bn(3, 12), conv_bn(12, 6, groups=3), conv(6, 2)),
        {
            "0.0": G(4, "0.0.weight/0", "1.0.weight/1"),
            "1.0": G(2, "1.0.weight/0", "2.weight/1"),
            "2": G(2, "2.weight/0 2.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "depthwise",
        lambda: _sequence(conv_bn(3, 8), conv(8, 8, groups=8), nn.ReLU6(), conv(8, 2, 1)),
        {
            "0.0": G(8, "0.0.weight/0 1.bias/0", "3.weight/1", scales="0.1.weight/0 0.1.bias/0 1.weight/0"),
            "3": G(2, "3.weight/0 3.bias/0", frozen=OUTPUT),
        },
    ),
    Net(  # a channel owns two filters of the depthwise convolution
        "depthwise multiplier",
        lambda: _sequence(conv_bn(3, 6), conv(6, 12, groups=6), conv(12, 2, 1)),
        {
            "0.0": G(6, "0.0.weight/0 1.bias/0", "2.weight/1", scales="0.1.weight/0 0.1.bias/0 1.weight/0"),
            "2": G(2, "2.weight/0 2.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "transposed",
        lambda: _sequence(conv(3, 6), nn.ConvTranspose2d(6, 4, 3, stride=2), nn.ReLU(), conv(4, 2)),
        {
            "0": G(6, "0.weight/0 0.bias/0", "1.weight/0"),
            "1": G(4, "1.weight/1 1.bias/0", "3.weight/1"),
            "3": G(2, "3.weight/0 3.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "transposed grouped",
        lambda: _sequence(conv(3, 8), nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), nn.ReLU(), conv(6, 2)),
        {
            "0": G(4, "0.weight/0 0.bias/0", "1.weight/0"),
            "1": G(3, "1.weight/1 1.bias/0", "3.weight/1"),
            "3": G(2, "3.weight/0 3.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "transposed depthwise",
        lambda: _sequence(conv(3, 8), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8, bias=False), nn.ReLU(), conv(8, 2)),
        {
            "0": G(8, "0.weight/0 0.bias/0", "3.weight/1", scales="1.weight/0"),
            "3": G(2, "3.weight/0 3.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "squeeze and excite",
        lambda: Program(_squeeze_excite, stem=conv_bn(3, 8), squeeze=conv(8, 4, 1), expand=conv(4, 8, 1), head=conv(8, 2)),
        {
            "stem.0": G(8, "stem.0.weight/0 expand.weight/0 expand.bias/0", "squeeze.weight/1 head.weight/1"),
            "squeeze": G(4, "squeeze.weight/0 squeeze.bias/0", "expand.weight/1"),
            "head": G(2, "head.weight/0 head.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "reused module",
        lambda: Program(_reused, stem=conv(3, 6), block=conv(6, 6), head=conv(6, 2)),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0 block.weight/0 block.bias/0", "block.weight/1 head.weight/1"),
            "head": G(2, "head.weight/0 head.bias/0", frozen=OUTPUT),
        },
    ),
    Net(  # one weight under two names: both layers' channels are one group
        "shared parameter",
        _tied,
        {
            "stem": G(6, "stem.weight/0 stem.bias/0 first.weight/0 first.bias/0 second.bias/0", "first.weight/1 head.weight/1"),
            "head": G(2, "head.weight/0 head.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "broadcast multiply",
        lambda: Program(
            lambda m, x: m.head(m.stem(x) * m.scale + m.shift[:, None, None]),
            stem=conv(3, 6),
            scale=nn.Parameter(torch.ones(1, 6, 1, 1)),
            shift=nn.Parameter(torch.zeros(6)),
            head=conv(6, 2),
        ),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0", "head.weight/1", scales="scale/1 shift/0"),
            "head": G(2, "head.weight/0 head.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "one dimension",
        lambda: _sequence(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 4, 3), nn.Flatten(), nn.Linear(24, 2)),
        {
            "0": G(6, "0.weight/0 0.bias/0", "3.weight/1", scales="1.weight/0 1.bias/0"),
            "3": G(4, "3.weight/0 3.bias/0", "5.weight/1"),
            "5": G(2, "5.weight/0 5.bias/0", frozen=OUTPUT),
        },
        lambda: image(2, 3, 10),
    ),
    Net(
        "three dimensions",
        lambda: _sequence(
            nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.MaxPool3d(2), nn.ConvTranspose3d(6, 4, 2), nn.Conv3d(4, 2, 1)
        ),
        {
            "0": G(6, "0.weight/0 0.bias/0", "3.weight/0", scales="1.weight/0 1.bias/0"),
            "3": G(4, "3.weight/1 3.bias/0", "4.weight/1"),
            "4": G(2, "4.weight/0 4.bias/0", frozen=OUTPUT),
        },
        lambda: image(2, 2, 4, 4, 4),
    ),
    Net(
        "prelu",
        lambda: _sequence(conv(3, 6), nn.PReLU(6), conv(6, 4), nn.PReLU(), conv(4, 2)),
        {
            "0": G(6, "0.weight/0 0.bias/0", "2.weight/1", scales="1.weight/0"),
            "2": G(4, "2.weight/0 2.bias/0", "4.weight/1", scales=""),
            "4": G(2, "4.weight/0 4.bias/0", frozen=OUTPUT),
        },
    ),
    Net(  # statistics of each channel by itself: exact
        "instance norm",
        lambda: _sequence(conv(3, 6), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), conv(6, 2)),
        {
            "0": G(6, "0.weight/0 0.bias/0", "3.weight/1", scales="1.weight/0 1.bias/0"),
            "3": G(2, "3.weight/0 3.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "linear to transposed",
        lambda: Program(_upsampler, project=nn.Linear(5, 64), up=nn.ConvTranspose2d(4, 6, 2, stride=2), head=conv(6, 2)),
        {
            "project": G(4, "project.weight/0 project.bias/0", "up.weight/0"),
            "up": G(6, "up.weight/1 up.bias/0", "head.weight/1"),
            "head": G(2, "head.weight/0 head.bias/0", frozen=OUTPUT),
        },
        lambda: image(2, 5),
    ),
    Net(
        "training head",
        lambda: Program(_auxiliary, stem=conv_bn(3, 6), head=nn.Linear(6, 3), aux_conv=conv(6, 4), aux=nn.Linear(4, 3)),
        {
            "stem.0": G(6, "stem.0.weight/0", "head.weight/1 aux_conv.weight/1"),
            "head": G(3, "head.weight/0 head.bias/0", frozen=OUTPUT),
            "aux_conv": G(4, "aux_conv.weight/0 aux_conv.bias/0", "aux.weight/1"),
            "aux": G(3, "aux.weight/0 aux.bias/0", frozen=OUTPUT),
        },
    ),
]
