"""Evidence from gradients: products at the points where a channel is read, on weights and norms, and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from prunus.errors import EvidenceError
from prunus.graph.group_view import channel_sum, sum_along
from prunus.graph.labels import named_tensors
from prunus.importance.combine import normalise
from prunus.importance.evidence import DataRun, for_gradients, to_device, without
from prunus.importance.readers import DirectReaders, Gradients, reading_members
from prunus.importance.taps import Reduction, Taps, by_channel
from prunus.types import ChannelGraph, ChannelGroup, GroupMember, first_tensor

Collector: TypeAlias = Callable[[nn.Module, ChannelGraph, DataRun], dict[str, Tensor]]


def product_means(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Mean over examples of abs(mean over the map of activation x gradient): (num_channels,)."""
    totals, examples, _ = _at_reads(model, graph, run, "product", lambda v, p: v.abs().sum(0) / max(p))
    return {name: total / examples for name, total in totals.items()}


def product_sums(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Sum over minibatches of the mean over examples and map of activation x gradient, with its sign: (num_channels,)."""
    return _at_reads(model, graph, run, "product", lambda v, p: v.mean(0) / max(p))[0]


def absolute_products(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Mean over minibatches of the mean of abs(activation x gradient), divided by its L2 norm over the group: (num_channels,)."""
    totals, _, batches = _at_reads(model, graph, run, "absolute_product", lambda v, p: normalise(v.mean(0) / sum(p), "l2"))
    return {name: total / batches for name, total in totals.items()}


def gradient_means(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Mean over examples and positions of abs(gradient by the activation): (num_channels,)."""
    totals, examples, _ = _at_reads(model, graph, run, "absolute_gradient", lambda v, p: v.sum(0) / sum(p))
    return {name: total / examples for name, total in totals.items()}


def _at_reads(
    model: nn.Module, graph: ChannelGraph, run: DataRun, reduction: Reduction, of_batch: Callable[[Tensor, list[int]], Tensor]
) -> tuple[dict[str, Tensor], int, int]:
    """Sum over minibatches of ``of_batch(values, positions)``, (num_channels,), and the number of examples and of minibatches.

    ``values`` (examples, num_channels) are summed over all positions at which a channel is read; gradients are those of each
    example's own loss: the batch-mean loss times the number of examples. Groups that computed weights read are left out.
    """
    weights, readers = reading_weights(model, graph)
    totals: dict[str, Tensor] = {}
    count = batches = 0
    with for_gradients(model, list(weights.values())):
        for batch in run:
            batch = to_device(batch, model)
            examples = _number_of_examples(batch)
            taps = Taps(weights.values(), reduction, examples)
            with DirectReaders() if batches == 0 else nullcontext() as seen, taps:
                loss = run.loss(model, batch)
            if seen is not None:
                readers = only_direct(readers, weights, seen, loss)
            found = gradients_of(loss, [read.gate for read in taps.reads])
            for name, values, positions in by_channel(model, readers, taps.reads, found):
                part = of_batch(values.double() * examples, positions).cpu()
                totals[name] = totals[name] + part if name in totals else part
            count, batches = count + examples, batches + 1
    return totals, count, batches


def reading_weights(model: nn.Module, graph: ChannelGraph) -> tuple[dict[str, Tensor], dict[str, list[GroupMember]]]:
    """The weights through which prunable groups are read, by name, and each group's reading members."""
    tensors, readers = dict(named_tensors(model)), reading_members(model, graph)
    names = (m.parameter_axis.parameter for members in readers.values() for m in members)
    return {name: tensors[name] for name in names}, readers


def only_direct(
    readers: Mapping[str, list[GroupMember]], weights: Mapping[str, Tensor], seen: DirectReaders, loss: Tensor
) -> dict[str, list[GroupMember]]:
    """The groups that only plain parameters of convolutions and linear layers read."""
    indirect = seen.indirect(loss, weights.values())
    return without(readers, {name for name, weight in weights.items() if id(weight) in indirect})


def gradients_of(loss: Tensor, tensors: Sequence[Tensor], *, create_graph: bool = False) -> Gradients:
    """Derivatives of the loss, None by what it doesn't depend on; none of none."""
    if not tensors:
        return []
    return cast("Gradients", torch.autograd.grad(loss, tensors, allow_unused=True, create_graph=create_graph))


def _number_of_examples(batch: Any) -> int:
    example = first_tensor(batch)  # inputs come first, in a batch of any form
    if example is None or example.ndim == 0:
        raise EvidenceError("this criterion needs a tensor among the inputs, with the examples along its first axis")
    return len(example)


Terms: TypeAlias = "list[list[tuple[GroupMember, str]]]"
"""What a group's score is taken on: for every part (a weight, a norm layer), its members and parameter names."""


def _on_parameters(
    model: nn.Module,
    graph: ChannelGraph,
    run: DataRun,
    terms_of: Callable[[ChannelGroup, Mapping[str, Tensor]], Terms],
    of_part: Callable[[Sequence[GroupMember], Mapping[str, Tensor]], Tensor],
) -> dict[str, Tensor]:
    """Mean over minibatches of ``of_part`` for each part of a group, from weight x dL/dweight: (parts, num_channels)."""
    tensors = {name: tensor for name, tensor in named_tensors(model) if isinstance(tensor, nn.Parameter)}
    terms = {group.name: terms_of(group, tensors) for group in graph.prunable}
    wanted = {name: tensors[name] for parts in terms.values() for part in parts for _, name in part}
    totals: dict[str, Tensor] = {}
    batches = 0
    with for_gradients(model, list(wanted.values())):
        for batch in run:
            loss = run.loss(model, to_device(batch, model))
            found = gradients_of(loss, list(wanted.values()))
            products = {n: _product(w.detach(), g) for (n, w), g in zip(wanted.items(), found, strict=True) if g is not None}
            for group, parts in terms.items():
                used = [[m for m, name in part if name in products] for part in parts]
                if found_parts := [of_part(part, products) for part in used if part]:
                    stacked = torch.stack(found_parts).double().cpu()
                    totals[group] = totals[group] + stacked if group in totals else stacked
            batches += 1
    return {name: total / batches for name, total in totals.items()}


def _product(weight: Tensor, gradient: Tensor) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(dtype) * gradient.to(dtype)


def weight_products(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Mean over minibatches of the sum over a filter of (weight x dL/dweight)^2, squared before it: (writers, num_channels)."""

    def terms_of(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Terms:
        names = [(m, m.parameter_axis.parameter) for m in group.with_role("writes")]
        return [[(m, name)] for m, name in names if name in tensors and tensors[name].ndim > 1]

    def of_part(part: Sequence[GroupMember], products: Mapping[str, Tensor]) -> Tensor:
        axis = part[0].parameter_axis
        return channel_sum(part[0], sum_along(products[axis.parameter] ** 2, axis.axis))

    return _on_parameters(model, graph, run, terms_of, of_part)


def norm_products(model: nn.Module, graph: ChannelGraph, run: DataRun, *, shift: bool) -> dict[str, Tensor]:
    """Mean over minibatches of (gamma dL/dgamma + beta dL/dbeta)^2, beta only with ``shift``: (norm layers, num_channels)."""

    def terms_of(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Terms:
        members = {m.parameter_axis.parameter: m for m in group.members}
        pairs = [(norm.scale, norm.shift if shift else None) for norm in graph.norms]
        return [
            [(members[name], name) for name in pair if name is not None and name in members and name in tensors]
            for pair in dict.fromkeys(pairs)
            if pair[0] in members
        ]

    def of_part(part: Sequence[GroupMember], products: Mapping[str, Tensor]) -> Tensor:
        sums = [channel_sum(m, sum_along(products[m.parameter_axis.parameter], m.parameter_axis.axis)) for m in part]
        return torch.stack(sums).sum(0) ** 2

    return _on_parameters(model, graph, run, terms_of, of_part)


GRADIENT_COLLECTORS: dict[str, Collector] = {
    "product_means": product_means,
    "product_sums": product_sums,
    "absolute_products": absolute_products,
    "gradient_means": gradient_means,
    "weight_products": weight_products,
    "norm_products": partial(norm_products, shift=True),
    "norm_scale_products": partial(norm_products, shift=False),
}
