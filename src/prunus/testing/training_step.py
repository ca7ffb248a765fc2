"""A training step of the small network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from prunus.errors import raise_if_out_of_memory
from prunus.graph.trace import cloned, tensors_in, twice
from prunus.surgery import remove
from prunus.surgery.prove import noisy
from prunus.types import ChannelGraph, ForwardFn, PruningPlan, VerificationReport, call_model


class TrainingStep:
    """Forward, backward and one step of SGD: what the original can, the small network must."""

    def __init__(self, model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> None:
        self.model, self.forward_fn = model, forward_fn
        self.candidates = (noisy(inputs), noisy(twice(inputs)))  # batch norm over one value per channel refuses to train

    def check(self, graph: ChannelGraph, plan: PruningPlan) -> VerificationReport:
        """Passed if the small network trains, or if the original doesn't on the same inputs."""
        small, _ = remove(self.model, graph, plan)
        for inputs in self.candidates:
            failure = self._failure(small, inputs)
            if failure is None:
                return VerificationReport(0.0, 0.0, True)
            if self._failure(copy.deepcopy(self.model), inputs) is None:
                return VerificationReport(0.0, 0.0, False, f"a training step fails: {failure}")
        return VerificationReport(0.0, 0.0, True)

    def _failure(self, model: nn.Module, inputs: Any) -> str | None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            return "no parameter requires a gradient"
        optimizer = torch.optim.SGD(parameters, lr=1e-6)
        try:
            with torch.enable_grad():
                torch.manual_seed(0)
                outputs = tensors_in(call_model(model.train(), cloned(inputs), self.forward_fn))
                losses = [out.mean() for out in outputs if out.requires_grad and out.numel()]
                if not losses:
                    return "no output has a gradient"
                torch.stack(losses).sum().backward()
                optimizer.step()
        except Exception as error:
            raise_if_out_of_memory(error)
            return f"{type(error).__name__}: {error}"
        return None
