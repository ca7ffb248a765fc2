"""Factors of one layer: pure functions from its weight, and from moments of its outputs, to the weights of several layers."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.reconstruction.behind_relu import ROUNDS, nearest_behind_relu
from prunus.surgery.replaced import LayerShape

Row = list[tuple[LayerShape, Tensor]]
"""Layers in a row, each with its weight; a bias, if any, is the last one's."""


def spatial_matrix(weight: Tensor) -> Tensor:
    """A kernel (outputs, inputs, height, width) as the matrix (inputs * height, outputs * width) that is factorised."""
    outputs, inputs, height, width = weight.shape
    return weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)


def spatial_factors(shape: LayerShape, weight: Tensor, rank: int) -> Row:
    """A height x 1 convolution and a 1 x width one whose product is nearest to the layer's weight.

    Jaderberg, Vedaldi and Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014, scheme 2,
    by singular values. ``weight`` (outputs, inputs, height, width); strides, padding and dilation go along with their axis.
    """
    outputs, inputs, height, width = weight.shape
    u, s, v = torch.linalg.svd(spatial_matrix(weight.double()), full_matrices=False)
    root = s[:rank].sqrt()
    first = (u[:, :rank] * root).T.reshape(rank, inputs, height, 1)
    second = (root.unsqueeze(1) * v[:rank]).reshape(rank, outputs, 1, width).movedim(0, 1)

    def part(axis: int, values: tuple[int, ...], other: int) -> tuple[int, ...]:
        return tuple(value if i == axis else other for i, value in enumerate(values))

    vertical, horizontal = (
        replace(
            shape,
            kernel_size=part(axis, shape.kernel_size, 1),
            stride=part(axis, shape.stride, 1),
            padding=part(axis, shape.padding, 0),
            dilation=part(axis, shape.dilation, 1),
        )
        for axis in (0, 1)
    )
    return [(replace(vertical, outputs=rank, bias=False), first), (replace(horizontal, inputs=rank), second)]


def channel_factors(shape: LayerShape, weight: Tensor, basis: Tensor, reading: Tensor) -> Row:
    """The layer with as many outputs as there are columns in ``basis``, and a pointwise layer that makes the outputs of them.

    ``basis`` (outputs, rank), ``reading`` (rank, outputs): the map of responses is their product; see `reduced_rank`.
    """
    rank = basis.shape[1]
    first = (reading @ weight.double().flatten(1)).reshape(rank, *weight.shape[1:])
    return [
        (replace(shape, outputs=rank, bias=False), first),
        (pointwise(shape, rank), basis.reshape(*basis.shape, *[1] * _rank(shape))),
    ]


def pointwise(shape: LayerShape, inputs: int) -> LayerShape:
    """A layer that reads one position, behind a layer of this shape and with its outputs and bias."""
    ones = (1,) * _rank(shape)
    return LayerShape(shape.kind, inputs, shape.outputs, ones, ones, (0,) * _rank(shape), ones, shape.bias)


def _rank(shape: LayerShape) -> int:
    return len(shape.kernel_size)


