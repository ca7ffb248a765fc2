"""Layers of which nothing is left: PyTorch's refuse to run on zero channels and are replaced by what they still give."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prunus.graph.branches import EMPTIABLE


class EmptiedConvolution(nn.Module):
    """A convolution without inputs gives its bias everywhere, one without outputs nothing; both of the right extent.

    Parameters keep their names, so that records, optimizers and averages still find them.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.transposed = bool(layer.transposed)
        self.groups = int(layer.groups)
        self.kernel_size, self.stride, self.dilation = tuple(layer.kernel_size), tuple(layer.stride), tuple(layer.dilation)
        self.output_padding = tuple(layer.output_padding)
        same = layer.padding == "same"
        spans = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        self.around = tuple(spans) if same else tuple(0 if layer.padding == "valid" else 2 * p for p in layer.padding)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, *extent) -> (batch, outputs, *extent of the convolution)."""
        extent = [self._extent(size, axis) for axis, size in enumerate(x.shape[2:])]
        values = self._nothing() if self.bias is None else self.bias
        return values.view(1, len(values), *[1] * len(extent)).expand(x.shape[0], -1, *extent)

    def _nothing(self) -> Tensor:
        """A zero for every output: sums over no weights."""
        sums = self.weight.sum(dim=[axis for axis in range(self.weight.ndim) if axis != int(self.transposed)])
        return sums.repeat(self.groups) if self.transposed else sums

    def _extent(self, size: int, axis: int) -> int:
        span, around, stride = self.dilation[axis] * (self.kernel_size[axis] - 1), self.around[axis], self.stride[axis]
        if self.transposed:
            return (size - 1) * stride - around + span + self.output_padding[axis] + 1
        return (size + around - span - 1) // stride + 1


def replace_emptied(model: nn.Module) -> None:
    """Replace, in place, every layer that has lost all its inputs or outputs."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            weight = getattr(layer, "weight", None)
            if type(layer) not in EMPTIABLE or not isinstance(weight, Tensor) or weight.numel():
                continue
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                setattr(parent, name, nn.Identity())
            elif isinstance(layer, nn.modules.conv._ConvNd):  # pyright: ignore[reportPrivateUsage]
                setattr(parent, name, EmptiedConvolution(layer).train(layer.training))
