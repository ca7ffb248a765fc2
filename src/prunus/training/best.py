"""The epoch that was best on the validation images, and its weights where they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn


class Best:
    """Remembers the first epoch of the highest accuracy."""

    def __init__(self) -> None:
        self.epoch, self.accuracy = 0, cast("float | None", None)
        self.weights: dict[str, Tensor] = {}

    def offer(self, accuracy: float, epoch: int, model: nn.Module | None) -> None:
        """Epoch ``epoch`` (from 1) had this accuracy, with the weights that ``model`` has now; None: weights aren't wanted."""
        if self.accuracy is not None and accuracy <= self.accuracy:
            return
        self.epoch, self.accuracy = epoch, accuracy
        if model is not None:
            state: dict[str, Any] = model.state_dict()
            self.weights = {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}

    def epochs_since(self, finished: int) -> int:
        """Finished epochs behind the best one."""
        return finished - self.epoch

    @torch.no_grad()
    def into_model(self, model: nn.Module) -> None:
        """Give ``model`` the weights of the best epoch."""
        state: dict[str, Any] = model.state_dict()
        for name, value in self.weights.items():
            state[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on needs."""
        return {"epoch": self.epoch, "accuracy": self.accuracy, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.epoch, self.accuracy, self.weights = state["epoch"], state["accuracy"], dict(state["weights"])
