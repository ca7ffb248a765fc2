"""Regions of interest, deformable convolutions, sliding windows, sampling grids."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula
from torchvision import ops

from difficulties.network import OUTPUT, G, Net, Program, conv, image


def _macs_of_deformable_convolution(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Twice the multiply-adds of the convolution alone: torch's counter has no formula for it."""
    return 2 * out_shape[0] * math.prod(out_shape[2:]) * math.prod(weight)


register_flop_formula(torch.ops.torchvision.deform_conv2d)(_macs_of_deformable_convolution)  # type: ignore[no-untyped-call]


def _regions(pool: Any, read: int = 6) -> Any:
    return lambda: Program(
        lambda m, x, boxes: m.head(pool(m.stem(x), boxes)), stem=conv(3, 6 if read == 6 else 12), head=conv(read, 2)
    )


def _with_boxes() -> tuple[Tensor, Tensor]:
    return image(), torch.tensor([[0.0, 0.5, 0.5, 5.0, 6.0], [1.0, 1.0, 0.0, 7.0, 7.0], [0.0, 2.0, 2.0, 6.0, 4.0]])


def _regions_from_boxes(m: Any, x: Tensor) -> Tensor:
    """Boxes are predicted: four numbers each."""
    y = m.stem(x)
    corners = m.boxes(y.mean((2, 3))).sigmoid() * 4
    boxes = torch.cat([corners[:, :2], corners[:, 2:] + 4], 1)
    return m.head(ops.roi_align(y, list(boxes.split(1)), 4))


def _deformable(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    return m.head(F.relu(m.body(y, m.offset(y), m.mask(y).sigmoid())))


def _deformable_net(offset_groups: int) -> Any:
    return lambda: Program(
        _deformable,
        stem=conv(3, 6),
        offset=conv(6, 18 * offset_groups),
        mask=conv(6, 9 * offset_groups),
        body=ops.DeformConv2d(6, 4, 3, padding=1),
        head=conv(4, 2),
    )


def _sampled(m: Any, x: Tensor) -> Tensor:
    """Features are warped along a predicted flow."""
    y = m.stem(x)
    return m.head(F.grid_sample(y, m.flow(y).permute(0, 2, 3, 1).tanh(), align_corners=False))


def _transformed(m: Any, x: Tensor) -> Tensor:
    """A spatial transformer."""
    y = m.stem(x)
    grid = F.affine_grid(m.locate(y.mean((2, 3))).view(-1, 2, 3), [y.shape[0], 1, *y.shape[2:]], align_corners=False)
    return m.head(F.grid_sample(y, grid, align_corners=False))


def _chain(move: Any, width: int = 6, read: int = 6, head: Any = None) -> Any:
    return lambda: Program(lambda m, x: m.head(move(m.stem(x))), stem=conv(3, width), head=head or conv(read, 2))


STEM = G(6, "stem.weight/0 stem.bias/0", "head.weight/1")
HEAD = G(2, "head.weight/0 head.bias/0", frozen=OUTPUT)
PLAIN = {"stem": STEM, "head": HEAD}
BINS = {"stem": G(3, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD}
READ_BY_ALL = "offset.weight/1 mask.weight/1 body.weight/1"
OFFSETS = "two offsets for each kernel position, not channels, in `torchvision.deform_conv2d.default` (called in `body`)"
WEIGHTS = "a weight for each kernel position, not a channel, in `torchvision.deform_conv2d.default` (called in `body`)"


def _deformable_groups(stem: int, offset_groups: int) -> dict[str, G]:
    return {
        "stem": G(stem, "stem.weight/0 stem.bias/0", READ_BY_ALL),
        "offset": G(18 * offset_groups, "offset.weight/0 offset.bias/0", frozen=OFFSETS),
        "mask": G(9 * offset_groups, "mask.weight/0 mask.bias/0", frozen=WEIGHTS),
        "body": G(4, "body.weight/0 body.bias/0", "head.weight/1"),
        "head": HEAD,
    }


NETS = [
    Net("regions of interest aligned", _regions(lambda y, b: ops.roi_align(y, b, 4)), PLAIN, _with_boxes),
    Net("regions of interest pooled", _regions(lambda y, b: ops.roi_pool(y, b, 4)), PLAIN, _with_boxes),
    # a bin of the result takes its values from a channel of its own
    Net("position-sensitive regions aligned", _regions(lambda y, b: ops.ps_roi_align(y, b, 2), 3), BINS, _with_boxes),
    Net("position-sensitive regions pooled", _regions(lambda y, b: ops.ps_roi_pool(y, b, 2), 3), BINS, _with_boxes),
    Net(
        "regions of predicted boxes",
        lambda: Program(_regions_from_boxes, stem=conv(3, 6), boxes=nn.Linear(6, 4), head=conv(6, 2)),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0", "boxes.weight/1 head.weight/1"),
            "boxes": G(2, "boxes.weight/0 boxes.bias/0", frozen="a single channel is selected"),
            "head": HEAD,
        },
    ),
    Net("deformable convolution", _deformable_net(1), _deformable_groups(6, 1)),
    # half of the input channels share one set of offsets: both halves must stay equal
    Net("deformable convolution in offset groups", _deformable_net(2), _deformable_groups(3, 2)),
    Net("unfold", lambda: _chain(lambda y: F.unfold(y, 3), head=nn.Conv1d(54, 2, 1))(), PLAIN),
    Net("fold", _chain(lambda y: F.fold(y.flatten(2), (9, 9), 2), 24, 6), PLAIN),
    Net(
        "local response norm",
        _chain(lambda y: F.local_response_norm(y, 3)),
        {"stem": G(6, "stem.weight/0 stem.bias/0", frozen="padded with constant channels"), "head": HEAD},
        outcome="frozen",
    ),
    Net(
        "warped along a flow",
        lambda: Program(_sampled, stem=conv(3, 6), flow=conv(6, 2), head=conv(6, 2)),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0", "flow.weight/1 head.weight/1"),
            "flow": G(2, "flow.weight/0 flow.bias/0", frozen="its values are positions in an image, not channels,"),
            "head": HEAD,
        },
    ),
    Net(
        "spatial transformer",
        lambda: Program(_transformed, stem=conv(3, 6), locate=nn.Linear(6, 6), head=conv(6, 2)),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0", "locate.weight/1 head.weight/1"),
            "locate": G(3, "locate.weight/0 locate.bias/0", frozen="its values are an affine map, not channels,"),
            "head": HEAD,
        },
    ),
    Net(  # global pooling sets the strides of the result in place
        "pooling of channels-last images",
        _chain(lambda y: F.adaptive_avg_pool2d(y.contiguous(memory_format=torch.channels_last), 1)),
        PLAIN,
    ),
    Net("upsampled with antialiasing", _chain(lambda y: F.interpolate(y, scale_factor=2, mode="bicubic", antialias=True)), PLAIN),
    Net("a band of every channel", _chain(lambda y: y.triu().tril(2)), PLAIN),
]
