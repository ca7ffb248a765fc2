"""Constant folding: what a removed channel emits on average, or always, is added to what used to read it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.errors import EvidenceError, NothingPruned, UnknownName, UnsupportedNetwork
from prunus.graph.build import fingerprint
from prunus.graph.labels import named_tensors
from prunus.reconstruction.reading_layers import ReadingLayer, ReadingLayers, in_evaluation
from prunus.surgery.added_bias import why_no_bias
from prunus.surgery.remove import removed_positions
from prunus.types import ChannelGraph, ExampleInputs, ForwardFn, PruningPlan, call_model

UNIFORM = 1e-12
"""Contributions that differ by less than this share of the largest are the same at every position, but for rounding."""


@dataclass(frozen=True)
class FoldingReport:
    """Which reading layers (named by their weight) compensate for the removed channels, and how well, given those constants.

    ``exact``: at every position, for what is constant where the layer reads it; ``approximate``: layer -> the largest error at
    any position, as a share of the largest amount that was added (zero padding reads no constant, so borders differ from the
    interior); ``not_folded``: layer -> why it isn't compensated at all; ``changed``: parameters and buffers that differ from the
    original's; ``new_biases``: layers that were given a bias for it (`compensate` does that).
    """

    exact: tuple[str, ...]
    approximate: Mapping[str, float]
    not_folded: Mapping[str, str]
    changed: tuple[str, ...]
    new_biases: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"exactly compensated: {len(self.exact)} layers"] if self.exact else []
        lines += [f"approximate in `{name}`: off by up to {error:.0%} at a border" for name, error in self.approximate.items()]
        lines += [f"not compensated in `{name}`: {why}" for name, why in self.not_folded.items()]
        return "\n".join(lines) or "no layer reads a removed channel that emits anything"


@dataclass(frozen=True, eq=False)
class Shifts:
    """What to add to parameters and buffers so that a layer's outputs rise by what is to be folded, at full size."""

    by_tensor: Mapping[str, Tensor]
    by_layer: Mapping[str, Tensor]
    """For layers, by module name, that have no bias and would have to get one: (outputs,)."""


def fold_constants(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    values: Mapping[str, Tensor],
    example_inputs: ExampleInputs,
    *,
    forward_fn: ForwardFn | None = None,
) -> tuple[nn.Module, FoldingReport]:
    """Add to every layer that reads a channel which ``plan`` removes what the channel gave it, if it emits a constant.

        b[o]            += sum over removed c of value[c] * sum over y, x of W[o, c, y, x]
        running_mean[o] -= the same, where the convolution has no bias and a batch norm follows it directly

    Ye et al. 2018, "Rethinking the smaller-norm-less-informative assumption" (absorption of constant channels). Exact where the
    layer reads no zero padding. With padding (and for transposed convolutions) what a constant gives varies with the position,
    and its mean over the positions of the example's extent is added, the amount of least squared error; the paper adds that of
    the interior.

    Args:
        values: group name -> (num_channels,), what each channel emits where it is read, behind norm, activation and pooling; or,
            as `channel_means` gives it, reading weight -> (its input channels,), for channels that are read in several places.
            Entries of channels that stay are not looked at.
        example_inputs: one forward pass in evaluation mode on them shows which layer is followed by which norm.

    Returns:
        A copy of ``model`` at full size, to be given to `prunus.remove` with the same graph and plan, and the report. What can't
        be compensated (no bias and no norm; read by something that is no convolution or linear layer) is named in it.

    Raises:
        EvidenceError: a removed channel has no value, one that isn't finite, or the vector has another length.
        UnknownName: ``values`` names neither a group nor a weight.
        UnsupportedNetwork: the model isn't the one that was traced.
        NothingPruned: the plan removes no channel.
    """
    watch = ReadingLayers(model)
    with in_evaluation(model), watch:
        output = call_model(model, example_inputs, forward_fn)
    layers = watch.layers(output)
    return fold_reads(model, graph, plan, _by_reader(model, graph, plan, values, layers), layers)


@torch.no_grad()
def fold_reads(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, reads: Mapping[str, Tensor], layers: Mapping[str, ReadingLayer]
) -> tuple[nn.Module, FoldingReport]:
    """`fold_constants` for values by reading weight, (inputs,), and layers that have been looked at already."""
    check_plan(model, graph, plan)
    shifts, report = find_shifts(model, removed_positions(graph, plan, ("reads",)), reads, layers)
    folded = copy.deepcopy(model)
    tensors = dict(named_tensors(folded))
    for name, amount in shifts.by_tensor.items():
        tensors[name] += amount.to(tensors[name])
    return folded, report


