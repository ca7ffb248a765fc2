"""Tracing without the arithmetic: convolutions and matrix products return zeros of the right shape."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from prunus.graph.op_call import is_mutating, is_pointwise

aten = torch.ops.aten
_VALUE_OPS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "torchvision::nms"}
_VALUE_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class ValuesNeeded(Exception):
    """The network's control flow looks at values; zeros won't do."""


@cache
def needs_values(func: Any) -> bool:
    """Whether the result's shape or the caller's next step depends on values."""
    return func._schema.name in _VALUE_OPS or any(tag in func.tags for tag in _VALUE_TAGS)


def shape_only(func: Any, args: tuple[Any, ...]) -> Any:
    """Zeros of the results' shapes for the costly operations, None for all others."""
    if func is aten.convolution.default:
        return _convolution(args)
    if func is aten.native_batch_norm.default:
        return _batch_norm(args)
    if func is aten._scaled_dot_product_flash_attention_for_cpu.default:
        return _attention(args)
    if _writes_values_only(func):
        return args[0]
    if func in (aten.addmm.default, aten.baddbmm.default):
        a, b = args[1], args[2]
    elif func in (aten.mm.default, aten.bmm.default):
        a, b = args[0], args[1]
    else:
        return None
    if a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        return None  # let the real operation raise its own error
    return a.new_zeros((*a.shape[:-1], b.shape[-1]))


@cache
def _writes_values_only(func: Any) -> bool:
    """An in-place element-wise operation changes nothing but values."""
    return is_mutating(func) and func._schema.name.endswith("_") and is_pointwise(func)


def _batch_norm(args: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    x, training = args[0], args[5]
    saved = x.new_zeros(x.shape[1] if training else 0)
    return torch.zeros_like(x), saved, saved.clone()


def _attention(args: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The result, laid out in memory as the queries are, and the logarithm of the sums."""
    return torch.zeros_like(args[0]), args[0].new_zeros(args[0].shape[:-1])


def _convolution(args: tuple[Any, ...]) -> torch.Tensor | None:
    x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args
    spatial = x.ndim - 2
    if weight.ndim != x.ndim or x.shape[1] != (weight.shape[0] if transposed else weight.shape[1] * groups):
        return None  # let the real operation raise its own error

    def each(values: Any) -> Any:
        return values * spatial if len(values) == 1 else values

    sizes: list[int] = []
    for size, kernel, step, pad, spread, extra in zip(
        x.shape[2:], weight.shape[2:], each(stride), each(padding), each(dilation), each(output_padding), strict=True
    ):
        reach = spread * (kernel - 1)
        sizes.append((size - 1) * step - 2 * pad + reach + extra + 1 if transposed else (size + 2 * pad - reach - 1) // step + 1)
    if min(sizes) < 1:
        return None
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    return x.new_zeros((x.shape[0], channels, *sizes))