def reduced_rank(xx: Tensor, xy: Tensor, rank: int, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The map of this rank that is nearest to y as a function of x: basis (outputs, rank), reading (rank, inputs).

    xx (inputs, inputs) and xy (inputs, outputs) are centred sums of products. The generalised singular value decomposition of
    Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", 2015, section 3: least
    squares, then the principal axes of what it predicts. With x = y they are the principal axes of the responses.
    """
    scale = xx.diagonal().mean().clamp_min(torch.finfo(xx.dtype).tiny)
    inner = xx + ridge * scale * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    full = torch.linalg.solve(inner, xy).T  # outputs, inputs
    predicted = full @ xx @ full.T
    _, axes = torch.linalg.eigh((predicted + predicted.T) / 2)
    basis = axes[:, -rank:].flip(1)
    return basis, basis.T @ full


def relu_reduced_rank(x: Tensor, y: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The map of this rank after which a ReLU gives nearly what it gives of y: basis, reading, and the shift (outputs,).

    Zhang et al. 2015, section 3.2: min over z and the map of |relu(y) - relu(z)|^2 + penalty |z - map(x)|^2 in turn, 30 rounds
    with a penalty of 0.1 and 20 with 1. x (points, inputs) is what the layer gives now, y (points, outputs) what it gave.
    """
    x, wanted = x.double(), y.double().clamp_min(0)
    mean_x = x.mean(0)
    centred = x - mean_x
    xx = centred.T @ centred

    def fit(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = z.mean(0)
        basis, reading = reduced_rank(xx, centred.T @ (z - mean), rank)
        return basis, reading, mean - basis @ (reading @ mean_x)

    found = fit(y.double())
    for penalty, rounds in ROUNDS:
        for _ in range(rounds):
            basis, reading, shift = found
            found = fit(nearest_behind_relu(x @ reading.T @ basis.T + shift, wanted, penalty))
    return found


def merged(row: Row) -> Row:
    """A pointwise layer and the one in front of it become one wherever that takes fewer multiply-adds."""
    row = list(row)
    index = 0
    while index + 1 < len(row):
        joined = _joined(*row[index], *row[index + 1])
        saved = 0 if joined is None else row[index][0].num_weights + row[index + 1][0].num_weights - joined[0].num_weights
        if joined is not None and saved > 0:
            row[index : index + 2] = [joined]
            index = max(index - 1, 0)
        else:
            index += 1
    return row


def _joined(a: LayerShape, first: Tensor, b: LayerShape, second: Tensor) -> tuple[LayerShape, Tensor] | None:
    """Two layers as one, where the second is pointwise (strides of one)."""
    if a.bias or a.groups > 1 or b.groups > 1 or math.prod(b.kernel_size) != 1 or math.prod(b.stride) != 1 or any(b.padding):
        return None
    weight = (second.flatten(1) @ first.flatten(1)).reshape(b.outputs, *first.shape[1:])
    return replace(a, outputs=b.outputs, bias=b.bias), weight


def product(row: Row) -> Tensor:
    """The weight of the one layer that the row amounts to: (outputs, inputs, *kernel), float64."""
    kernel = _without_groups(*row[0])
    for shape, weight in row[1:]:
        kernel = _composed(kernel, _without_groups(shape, weight))
    return kernel


def _without_groups(shape: LayerShape, weight: Tensor) -> Tensor:
    """The weight that a layer without groups would have, float64."""
    weight = weight.double()
    if shape.groups == 1:
        return weight
    dense = weight.new_zeros(shape.outputs, shape.inputs, *shape.kernel_size)
    output = torch.arange(shape.outputs, device=weight.device).unsqueeze(1)
    first = output // (shape.outputs // shape.groups) * weight.shape[1]
    dense[output, first + torch.arange(weight.shape[1], device=weight.device)] = weight
    return dense


def _composed(first: Tensor, second: Tensor) -> Tensor:
    """Kernel of ``second`` after ``first``, of which no axis is longer than one in both."""
    rank = first.ndim - 2
    a = first.reshape(first.shape[0], first.shape[1], -1)
    b = second.reshape(second.shape[0], second.shape[1], -1)
    joined = torch.einsum("rix,ory->oixy", a, b).reshape(len(b), a.shape[1], *first.shape[2:], *second.shape[2:])
    order = [axis for pair in zip(range(rank), range(rank, 2 * rank), strict=True) for axis in pair]
    kernel = [p * q for p, q in zip(first.shape[2:], second.shape[2:], strict=True)]
    return joined.permute(0, 1, *(2 + axis for axis in order)).reshape(len(b), a.shape[1], *kernel)


def run_row(row: Row, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """What the row gives for x, float64."""
    for (shape, weight), is_last in zip(row, [*[False] * (len(row) - 1), True], strict=True):
        x = run_layer(shape, weight, x, bias if is_last else None)
    return x


def run_layer(shape: LayerShape, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """What one layer gives."""
    function = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}[shape.kind]
    return function(x, weight.to(x), bias, shape.stride, shape.padding, shape.dilation, shape.groups)


def macs_of(row: list[LayerShape], extent: tuple[int, ...]) -> int:
    """Multiply-adds of layers in a row for one input of this extent (height, width)."""
    total = 0
    for shape in row:
        extent = output_extent(shape, extent)
        total += shape.num_weights * math.prod(extent)
    return total


def output_extent(shape: LayerShape, extent: tuple[int, ...]) -> tuple[int, ...]:
    """Extent of a layer's output."""
    axes = zip(extent, shape.kernel_size, shape.stride, shape.padding, shape.dilation, strict=True)
    return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in axes)