@torch.no_grad()
def find_shifts(
    model: nn.Module,
    removed: Mapping[tuple[str, int], Tensor],
    reads: Mapping[str, Tensor],
    layers: Mapping[str, ReadingLayer],
    *,
    new_biases: bool = False,
) -> tuple[Shifts, FoldingReport]:
    """What makes up for the ``removed`` inputs, (reading weight, axis) -> indices, if they emit the constants ``reads``.

    With ``new_biases`` a layer without any place for a constant may get a bias.
    """
    tensors = dict(named_tensors(model))
    by_tensor: dict[str, Tensor] = {}
    by_layer: dict[str, Tensor] = {}
    exact: list[str] = []
    approximate: dict[str, float] = {}
    not_folded: dict[str, str] = {}
    for (name, axis), gone in removed.items():
        layer = layers.get(name)
        if layer is None or layer.axis != axis or name not in reads:
            not_folded[name] = "it isn't the plain weight of a convolution or linear layer that runs in evaluation mode"
            continue
        amount, largest, error = _amount(tensors[name], layer, gone, reads[name])
        owner = "" if layer.outlets or layer.has_bias or not new_biases else _owner(model, tensors[name])
        if largest == 0:
            exact.append(name)
            continue
        if not layer.outlets and not owner:
            not_folded[name] = layer.why
            continue
        if owner:
            by_layer[owner] = amount
        for outlet in layer.outlets:
            by_tensor[outlet.parameter] = outlet.sign * amount
        if error <= UNIFORM * largest:
            exact.append(name)
        else:
            approximate[name] = error / largest
    report = FoldingReport(tuple(exact), approximate, not_folded, tuple(by_tensor), tuple(by_layer))
    return Shifts(by_tensor, by_layer), report


def _owner(model: nn.Module, weight: Tensor) -> str:
    """The one layer whose weight this is, if it can get a bias; else ""."""
    owners = [(name, module) for name, module in model.named_modules() if getattr(module, "weight", None) is weight]
    if len(owners) != 1 or why_no_bias(owners[0][1]) is not None or getattr(owners[0][1], "transposed", False):
        return ""
    return owners[0][0]


def _amount(weight: Tensor, layer: ReadingLayer, gone: Tensor, reads: Tensor) -> tuple[Tensor, float, float]:
    """What the inputs ``gone`` give on average if they are constants, (outputs,); the most at any position; the largest error."""
    removed = torch.zeros(weight.shape[layer.axis], dtype=torch.bool)
    removed[gone] = True
    values = torch.where(removed.repeat(layer.width // len(removed)), reads.double().cpu(), 0.0).to(weight.device)
    maps = [call.response(weight, values) for call in layer.calls]
    amount = torch.stack([found.mean(1) for found in maps]).mean(0)
    error = max(float((found - amount.unsqueeze(1)).abs().max()) for found in maps)
    return amount, max(float(found.abs().max()) for found in maps), error


def check_plan(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> None:
    if fingerprint(model) != graph.fingerprint:
        raise UnsupportedNetwork("the model's parameters don't have the names and shapes of the traced one: trace it again")
    if plan.num_removed == 0:
        raise NothingPruned("the plan removes no channel, so there is nothing to compensate")


def _by_reader(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, values: Mapping[str, Tensor], layers: Mapping[str, ReadingLayer]
) -> dict[str, Tensor]:
    """Values by group spread over what reads the group; those that are given by reading weight are taken as they are."""
    check_plan(model, graph, plan)
    groups = {group.name: group for group in graph.groups}
    tensors = dict(named_tensors(model))
    for name in values:
        if name not in groups and name not in tensors:
            raise UnknownName.among("group or weight in values", name, {*groups, *layers})
    reads = {name: torch.zeros(layer.width, dtype=torch.float64) for name, layer in layers.items()}
    for name, keep in plan.keep.items():
        for member in groups[name].with_role("reads") if name in groups and not bool(keep.all()) else ():
            weight = member.parameter_axis.parameter
            layer = layers.get(weight)
            if layer is None or layer.axis != member.parameter_axis.axis:
                continue  # named in the report
            length = tensors[weight].shape[layer.axis]
            at = member.positions[~keep.cpu()]
            along = torch.arange(layer.width).view(-1, length)[:, at]  # convolution group, channel, position
            if weight in values:
                given = _vector(values[weight], layer.width, f"weight `{weight}`")[along]
            elif name in values:
                given = _vector(values[name], len(keep), f"group `{name}`")[~keep.cpu()].unsqueeze(1).expand_as(along)
            else:
                raise EvidenceError(f"`values` has nothing for group `{name}`, of which the plan removes channels")
            if not bool(torch.isfinite(given).all()):
                raise EvidenceError(f"the value of a removed channel of group `{name}` isn't finite")
            reads[weight][along] = given
    return reads


def _vector(given: Tensor, length: int, where: str) -> Tensor:
    if tuple(given.shape) != (length,):
        raise EvidenceError(f"the values of {where} have shape {tuple(given.shape)}, not ({length},)")
    return given.detach().cpu().double()
