"""An exponential moving average of the weights: less noisy than the last step's."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn


class Average:
    """The moving average of a network's parameters and floating-point buffers; other buffers are the last step's.

        average <- d_t average + (1 - d_t) weight,    d_t = min(decay, (1 + t) / (10 + t)) at step t = 1, 2, ...

    Polyak averaging with the warm-up of TensorFlow's ExponentialMovingAverage: without it the first weights would linger in short
    runs. Batch norm's statistics are averaged like weights, since they belong to them.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.values: dict[str, Tensor] = {name: t.detach().clone() for name, t in _state(model).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in _state(self.model).items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor.to(self.values[name]), 1 - decay)
            else:
                self.values[name].copy_(tensor)

    def share(self, accelerator: Accelerator) -> None:
        """Give every process the first one's averages, whose batch-norm statistics differ."""
        if accelerator.num_processes > 1:
            for value in self.values.values():
                broadcast(value)

    @torch.no_grad()
    def into_model(self) -> None:
        """Put the averages into the network for good."""
        for name, tensor in _state(self.model).items():
            tensor.copy_(self.values[name])

    @contextmanager
    def swapped_in(self) -> Generator[None, None, None]:
        """The network has the averages meanwhile."""
        own = {name: t.detach().clone() for name, t in _state(self.model).items()}
        self.into_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in _state(self.model).items():
                    tensor.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on needs."""
        return {"steps": self.steps, "values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.steps = state["steps"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name: the tensors themselves."""
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
