"""Gates: a differentiable vector per group, multiplied in where the channel is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.graph.labels import named_tensors
from prunus.types import ChannelGraph

READING_FUNCTIONS: dict[Any, bool] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), True),
    F.linear: False,
}
"""Functions with a weight that reads their input, and whether channels are the input's second axis (else its last)."""


class Gates(TorchFunctionMode):
    """While active, every convolution and linear layer that reads a gated group gets its input times the gate.

    ``values`` maps group names to (num_channels,), or (batch, num_channels) for a gate of its own for each example. A gate of
    zeros silences. Only weights that are plain parameters of convolutions and linear layers are gated.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = dict(values)
        tensors = dict(named_tensors(model))
        order = {name: i for i, name in enumerate(self.values)}
        self._offsets = [0]
        for gate in self.values.values():
            self._offsets.append(self._offsets[-1] + gate.shape[-1])
        self._index: dict[int, Tensor] = {}
        for group in graph.groups:
            if group.name not in order:
                continue
            start = 1 + self._offsets[order[group.name]]
            for member in group.with_role("reads"):
                weight = tensors[member.parameter_axis.parameter]
                index = self._index.setdefault(
                    id(weight), torch.zeros(weight.shape[member.parameter_axis.axis], dtype=torch.int64)
                )
                channels = torch.arange(start, start + group.num_channels).unsqueeze(1)
                index[member.positions] = channels.expand_as(member.positions)
        self._joined: Tensor | None = None

    def __enter__(self) -> Any:
        gates = list(self.values.values())
        one = gates[0].new_ones((*gates[0].shape[:-1], 1))
        self._joined = torch.cat([one, *gates], dim=-1)  # entry 0 is the gate of everything that isn't gated
        return super().__enter__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in READING_FUNCTIONS:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            index = self._index.get(id(weight))
            if index is not None and args:
                args = (self._gated(args[0], index, READING_FUNCTIONS[func]), *args[1:])
        return func(*args, **kwargs)

    def _gated(self, x: Tensor, index: Tensor, channels_first: bool) -> Tensor:
        assert self._joined is not None
        width = x.shape[1] if channels_first else x.shape[-1]
        gate = self._joined[..., index.to(x.device).repeat(width // len(index))]
        if channels_first:
            return x * gate.reshape(*gate.shape[:-1] if gate.ndim > 1 else (1,), width, *[1] * (x.ndim - 2))
        return x * (gate if gate.ndim == 1 else gate.reshape(gate.shape[0], *[1] * (x.ndim - 2), width))
