"""Stages of detectors and hierarchical networks, written as their authors write them: parts of one width on several ways."""

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


def _before(block: Any, width: int) -> Any:
    """The block on images, and a head."""
    return lambda: Program(lambda m, x: m.head(m.block(x)), block=block(), head=conv(width, 2))


C2F = {
    # every bottleneck adds to the second half, so that both of them and both halves are one group
    "block.cv1.0": G(
        4,
        "block.cv1.0.weight/0 block.m.0.second.0.weight/0 block.m.1.second.0.weight/0",
        "block.m.0.first.0.weight/1 block.m.1.first.0.weight/1 block.cv2.0.weight/1",
    ),
    "block.m.0.first.0": G(5, "block.m.0.first.0.weight/0", "block.m.0.second.0.weight/1"),
    "block.m.1.first.0": G(5, "block.m.1.first.0.weight/0", "block.m.1.second.0.weight/1"),
    "block.cv2.0": G(6, "block.cv2.0.weight/0", "head.weight/1"),
    "head": HEAD,
}
RES2_READS = "block.convs.0.weight/1 block.convs.1.weight/1 block.convs.2.weight/1 head.weight/1"


def _writers(*widths: int, reads: str) -> dict[str, G]:
    """Convolutions ``cv1``, ``cv2``, ... of these widths, each read by the parts that ``reads`` names (comma by comma)."""
    names = [f"cv{n}.0.weight/0" for n in range(1, len(widths) + 1)]
    readers = [" ".join(f"{part}.weight/1" for part in several.split()) for several in reads.split(",")]
    return {
        name.removesuffix(".weight/0"): G(width, name, reader) for name, width, reader in zip(names, widths, readers, strict=True)
    }


NETS = [
    Net("c2f of YOLOv8 by chunk", _before(lambda: _C2f(4, False), 6), C2F),
    Net("c2f of YOLOv8 by split", _before(lambda: _C2f(4, True), 6), C2F),
    Net(
        "csp stage",
        _before(_CspStage, 6),
        {
            "block.conv_exp.0": G(4, "block.conv_exp.0.weight/0", "block.block.0.weight/1 block.conv_transition.0.weight/1"),
            "block.block.0": G(4, "block.block.0.weight/0", "block.conv_transition.0.weight/1"),
            "block.conv_transition.0": G(6, "block.conv_transition.0.weight/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "csp of three convolutions",
        lambda: Program(
            _csp_of_three, cv1=conv_bn(3, 4, 1), cv2=conv_bn(3, 5, 1), m=_Bottleneck(4), cv3=conv_bn(9, 6, 1), head=conv(6, 2)
        ),
        {
            **_writers(4, 5, 6, reads="cv3.0,cv3.0,head"),
            "cv1.0": G(4, "cv1.0.weight/0 m.second.0.weight/0", "m.first.0.weight/1 cv3.0.weight/1"),
            "m.first.0": G(5, "m.first.0.weight/0", "m.second.0.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "elan",
        lambda: Program(
            _elan,
            cv1=conv_bn(3, 4, 1),
            cv2=conv_bn(3, 5, 1),
            cv3=conv_bn(5, 6),
            cv4=conv_bn(6, 7),
            cv5=conv_bn(22, 4, 1),
            head=conv(4, 2),
        ),
        {**_writers(4, 5, 6, 7, 4, reads="cv5.0,cv3.0 cv5.0,cv4.0 cv5.0,cv5.0,head"), "head": HEAD},
    ),
    Net(  # the second half of cv1 is read twice, the first once; both lose equally many
        "elan by chunks",
        lambda: Program(
            _elan_by_chunks, cv1=conv_bn(3, 8, 1), cv2=conv_bn(4, 5), cv3=conv_bn(5, 6), cv4=conv_bn(19, 4, 1), head=conv(4, 2)
        ),
        {**_writers(4, 5, 6, 4, reads="cv2.0 cv4.0,cv3.0 cv4.0,cv4.0,head"), "head": HEAD},
    ),
    Net(
        "sppf",
        lambda: Program(_sppf, cv1=conv_bn(3, 4, 1), pool=nn.MaxPool2d(5, 1, 2), cv2=conv_bn(16, 5, 1), head=conv(5, 2)),
        {**_writers(4, 5, reads="cv2.0,head"), "head": HEAD},
    ),
    Net(
        "res2net block",
        _before(lambda: _Res2(False), 16),
        {
            "block.conv1": G(4, "block.conv1.weight/0 block.convs.0.weight/0 block.convs.1.weight/0", RES2_READS),
            "block.convs.2": G(4, "block.convs.2.weight/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(  # nothing is added: the convolutions write what they like
        "res2net block, first of a stage",
        _before(lambda: _Res2(True), 16),
        {
            "block.conv1": G(4, "block.conv1.weight/0", RES2_READS),
            **{f"block.convs.{i}": G(4, f"block.convs.{i}.weight/0", "head.weight/1") for i in range(3)},
            "head": HEAD,
        },
    ),
]
