"""Sampled points of a layer's output: which inputs such a point reads, and what the layer makes of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.importance.readers import ReadingCall


def draw_points(images: int, positions: int, per_image: int, generator: torch.Generator) -> Tensor:
    """``per_image`` different positions of every image (all, where there are fewer), counted image by image: int64 (n,)."""
    count = min(per_image, positions)
    chosen = torch.rand(images, positions, generator=generator).topk(count, dim=1).indices
    return (chosen + torch.arange(images).unsqueeze(1) * positions).reshape(-1)


def output_positions(call: ReadingCall, result: Tensor) -> tuple[int, int]:
    """Images in a call's result and positions in each: of a linear layer every axis between the first and the last counts."""
    images = len(call.x) if call.axis > 0 else 1
    return images, result.numel() // (images * call.weight.shape[0])


def inputs_at(call: ReadingCall, places: Tensor) -> Tensor:
    """What the layer reads at these places of its output, its patches: (places, inputs, kernel positions).

    ``places`` (int64) count the output's positions, image by image. Not for transposed convolutions.
    """
    if call.weight.ndim == 2:
        return call.x.reshape(-1, call.x.shape[-1])[places].unsqueeze(2)
    patches = _patches(call)
    where = torch.unravel_index(places, (len(patches), *patches.shape[2 : call.weight.ndim]))
    return patches[(where[0], slice(None), *where[1:])].flatten(2)


def outputs_at(call: ReadingCall, result: Tensor, places: Tensor) -> Tensor:
    """A result of the call, or what was made of it position by position, at these places: (places, outputs)."""
    if call.weight.ndim == 2:
        return result.reshape(-1, result.shape[-1])[places]
    maps = result if call.axis > 0 else result.unsqueeze(0)
    where = torch.unravel_index(places, (len(maps), *maps.shape[2:]))
    return maps[(where[0], slice(None), *where[1:])]


def _patches(call: ReadingCall) -> Tensor:
    """A view of the padded input: (images, input channels, *output size, *kernel size)."""
    kernel = call.weight.shape[2:]
    spatial = len(kernel)
    x = call.x if call.axis > 0 else call.x.unsqueeze(0)
    stride, dilation = (_tuple(call.settings.get(name, 1), spatial) for name in ("stride", "dilation"))
    padding = call.settings.get("padding", 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in _tuple(0 if padding == "valid" else padding, spatial)]
    view = F.pad(x, [side for pair in reversed(sides) for side in pair])
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        view = view.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    return view


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    return (value,) * length if isinstance(value, int) else tuple(value) * (length // len(value))
