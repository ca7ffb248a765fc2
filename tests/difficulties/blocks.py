"""Blocks of well-known networks, written as their authors write them: gates, cheap copies, fixed filters, pixel squares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difficulties.movement import HEAD
from difficulties.network import G, Net, Program, conv, conv_bn


class _SplitAttention(nn.Module):
    """ResNeSt: a softmax between two versions of every channel (radix)."""

    def __init__(self, cardinality: int) -> None:
        super().__init__()
        self.radix, self.cardinality = 2, cardinality
        self.conv = conv_bn(8, 16, groups=2 * cardinality)
        self.fc1, self.fc2 = conv(8, 4, 1, groups=cardinality), conv(4, 16, 1, groups=cardinality)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, rc, h, w = x.shape
        x = x.reshape((b, self.radix, rc // self.radix, h, w))
        gap = self.fc2(F.relu(self.fc1(x.sum(dim=1).mean((2, 3), keepdim=True))))
        gap = gap.view(b, self.cardinality, self.radix, -1).transpose(1, 2).softmax(dim=1).reshape(b, -1)
        return (x * gap.reshape((b, self.radix, rc // self.radix, 1, 1))).sum(dim=1)


class _SelectiveKernel(nn.Module):
    """Two kernel sizes and a softmax between them; the paths take the whole input or half of it each."""

    def __init__(self, halves: bool) -> None:
        super().__init__()
        self.num_paths, self.in_channels, self.split_input = 2, 8, halves
        self.paths = nn.ModuleList(conv_bn(4 if halves else 8, 6, k) for k in (3, 5))
        self.fc_reduce, self.fc_select = conv_bn(6, 4, 1), conv(4, 12, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.in_channels // self.num_paths, 1) if self.split_input else [x, x]
        x = torch.stack([op(part) for op, part in zip(self.paths, parts, strict=True)], dim=1)
        attention = self.fc_select(self.fc_reduce(x.sum(1).mean((2, 3), keepdim=True)))
        b, c, h, w = attention.shape
        attention = attention.view(b, self.num_paths, c // self.num_paths, h, w).softmax(dim=1)
        return (x * attention).sum(dim=1)


class _Ghost(nn.Module):
    """Half of the channels are cheap copies of the other half."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.out_chs = outputs
        self.primary_conv, self.cheap_operation = conv_bn(5, 4, 1), conv_bn(4, 4, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary_conv(x)
        out = torch.cat([x1, self.cheap_operation(x1)], dim=1)
        return out[:, : self.out_chs, :, :]


class _MixedConv(nn.ModuleDict):
    """timm's MixConv: a kernel size for each part of the channels, depthwise or not."""

    def __init__(self, splits: list[int], outputs: list[int], depthwise: bool) -> None:
        super().__init__()
        self.splits = splits
        for index, (i, o) in enumerate(zip(splits, outputs, strict=True)):
            self.add_module(str(index), conv(i, o, 3 + 2 * index, bias=False, groups=i if depthwise else 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.splits, 1)
        return torch.cat([c(parts[i]) for i, c in enumerate(self.values())], 1)


def _focus(m: Any, x: Tensor) -> Tensor:
    """Every second pixel, four times: the channels of a pixel square lie side by side."""
    y = m.stem(x)
    return m.head(torch.cat([y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]], 1))


def _space_to_depth(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    n, c, h, w = y.size()
    y = y.view(n, c, h // m.bs, m.bs, w // m.bs, m.bs).permute(0, 3, 5, 1, 2, 4).contiguous()
    return m.head(y.view(n, c * m.bs * m.bs, h // m.bs, w // m.bs))


class _BlurPool(nn.Module):
    """A fixed low-pass filter for each channel: held as many times as there are channels, or expanded when it runs."""

    def __init__(self, channels: int | None) -> None:
        super().__init__()
        self.channels = channels
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filt", (taps[:, None] * taps)[None, None].repeat(channels or 1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        channels = self.channels or x.shape[1]
        return F.conv2d(x, self.filt.expand(channels, 1, 3, 3), stride=2, groups=channels)


def _grouped_shuffle(m: Any, x: Tensor) -> Tensor:
    """ShuffleNet: a grouped convolution reads channels of all groups of the one before."""
    y = m.first(m.stem(x))
    b, c, h, w = y.shape
    y = y.view(b, m.groups, c // m.groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
    return m.head(m.second(y))


class _ResponseNorm(nn.Module):
    """ConvNeXt-v2's global response norm over channels of channels-last images."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        length = x.norm(p=2, dim=(1, 2), keepdim=True)
        scaled = length / (length.mean(dim=-1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias.view(1, 1, 1, -1), self.weight.view(1, 1, 1, -1), x * scaled)


def _cbam(m: Any, x: Tensor) -> Tensor:
    """A gate for each channel from its mean and its maximum, then a gate for each pixel from those over the channels."""
    x = m.stem(x)
    x = x * (m.mlp(x.mean((2, 3), keepdim=True)) + m.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
    return m.head(x * m.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid())


def _around(block: Any, width: int, stem: int) -> Any:
    """The block between a stem and a head."""
    return lambda: Program(lambda m, x: m.head(m.block(m.stem(x))), stem=conv_bn(3, stem), block=block(), head=conv(width, 2))


def _stem(width: int, readers: str, **more: Any) -> G:
    return G(width, "stem.0.weight/0", readers, **more)


def _normed(norm: Any) -> Any:
    run = lambda m, x: m.head(m.norm(m.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))  # noqa: E731
    return lambda: Program(run, stem=conv(3, 8), norm=norm(), head=conv(8, 2))


def _mixed(scales: str) -> dict[str, G]:
    return {"stem": G(8, "stem.weight/0 stem.bias/0", "head.weight/1", mixing=True, scales=scales), "head": HEAD}


STEM = {"stem": G(6, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD}
SELECTED = {
    "block.paths.0.0": G(
        6,
        "block.paths.0.0.weight/0 block.paths.1.0.weight/0 block.fc_select.weight/0",
        "block.fc_reduce.0.weight/1 head.weight/1",
    ),
    "block.fc_reduce.0": G(4, "block.fc_reduce.0.weight/0", "block.fc_select.weight/1"),
    "head": HEAD,
}
GHOST_STEM = G(5, "stem.0.weight/0", "block.primary_conv.0.weight/1")
PATHS = "block.paths.0.0.weight/1 block.paths.1.0.weight/1"


def _split_attention(cardinality: int) -> dict[str, G]:
    """Both versions of a channel go together; with a cardinality, the same slot of every group."""
    return {
        "stem.0": _stem(4 // cardinality, "block.conv.0.weight/1"),
        "block.conv.0": G(
            8 // cardinality,
            "block.conv.0.weight/0 block.fc2.weight/0 block.fc2.bias/0",
            "block.fc1.weight/1 head.weight/1",
        ),
        "block.fc1": G(4 // cardinality, "block.fc1.weight/0 block.fc1.bias/0", "block.fc2.weight/1"),
        "head": HEAD,
    }


NETS = [
    Net("split attention", _around(lambda: _SplitAttention(1), 8, 8), _split_attention(1)),
    Net("split attention of two groups", _around(lambda: _SplitAttention(2), 8, 8), _split_attention(2)),
    Net("selective kernel", _around(lambda: _SelectiveKernel(False), 6, 8), {"stem.0": _stem(8, PATHS), **SELECTED}),
    Net("selective kernel of halves", _around(lambda: _SelectiveKernel(True), 6, 8), {"stem.0": _stem(4, PATHS), **SELECTED}),
    Net(
        "ghost module",
        _around(lambda: _Ghost(8), 8, 5),
        {"stem.0": GHOST_STEM, "block.primary_conv.0": G(4, "block.primary_conv.0.weight/0", "head.weight/1"), "head": HEAD},
    ),
    Net(  # the copy of the last channel is cut off: the width that the module holds counts the other copies
        "ghost module of odd width",
        _around(lambda: _Ghost(7), 7, 5),
        {
            "stem.0": GHOST_STEM,
            "block.primary_conv.0": G(3, "block.primary_conv.0.weight/0", "head.weight/1"),
            "block.primary_conv.0#2": G(1, "block.primary_conv.0.weight/0", "head.weight/1", frozen="it is a single channel"),
            "head": HEAD,
        },
    ),
    Net(
        "mixed convolution, depthwise",
        _around(lambda: _MixedConv([5, 3], [5, 3], True), 8, 8),
        {"stem.0": _stem(5, "head.weight/1"), "stem.0#2": _stem(3, "head.weight/1"), "head": HEAD},
    ),
    Net(
        "mixed convolution",
        _around(lambda: _MixedConv([4, 4], [5, 3], False), 8, 8),
        {
            "stem.0": _stem(4, "block.0.weight/1"),
            "stem.0#2": _stem(4, "block.1.weight/1"),
            "block.0": G(5, "block.0.weight/0", "head.weight/1"),
            "block.1": G(3, "block.1.weight/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net("focus", lambda: Program(_focus, stem=conv(3, 6), head=conv(24, 2)), STEM),
    Net("space to depth", lambda: Program(_space_to_depth, stem=conv(3, 6), head=conv(24, 2), bs=2), STEM),
    Net(
        "blur pool",
        _around(lambda: _BlurPool(6), 6, 6),
        {"stem.0": _stem(6, "head.weight/1", scales="stem.1.weight/0 stem.1.bias/0 block.filt/0"), "head": HEAD},
    ),
    Net(
        "blur pool of one filter",
        _around(lambda: _BlurPool(None), 6, 6),
        {"stem.0": _stem(6, "head.weight/1"), "head": HEAD},
    ),
    Net(  # slots are tied over the groups of both convolutions: {i, i + 4, i + 8, i + 12} of the first one's 16 filters
        "shuffle between grouped convolutions",
        lambda: Program(
            _grouped_shuffle,
            stem=conv_bn(3, 8),
            first=conv_bn(8, 16, 1, groups=2),
            second=conv_bn(16, 8, 1, groups=2),
            head=conv(8, 2),
            groups=2,
        ),
        {
            "stem.0": _stem(4, "first.0.weight/1"),
            "first.0": G(4, "first.0.weight/0", "second.0.weight/1"),
            "second.0": G(4, "second.0.weight/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net("global response norm", _normed(lambda: _ResponseNorm(8)), _mixed("norm.weight/0 norm.bias/0")),
    Net("rms norm", _normed(lambda: nn.RMSNorm(8)), _mixed("norm.weight/0")),
    Net(
        "cbam",
        lambda: Program(
            _cbam,
            stem=conv_bn(3, 8),
            mlp=nn.Sequential(conv(8, 4, 1, bias=False), nn.ReLU(), conv(4, 8, 1, bias=False)),
            spatial=conv(2, 1, 7),
            head=conv(8, 2),
        ),
        {
            "stem.0": G(8, "stem.0.weight/0 mlp.2.weight/0", "mlp.0.weight/1 head.weight/1", mixing=True),
            "mlp.0": G(4, "mlp.0.weight/0", "mlp.2.weight/1"),
            "head": HEAD,
        },
    ),
]
