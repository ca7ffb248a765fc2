"""Evidence from second derivatives: the loss by each channel's gate, twice, by backward passes through the gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import EvidenceError
from prunus.graph.gates import Gates
from prunus.importance.evidence import DataRun, for_gradients, to_device
from prunus.importance.evidence_gradients import Collector, gradients_of, only_direct, reading_weights
from prunus.importance.readers import DirectReaders, Gradients
from prunus.types import ChannelGraph

CHANNELS_AT_ONCE = 32
"""So many second derivatives are taken in one pass; memory grows with it."""
_NO_SECOND = "second derivatives can't be taken through this network"
_INSTEAD = "use a criterion of first order, e.g. taylor"


def second_order_changes(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Mean over minibatches of (H / 2 - g)^2, the squared change of the loss by a gate from one to zero: (num_channels,)."""
    return _over_batches(model, graph, run, lambda first, second: (second / 2 - first) ** 2)


def gate_curvatures(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Mean over minibatches of the second derivative of the loss by each gate: (num_channels,)."""
    return _over_batches(model, graph, run, lambda first, second: second)


def _over_batches(
    model: nn.Module, graph: ChannelGraph, run: DataRun, of_batch: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    weights, readers = reading_weights(model, graph)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    like = torch.ones(1) if parameter is None else parameter
    sizes = {g.name: g.num_channels for g in graph.groups}
    totals: dict[str, Tensor] = {}
    batches = 0
    with for_gradients(model, list(weights.values())):
        for batch in run:
            gates = {name: torch.ones(sizes[name], dtype=like.dtype, device=like.device, requires_grad=True) for name in readers}
            with DirectReaders() if batches == 0 else nullcontext() as seen, Gates(model, graph, gates):
                loss = run.loss(model, to_device(batch, model))
            if seen is not None:
                readers = only_direct(readers, weights, seen, loss)
            firsts = gradients_of(loss, [gates[name] for name in readers], create_graph=True)
            if batches == 0:
                _refuse_first_order_only(firsts)
            for name, first in zip(readers, firsts, strict=True):
                if first is not None:
                    part = of_batch(first.detach().double(), _diagonal(first, gates[name]).double()).cpu()
                    totals[name] = totals[name] + part if name in totals else part
            batches += 1
    return {name: total / batches for name, total in totals.items()}


def _refuse_first_order_only(firsts: Gradients) -> None:
    """Where a gradient may be unused, autograd takes what can't be differentiated twice for zero: look for such operations."""
    waiting, seen = [first.grad_fn for first in firsts if first is not None], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() in ("torch::autograd::Error", "torch::autograd::NotImplemented"):
            raise EvidenceError(f"{_NO_SECOND}: an operation in it has a backward pass that can't be differentiated; {_INSTEAD}")
        waiting.extend(following for following, _ in node.next_functions)


def _diagonal(first: Tensor, gate: Tensor) -> Tensor:
    """The second derivatives (num_channels,), a few channels at a time: one batched backward pass through the gradient each."""
    if not first.requires_grad:  # nothing between the gate and the loss bends it
        return torch.zeros_like(gate)
    rows: list[Tensor] = []
    for chosen in torch.eye(len(gate), dtype=gate.dtype, device=gate.device).split(CHANNELS_AT_ONCE):
        with _readable_errors():
            found = torch.autograd.grad(
                first, gate, chosen, retain_graph=True, is_grads_batched=True, allow_unused=True, materialize_grads=True
            )
        rows.append((found[0] * chosen).sum(1))
    return torch.cat(rows)


@contextmanager
def _readable_errors() -> Generator[None]:
    """Operations without a second derivative, or that can't be batched, are told; slow fallbacks aren't."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            yield
    except RuntimeError as error:
        raise EvidenceError(f"{_NO_SECOND}: {error}; {_INSTEAD}") from error


CURVATURE_COLLECTORS: dict[str, Collector] = {
    "second_order_changes": second_order_changes,
    "gate_curvatures": gate_curvatures,
}
