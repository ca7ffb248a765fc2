"""A network with the user's way of calling it."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunus.types import ForwardFn


class Called(nn.Module):
    """A network with the user's way of calling it, for timing and export."""

    def __init__(self, model: nn.Module, forward_fn: ForwardFn) -> None:
        super().__init__()
        self.model, self.forward_fn = model, forward_fn

    def forward(self, inputs: Any) -> Any:
        return self.forward_fn(self.model, inputs)
