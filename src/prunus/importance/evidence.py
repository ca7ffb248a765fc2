"""What criteria learn from data: collected in one pass, in evaluation mode, leaving the model as it was found."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import EvidenceError
from prunus.graph.gates import Gates
from prunus.graph.group_view import channel_sum, sum_along
from prunus.graph.labels import named_tensors
from prunus.importance.readers import DirectReaders, Gradients, reading_members
from prunus.types import ChannelGraph, ChannelGroup, ForwardFn, GroupMember, LossFn, call_model, first_tensor, map_tensors


class NoBatches(EvidenceError):
    """The data loader yields nothing."""


class NoGradient(EvidenceError):
    """The loss is a number without derivatives, such as a count of errors."""


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
    """Data, loss and call convention of a collection; ``seed`` is for collectors that draw."""

    data: Iterable[Any]
    loss_fn: LossFn | None = None
    forward_fn: ForwardFn | None = None
    batches: int | None = None
    seed: int = 0

    def output(self, model: nn.Module, batch: Any) -> Any:
        """What the model makes of the batch's inputs."""
        pair = _pair(batch)
        if pair is None and (self.loss_fn is None or self.forward_fn is None):
            kind = type(batch).__name__
            raise EvidenceError(f"the loader yields a {kind}: yield (inputs, targets), or give forward_fn and loss_fn")
        return call_model(model, self.inputs(batch), self.forward_fn)

    def loss_of(self, output: Any, batch: Any) -> Tensor:
        """Mean loss of the batch, a finite scalar; cross entropy where no ``loss_fn`` was given."""
        loss = self.loss_fn(output, batch) if self.loss_fn is not None else _cross_entropy(output, batch[1])
        if not isinstance(cast("Any", loss), Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(cast("Any", loss), Tensor) else type(loss).__name__
            raise EvidenceError(f"loss_fn(output, batch) must return the batch's mean, a tensor with one value, not {shape}")
        if not bool(torch.isfinite(loss)):
            raise EvidenceError(f"the loss is {loss.item()} on a scoring batch, so scores would mean nothing: check the data")
        return loss.reshape(())

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss of the batch, through which gradients flow."""
        loss = self.loss_of(self.output(model, batch), batch)
        if not loss.requires_grad:
            raise NoGradient("the loss doesn't depend on the network's weights through autograd: don't detach it")
        return loss

    def inputs(self, batch: Any) -> Any:
        """The first part of a batch ``(inputs, targets)``, or all of any other batch."""
        pair = _pair(batch)
        return batch if pair is None else pair[0]

    def __iter__(self) -> Iterator[Any]:
        empty = True
        for batch in islice(self.data, self.batches):
            empty = False
            yield batch
        if empty:
            raise NoBatches("the data loader yields nothing, so the criterion can't score: check the data set and drop_last")


Collector: TypeAlias = Callable[[nn.Module, ChannelGraph, DataRun], dict[str, Tensor]]


def _pair(batch: Any) -> tuple[Any, ...] | None:
    parts = tuple(cast("Iterable[Any]", batch)) if isinstance(batch, (tuple, list)) else ()
    return parts if len(parts) > 1 else None


def _cross_entropy(output: Any, targets: Any) -> Tensor:
    if not isinstance(output, Tensor) or not isinstance(targets, Tensor):
        raise EvidenceError(
            f"the default cross entropy needs a tensor of logits and one of targets, not {type(output).__name__} and "
            f"{type(targets).__name__}: give your own loss_fn(output, batch)"
        )
    return F.cross_entropy(output, targets)


def gate_gradients(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Mean over minibatches of the squared derivative of the batch-mean loss by each channel's gate; see `gate_derivatives`."""
    totals: dict[str, Tensor] = {}
    count = 0
    for derivatives in gate_derivatives(model, graph, run):
        for name, values in derivatives.items():
            totals[name] = totals[name] + values**2 if name in totals else values**2
        count += 1
    return {name: total / count for name, total in totals.items()}


def gate_derivatives(model: nn.Module, graph: ChannelGraph, run: DataRun) -> Iterator[dict[str, Tensor]]:
    """Derivative of every minibatch's mean loss by each channel's gate: group name -> float64 (num_channels,).

    No gate is inserted: the derivative is the sum over the group's reading slices of weight x dL/dweight. That isn't so for
    weights that the network computes from parameters (weight standardisation): groups that such weights read are left out.
    """
    tensors = dict(named_tensors(model))
    readers = reading_members(model, graph)
    weights = {m.parameter_axis.parameter: tensors[m.parameter_axis.parameter] for members in readers.values() for m in members}
    if not weights:
        return
    with for_gradients(model, list(weights.values())):
        for index, batch in enumerate(run):
            with DirectReaders() if index == 0 else nullcontext() as seen:
                loss = run.loss(model, to_device(batch, model))
            if seen is not None and seen.computed:
                indirect = seen.indirect(loss, weights.values())
                readers = without(readers, {name for name, weight in weights.items() if id(weight) in indirect})
            gradients = cast("Gradients", torch.autograd.grad(loss, list(weights.values()), allow_unused=True))
            products = {n: w.detach() * g for (n, w), g in zip(weights.items(), gradients, strict=True) if g is not None}
            yield dict(_by_group(readers, products))


def _by_group(readers: Mapping[str, list[GroupMember]], products: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """dL/dgate of one batch for every group, from weight x dL/dweight of every reading weight."""
    sums: dict[tuple[str, int], Tensor] = {}
    for name, members in readers.items():
        parts: list[Tensor] = []
        for member in members:
            where = (member.parameter_axis.parameter, member.parameter_axis.axis)
            if where[0] in products:
                if where not in sums:
                    sums[where] = sum_along(products[where[0]], where[1])
                parts.append(channel_sum(member, sums[where]))
        if parts:
            yield name, torch.stack(parts).sum(0).double()


def example_gate_gradients(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Mean over minibatches of the sum over examples of the squared derivative by each example's own gate.

    Gates sit in front of convolutions and linear layers; groups that anything else reads are left out.
    """
    tensors = dict(named_tensors(model))
    readers = reading_members(model, graph)
    weights = {m.parameter_axis.parameter: tensors[m.parameter_axis.parameter] for members in readers.values() for m in members}
    if not weights:
        return {}
    sizes = {g.name: g.num_channels for g in graph.groups}
    totals = {name: torch.zeros(sizes[name], dtype=torch.float64) for name in readers}
    used: set[str] = set()
    count = 0
    with for_gradients(model, list(weights.values())):
        for batch in run:
            batch = to_device(batch, model)
            gates = _example_gates(model, batch, {name: sizes[name] for name in readers})
            with DirectReaders() if count == 0 else nullcontext() as seen:
                loss = _gated_loss(model, graph, run, batch, gates)
            if seen is not None:
                indirect = seen.indirect(loss, weights.values())
                readers = without(readers, {name for name, weight in weights.items() if id(weight) in indirect})
            gradients = cast("Gradients", torch.autograd.grad(loss, list(gates.values()), allow_unused=True))
            for name, gradient in zip(gates, gradients, strict=True):
                if gradient is not None and name in readers:
                    used.add(name)
                    totals[name] += (gradient.double() ** 2).sum(0).cpu()
            count += 1
    return {name: totals[name] / count for name in totals if name in used}


def _example_gates(model: nn.Module, batch: Any, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    example = first_tensor(batch)  # inputs come first, in a batch of any form
    if example is None or example.ndim == 0:
        raise EvidenceError("the per-example variant needs a tensor among the inputs, with the examples along its first axis")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return {
        n: torch.ones(len(example), size, dtype=dtype, device=example.device, requires_grad=True) for n, size in sizes.items()
    }


def _gated_loss(model: nn.Module, graph: ChannelGraph, run: DataRun, batch: Any, gates: Mapping[str, Tensor]) -> Tensor:
    try:
        with Gates(model, graph, gates):
            return run.loss(model, batch)
    except RuntimeError as error:
        text = f"the per-example variant needs the examples along the first axis of every layer's input: {error}"
        raise EvidenceError(text) from error


def without(readers: Mapping[str, list[GroupMember]], weights: set[str]) -> dict[str, list[GroupMember]]:
    """The groups that none of ``weights`` reads."""
    return {name: members for name, members in readers.items() if not any(m.parameter_axis.parameter in weights for m in members)}


@contextmanager
def for_gradients(model: nn.Module, weights: list[Tensor]) -> Generator[None]:
    """Evaluation mode, gradients for frozen parameters too; modes, flags, buffers and random state are put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(weight, weight.requires_grad) for weight in weights]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
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
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def to_device(batch: Any, model: nn.Module) -> Any:
    """The batch on the device of the model's parameters."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return batch
    return map_tensors(lambda tensor: tensor.to(parameter.device), batch)
