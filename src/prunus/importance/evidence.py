"""What criteria learn from data: collected in one pass, in evaluation mode, leaving the model as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import EvidenceError
from prunus.graph.gates import Gates
from prunus.graph.group_view import channel_sum, sum_along
from prunus.graph.labels import named_tensors
from prunus.types import ChannelGraph, ChannelGroup, ForwardFn, LossFn, call_model, first_tensor


@dataclass(frozen=True, eq=False)
class Evidence:
    """Means over minibatches, by kind and group: each (num_channels,). ``seed`` is for criteria that draw."""

    by_kind: Mapping[str, Mapping[str, Tensor]] = field(default_factory=lambda: dict[str, Mapping[str, Tensor]]())
    seed: int = 0

    def of(self, kind: str, group: ChannelGroup) -> Tensor | None:
        """Evidence of one kind for one group, or None where there is none (nothing reads the group through a weight)."""
        return self.by_kind.get(kind, {}).get(group.name)


@dataclass(frozen=True)
class DataRun:
    """Data, loss and call convention of a collection."""

    data: Iterable[Any]
    loss_fn: LossFn | None = None
    forward_fn: ForwardFn | None = None
    batches: int | None = None

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss of the batch; cross entropy where no ``loss_fn`` was given."""
        output = call_model(model, batch[0], self.forward_fn)
        loss = self.loss_fn(output, batch) if self.loss_fn is not None else F.cross_entropy(output, batch[1])
        if not bool(torch.isfinite(loss)):
            raise EvidenceError(f"the loss is {float(loss)} on a scoring batch: scores would mean nothing; check the data and the loss")
        return loss

    def __iter__(self) -> Iterator[Any]:
        empty = True
        for batch in islice(self.data, self.batches):
            empty = False
            yield batch
        if empty:
            raise EvidenceError("the data loader yields nothing: a criterion that needs data can't score; check the data set and drop_last")


def gate_gradients(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Mean over minibatches of the squared derivative of the batch-mean loss by each channel's gate.

    No gate is inserted: the derivative is the sum over the group's reading slices of weight x dL/dweight.
    """
    tensors = dict(named_tensors(model))
    readers = {g.name: [m for m in g.with_role("reads") if isinstance(tensors[m.parameter_axis.parameter], nn.Parameter)] for g in graph.prunable}
    names = sorted({m.parameter_axis.parameter for members in readers.values() for m in members})
    weights = [tensors[name] for name in names]
    totals: dict[str, Tensor] = {}
    count = 0
    with _for_gradients(model, weights):
        for batch in run:
            gradients = torch.autograd.grad(run.loss(model, _to_device(batch, model)), weights, allow_unused=True)
            products = {n: w.detach() * g for n, w, g in zip(names, weights, gradients, strict=True) if g is not None}
            sums: dict[tuple[str, int], Tensor] = {}
            for group in graph.prunable:
                parts: list[Tensor] = []
                for member in readers[group.name]:
                    where = member.parameter_axis
                    if where.parameter in products:
                        key = (where.parameter, where.axis)
                        if key not in sums:
                            sums[key] = sum_along(products[where.parameter], where.axis)
                        parts.append(channel_sum(member, sums[key]))
                if parts:
                    squared = torch.stack(parts).sum(0).double() ** 2
                    totals[group.name] = totals[group.name] + squared if group.name in totals else squared
            count += 1
    return {name: total / count for name, total in totals.items()}


def example_gate_gradients(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Mean over minibatches of the sum over examples of the squared derivative by each example's own gate."""
    readable = [g for g in graph.prunable if g.with_role("reads")]
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    totals = {g.name: torch.zeros(g.num_channels, dtype=torch.float64) for g in readable}
    used: set[str] = set()
    count = 0
    with _for_gradients(model, []):
        for batch in run:
            batch = _to_device(batch, model)
            example = first_tensor(batch[0])
            if example is None:
                raise EvidenceError("the per-example variant needs a tensor among the inputs, with the examples along its first axis")
            gates = {g.name: torch.ones(len(example), g.num_channels, dtype=dtype, device=example.device, requires_grad=True) for g in readable}
            try:
                with Gates(model, graph, gates):
                    loss = run.loss(model, batch)
            except RuntimeError as error:
                raise EvidenceError(f"the per-example variant needs the examples along the first axis of every layer's input: {error}") from error
            gradients = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
            for name, gradient in zip(gates, gradients, strict=True):
                if gradient is not None:
                    used.add(name)
                    totals[name] += (gradient.double() ** 2).sum(0).cpu()
            count += 1
    return {name: totals[name] / count for name in used}


COLLECTORS: dict[str, Callable[[nn.Module, ChannelGraph, DataRun], dict[str, Tensor]]] = {
    "gate_gradients": gate_gradients,
    "example_gate_gradients": example_gate_gradients,
}


@contextmanager
def _for_gradients(model: nn.Module, weights: list[Tensor]) -> Iterator[None]:
    """Evaluation mode (batch statistics must not move), gradients for frozen parameters too; put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(weight, weight.requires_grad) for weight in weights]
    try:
        model.eval()
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weight, flag in flags:
            weight.requires_grad_(flag)


def _to_device(batch: Any, model: nn.Module) -> Any:
    parameter = next(model.parameters(), None)
    if parameter is None:
        return batch

    def move(leaf: Any) -> Any:
        return leaf.to(parameter.device) if isinstance(leaf, Tensor) else leaf

    return torch.utils._pytree.tree_map(move, batch)  # pyright: ignore
