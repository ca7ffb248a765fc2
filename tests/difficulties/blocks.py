"""Blocks of well-known networks, written as their authors write them: several paths, parts and gates over one width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difficulties.movement import HEAD
from difficulties.network import G, Net, Program, conv, conv_bn


class _Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv_bn(width, 5), conv_bn(5, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class _C2f(nn.Module):
    """YOLOv8: two halves, each bottleneck works on what the last one gave, all are joined."""

    def __init__(self, width: int, split: bool) -> None:
        super().__init__()
        self.c, self.by_width = width, split
        self.cv1, self.cv2 = conv_bn(3, 2 * width, 1), conv_bn(4 * width, 6, 1)
        self.m = nn.ModuleList(_Bottleneck(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1) if self.by_width else self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class _CspStage(nn.Module):
    """timm: half of the expanded channels pass the blocks, the other half passes by."""

    def __init__(self) -> None:
        super().__init__()
        self.expand_chs = 8
        self.conv_exp, self.block, self.conv_transition = conv_bn(3, 8, 1), conv_bn(4, 4), conv_bn(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_exp(x)
        xs, xb = x.split(self.expand_chs // 2, dim=1)
        return self.conv_transition(torch.cat([xs, self.block(xb)], dim=1))


def _csp_of_three(m: Any, x: Tensor) -> Tensor:
    """YOLOv5's C3: two ways in, one of them through a bottleneck."""
    return m.head(m.cv3(torch.cat((m.m(m.cv1(x)), m.cv2(x)), 1)))


def _elan(m: Any, x: Tensor) -> Tensor:
    """YOLOv7: every second step of the deeper way is kept."""
    x1, x2 = m.cv1(x), m.cv2(x)
    x3 = m.cv3(x2)
    return m.head(m.cv5(torch.cat((x1, x2, x3, m.cv4(x3)), 1)))


def _elan_by_chunks(m: Any, x: Tensor) -> Tensor:
    """YOLOv9."""
    y = list(m.cv1(x).chunk(2, 1))
    y.extend(part(y[-1]) for part in [m.cv2, m.cv3])
    return m.head(m.cv4(torch.cat(y, 1)))


def _sppf(m: Any, x: Tensor) -> Tensor:
    x = m.cv1(x)
    y1 = m.pool(x)
    y2 = m.pool(y1)
    return m.head(m.cv2(torch.cat((x, y1, y2, m.pool(y2)), 1)))


class _Res2(nn.Module):
    """timm's Res2Net bottleneck: parts of one width, each convolution also sees what the one before gave."""

    def __init__(self, first_of_stage: bool) -> None:
        super().__init__()
        self.width, self.scale, self.is_first = 4, 4, first_of_stage
        self.conv1, self.bn1 = conv(3, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.convs = nn.ModuleList(conv(4, 4, bias=False) for _ in range(3))
        self.bns = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.pool = nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        spx = torch.split(F.relu(self.bn1(self.conv1(x))), self.width, 1)
        spo, sp = [], spx[0]
        for i, (layer, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            sp = spx[i] if i == 0 or self.is_first else sp + spx[i]
            sp = F.relu(bn(layer(sp)))
            spo.append(sp)
        spo.append(self.pool(spx[-1]) if self.is_first else spx[-1])
        return torch.cat(spo, 1)


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
        self.primary_conv, self.cheap_operation = conv_bn(3, 4, 1), conv_bn(4, 4, groups=4)

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


class _SpaceToDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bs = 2

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        x = x.view(n, c, h // self.bs, self.bs, w // self.bs, self.bs).permute(0, 3, 5, 1, 2, 4).contiguous()
        return x.view(n, c * self.bs * self.bs, h // self.bs, w // self.bs)


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


def _channels_last(m: Any, x: Tensor) -> Tensor:
    return m.head(m.norm(m.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _cbam(m: Any, x: Tensor) -> Tensor:
    """A gate for each channel from its mean and its maximum, then a gate for each pixel from those over the channels."""
    x = m.stem(x)
    x = x * (m.mlp(x.mean((2, 3), keepdim=True)) + m.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
    return m.head(x * m.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid())


def _chain(*parts: nn.Module) -> Any:
    return lambda: nn.Sequential(*parts)


