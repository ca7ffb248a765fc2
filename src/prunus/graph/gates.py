"""Gates: a differentiable vector per group, multiplied in where the channel is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.graph.labels import named_tensors
from prunus.types import ChannelGraph, Role

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
        self._offsets = [0]
        for gate in self.values.values():
            self._offsets.append(self._offsets[-1] + gate.shape[-1])
        self._index = self._positions(model, graph, "reads")
        self._joined: Tensor | None = None

    def _positions(self, model: nn.Module, graph: ChannelGraph, role: Role) -> dict[int, Tensor]:
        """Identity of a weight -> which gate belongs to each index along its axis of this role: 1 + its number, 0 for none."""
        tensors = dict(named_tensors(model))
        starts = {name: 1 + offset for name, offset in zip(self.values, self._offsets, strict=False)}
        found: dict[int, Tensor] = {}
        for group in graph.groups:
            for member in group.with_role(role) if group.name in starts else ():
                weight, axis = tensors[member.parameter_axis.parameter], member.parameter_axis.axis
                index = found.setdefault(id(weight), torch.zeros(weight.shape[axis], dtype=torch.int64))
                channels = torch.arange(group.num_channels).unsqueeze(1) + starts[group.name]
                index[member.positions] = channels.expand_as(member.positions)
        return found

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
        if width != len(index):  # grouped convolutions read the same index of their weight in every group
            index = index.repeat(width // len(index))
        gate = self._joined.index_select(-1, index.to(x.device))
        if channels_first:
            return x * gate.reshape(*gate.shape[:-1] if gate.ndim > 1 else (1,), width, *[1] * (x.ndim - 2))
        return x * (gate if gate.ndim == 1 else gate.reshape(gate.shape[0], *[1] * (x.ndim - 2), width))
