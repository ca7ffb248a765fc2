"""Regions, windows, grids, Fourier transforms, shapes changed in place: what passes and what is frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops

from labels_seen import seen, w, x

BOXES = torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0], [1.0, 0.0, 0.0, 2.0, 2.0]])
PIXELS = "channels lie on a pixel axis"
GROUPS = "a deformable convolution in groups"
TRANSFORMED = "a Fourier transform runs over the channels"
MATRIX = "entries are masked by where they lie in a matrix"
STRIDES = "given other strides in place"


def deform(a: Tensor, offset: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
    return ops.deform_conv2d(a, offset, weight, *bias, padding=1)


def idx(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


CASES: dict[str, tuple[Any, ...]] = {
    "roi align": (lambda a: ops.roi_align(a, BOXES, 2), x(2, 3, 4, 4, a1=0), {"out": [{1: "0-2"}]}),
    "roi align pixels, boxes": (
        lambda a, b: ops.roi_align(a, b.abs(), 2),
        x(2, 3, 4, 4, a1=0, a2=50),
        x(1, 5, a1=70),
        {"out": [{1: "0-2"}], "frozen": {"70-74": "its values are the corners of regions", "50-53": PIXELS}},
    ),
    "ps roi pool": (lambda a: ops.ps_roi_pool(a, BOXES, 2), x(2, 8, 4, 4, a1=0), {"out": [{1: "0 4"}], "tied": ["0-3", "4-7"]}),
    "nms": (
        lambda a: ops.nms(a.abs().cumsum(1), torch.ones(3), 0.5),
        x(3, 4, a0=0),
        {"out": [{}], "frozen": {"0-2": "boxes are compared with one another"}},
    ),
    "deform": (
        deform,
        x(2, 3, 4, 4, a0=70, a1=0),
        x(2, 18, 4, 4, a1=50),
        w(5, 3, 3, 3, a0=100, a1=200),
        w(5, a0=300),
        {
            "out": [{0: "70 71", 1: "100-104"}],
            "tied": ["0 200", "1 201", "2 202", "100 300", "101 301", "102 302", "103 303", "104 304"],
            "frozen": {"50-67": "two offsets for each kernel position, not channels,"},
            "roles": ["reads 200-202", "writes 100-104", "writes 300-304"],
            "reading": [(1, 1)],
            "layers": ["deformable convolution(3, 3): 144 x [200-202] x [100-104] x [70 71]"],
        },
    ),
    "deform fixed": (
        deform,
        x(2, 3, 4, 4),
        x(2, 18, 4, 4),
        w(5, 3, 3, 3, a0=100, a1=200),
        {
            "out": [{1: "100-104"}],
            "frozen": {"200-202": "its weight also reads an input whose width is fixed"},
            "roles": ["reads 200-202", "writes 100-104"],
            "reading": [(1, 1)],
            "layers": ["deformable convolution(3, 3): 288 x [200-202] x [100-104]"],
        },
    ),
    "deform fixed weight": (
        deform,
        x(2, 3, 4, 4, a1=0),
        x(2, 18, 4, 4),
        w(5, 3, 3, 3, a0=100),
        {
            "out": [{1: "100-104"}],
            "frozen": {"0-2": "read by a weight whose width is fixed"},
            "roles": ["writes 100-104"],
            "reading": [(1, 1)],
            "layers": ["deformable convolution(3, 3): 288 x 3 x [100-104]"],
        },
    ),
    "deform grouped": (
        deform,
        x(2, 4, 4, 4, a1=0),
        x(2, 18, 4, 4),
        w(6, 2, 3, 3, a0=100, a1=200),
        w(6, a0=300),
        {
            "out": [{}],
            "frozen": {"0-3": GROUPS, "100-105": GROUPS, "200 201": GROUPS, "300-305": "meets a width that is fixed"},
            "roles": ["reads 200 201", "writes 100-105", "writes 300-305"],
            "reading": [(1, 1)],
            "layers": ["deformable convolution(3, 3) in 2 groups: 288 x 2 x 6"],
        },
    ),
    "deform two offsets": (
        deform,
        x(2, 4, 4, 4, a1=0, a2=60),
        x(2, 36, 4, 4),
        w(5, 4, 3, 3, a0=100, a1=200),
        {
            "out": [{1: "100-104"}],
            "tied": ["0 200", "1 201", "2 202", "3 203"],
            "frozen": {"60-63": PIXELS},
            "splits": [("0-3", 2)],
            "roles": ["reads 200-203", "writes 100-104"],
            "reading": [(1, 1)],
            "layers": ["deformable convolution(3, 3): 288 x [200-203] x [100-104]"],
        },
    ),
    "deform mask": (
        lambda a, o, wt, m: ops.deform_conv2d(a, o, wt, None, padding=1, mask=m),
        x(2, 3, 4, 4, a1=0),
        x(2, 18, 4, 4),
        w(5, 3, 3, 3, a1=200),
        x(2, 9, 4, 4, a1=50),
        {
            "out": [{}],
            "tied": ["0 200", "1 201", "2 202"],
            "frozen": {"50-58": "a weight for each kernel position, not a channel,"},
            "roles": ["reads 200-202"],
            "reading": [(1, 1)],
            "layers": ["deformable convolution(3, 3): 288 x [200-202] x 5"],
        },
    ),
    "unfold": (lambda a: F.unfold(a, 2), x(2, 3, 3, 4, a0=70, a1=0), {"out": [{0: "70 71", 1: "0 0 0 0 1 1 1 1 2 2 2 2"}]}),
    "unfold pixels": (
        lambda a: F.unfold(a, 2),
        x(2, 3, 3, 4, a2=60, a3=80),
        {"out": [{}], "frozen": {"60-62": PIXELS, "80-83": PIXELS}},
    ),
    "unfold no batch": (lambda a: F.unfold(a, 2), x(3, 3, 4, a0=0), {"out": [{0: "0 0 0 0 1 1 1 1 2 2 2 2"}]}),
    "fold": (lambda a: F.fold(a, (2, 3), 2), x(2, 8, 2, a0=70, a1=0), {"out": [{0: "70 71", 1: "0 4"}], "tied": ["0-3", "4-7"]}),
    "fold pixels": (lambda a: F.fold(a, (2, 3), 2), x(2, 8, 2, a2=60), {"out": [{}], "frozen": {"60 61": PIXELS}}),
    "grid sample": (
        lambda a, g: F.grid_sample(a, g, align_corners=False),
        x(2, 3, 4, 4, a1=0),
        x(2, 5, 5, 2),
        {"out": [{1: "0-2"}]},
    ),
    "grid sample of a weight": (
        lambda a, g: F.grid_sample(a, g, align_corners=False),
        w(2, 3, 4, 4, a1=0),
        w(2, 5, 5, 2),
        {"out": [{1: "0-2"}]},
    ),
    "grid sample all": (
        lambda a, g: F.grid_sample(a, g, align_corners=False),
        x(2, 3, 4, 4, a0=70, a1=0, a3=60),
        x(2, 5, 5, 2, a1=90),
        {
            "out": [{1: "0-2"}],
            "frozen": {
                "90-94": "its values are positions in an image, not channels,",
                "60-63": PIXELS,
                "70 71": "channels lie on the batch axis of a sampled image",
            },
        },
    ),
    "affine grid": (
        lambda a: F.affine_grid(a, [2, 1, 4, 4], align_corners=False),
        x(2, 2, 3, a1=0),
        {"out": [{}], "frozen": {"0 1": "its values are an affine map, not channels,"}},
    ),
    "fft": (lambda a: torch.fft.fft(a), x(2, 3, 4, a1=0, a2=50), {"out": [{1: "0-2"}], "frozen": {"50-53": TRANSFORMED}}),
    "fft of channels": (
        lambda a: torch.fft.fft(a, dim=1),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{2: "50-53"}], "frozen": {"0-2": TRANSFORMED}},
    ),
    "rfft2": (lambda a: torch.fft.rfft2(a), x(2, 3, 4, 4, a1=0), {"out": [{1: "0-2"}]}),
    "tril": (lambda a: a.tril(), x(2, 3, 3, a0=70, a1=0), {"out": [{0: "70 71"}], "frozen": {"0-2": MATRIX}}),
    "triu last": (lambda a: a.triu(), x(2, 3, 3, a2=0), {"out": [{}], "frozen": {"0-2": MATRIX}}),
    "complex": (
        lambda a: torch.view_as_complex(a),
        x(2, 3, 2, a1=0, a2=50),
        {"out": [{1: "0-2"}], "frozen": {"50 51": "real and imaginary parts aren't channels"}},
    ),
    "real": (lambda a: torch.view_as_real(torch.view_as_complex(a)), x(2, 3, 2, a1=0), {"out": [{1: "0-2"}]}),
    "t_": (lambda a: a.t_(), x(2, 3, a0=70, a1=0), {"out": [{0: "0-2", 1: "70 71"}]}),
    "transpose_": (lambda a: a.transpose_(0, -1), x(2, 3, 4, a0=70, a1=0), {"out": [{1: "0-2", 2: "70 71"}]}),
    "swapaxes_": (lambda a: a.swapaxes_(1, 2), x(2, 3, 4, a1=0, a2=50), {"out": [{1: "50-53", 2: "0-2"}]}),
    "unsqueeze_": (lambda a: a.unsqueeze_(1), x(2, 3, a0=70, a1=0), {"out": [{0: "70 71", 2: "0-2"}]}),
    "unsqueeze_ last": (lambda a: a.unsqueeze_(-1), x(2, 3, a1=0), {"out": [{1: "0-2"}]}),
    "squeeze_": (lambda a: a.squeeze_(), x(2, 1, 3, 1, a0=70, a2=0), {"out": [{0: "70 71", 1: "0-2"}]}),
    "squeeze_ alike": (
        lambda a: a.squeeze_(),
        x(3, 1, 3, a0=0),
        {"out": [{}], "frozen": {"0-2": "squeezed in place, where several axes have one size,"}},
    ),
    "as_strided_": (lambda a: a.as_strided_((2, 3, 1, 1), (3, 1, 3, 3)), x(2, 3, 1, 1, a1=0), {"out": [{1: "0-2"}]}),
    "as_strided_ of pixels": (
        lambda a: a.as_strided_((2, 3, 2, 1), (3, 1, 3, 3)),
        x(2, 3, 2, 1, a1=0),
        {"out": [{}], "frozen": {"0-2": STRIDES}},
    ),
    "as_strided_ transposed": (
        lambda a: a.as_strided_((2, 3, 1, 1), (1, 2, 1, 1)),
        x(2, 3, 1, 1, a1=0),
        {"out": [{}], "frozen": {"0-2": STRIDES}},
    ),
    "det": (
        lambda a: torch.linalg.det(a),
        x(2, 3, 3, a1=0),
        {
            "out": [{}],
            "frozen": {"0-2": "a matrix is decomposed or inverted, which makes all its entries depend on one another,"},
        },
    ),
    "cross entropy": (
        lambda a: F.nll_loss(a, idx(0, 1)),
        x(2, 3, a1=0),
        {"out": [{}], "frozen": {"0-2": "a loss compares the channels with targets"}},
    ),
    "unknown": (
        lambda a: torch.ops.aten._histogramdd_bin_edges(a, [2, 2, 2]),
        x(2, 3, a1=0),
        {"out": [{}, {}, {}], "frozen": {"0-2": "no rule for this operation (register one with `prunus.op_rule`)"}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_rule_says(name: str) -> None:
    program, *given, expected = CASES[name]
    assert seen(program, *given) == expected
