"""Mean activations, measured where they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.errors import EvidenceError
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun, to_device
from prunus.importance.readers import reading_call, reading_members
from prunus.reconstruction.reading_layers import ReadingLayer, ReadingLayers, in_evaluation
from prunus.types import ChannelGraph, ForwardFn, call_model


def channel_means(
    model: nn.Module,
    graph: ChannelGraph,
    data: Iterable[Any],
    *,
    forward_fn: ForwardFn | None = None,
    batches: int | None = None,
) -> dict[str, Tensor]:
    """Mean over images and positions of every channel where it is read: reading weight -> float64 (its input channels,).

    Unlike the criterion `activation_mean` each reader has its own means: in a residual stream a channel is read in several places
    and isn't the same there; behind flatten every position of a channel has one. Only convolutions and linear layers that read
    a prunable group through a plain parameter are listed. A batch is ``(inputs, targets)`` or the inputs alone.

    Raises:
        EvidenceError: the data are empty, or an activation isn't finite.
    """
    return measure_reads(model, graph, DataRun(data, forward_fn=forward_fn, batches=batches))[0]


class _Means(TorchFunctionMode):
    """While active, sums what every one of ``weights`` reads."""

    def __init__(self, weights: Mapping[int, str]) -> None:
        super().__init__()
        self._weights = weights
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = reading_call(func, args, kwargs or {})
        if call is not None and id(call.weight) in self._weights:
            name, rows = self._weights[id(call.weight)], call.x.movedim(call.axis, 0).flatten(1)
            self.totals[name] = self.totals.get(name, 0.0) + rows.sum(1, dtype=torch.float64)
            self.counts[name] = self.counts.get(name, 0) + rows.shape[1]
        return func(*args, **(kwargs or {}))


def measure_reads(model: nn.Module, graph: ChannelGraph, run: DataRun) -> tuple[dict[str, Tensor], dict[str, ReadingLayer]]:
    """Means of what every layer reads, in one pass, and the layers as the first batch shows them."""
    tensors = dict(named_tensors(model))
    names = {m.parameter_axis.parameter for members in reading_members(model, graph).values() for m in members}
    means = _Means({id(tensors[name]): name for name in names})
    layers: dict[str, ReadingLayer] = {}
    with in_evaluation(model):
        for index, batch in enumerate(run):
            watch = ReadingLayers(model)
            with watch if index == 0 else nullcontext(), means:
                output = call_model(model, run.inputs(to_device(batch, model)), run.forward_fn)
            if index == 0:
                layers = watch.layers(output)
    found = {name: (total / means.counts[name]).cpu() for name, total in means.totals.items()}
    for name, mean in found.items():
        if not bool(torch.isfinite(mean).all()):
            raise EvidenceError(f"activations that `{name}` reads aren't finite on a batch: check the data and the weights")
    return found, layers
