"""Constant folding: what a removed channel emits on average, or always, is added to what used to read it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.errors import EvidenceError, NothingPruned, PrunusWarning, UnknownName, UnsupportedNetwork
from prunus.graph.build import fingerprint
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun, to_device
from prunus.importance.readers import reading_call, reading_members
from prunus.reconstruction.reading_layers import ReadingLayer, ReadingLayers, in_evaluation
from prunus.surgery import SurgeryRecord, remove
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
    original's.
    """

    exact: tuple[str, ...]
    approximate: Mapping[str, float]
    not_folded: Mapping[str, str]
    changed: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"exactly compensated: {len(self.exact)} layers"] if self.exact else []
        lines += [f"approximate in `{name}`: off by up to {error:.0%} at a border" for name, error in self.approximate.items()]
        lines += [f"not compensated in `{name}`: {why}" for name, why in self.not_folded.items()]
        return "\n".join(lines) or "no layer reads a removed channel that emits anything"


@dataclass(frozen=True, eq=False)
class Compensation:
    """A small network whose remaining biases (or batch-norm means) stand in for the channels removed, its record and report."""

    model: nn.Module
    record: SurgeryRecord
    report: FoldingReport


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
    return _measure(model, graph, DataRun(data, forward_fn=forward_fn, batches=batches))[0]


def compensate(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    data: Iterable[Any],
    *,
    forward_fn: ForwardFn | None = None,
    batches: int | None = None,
) -> Compensation:
    """`prunus.remove`, each removed channel replaced by its mean activation, which is folded into what reads it.

    Means are measured in one pass over ``data`` on the unpruned network; see `fold_constants` for the formula and for what is
    exact. The record repeats the removal; the changed biases and means are saved with the network like any weight. A
    `PrunusWarning` names layers that can't be compensated.

    Raises:
        PrunusError: what `channel_means`, `fold_constants` and `prunus.remove` raise.
    """
    _check(model, graph, plan)
    means, layers = _measure(model, graph, DataRun(data, forward_fn=forward_fn, batches=batches))
    folded, report = fold_reads(model, graph, plan, means, layers)
    if report.not_folded:
        shown = "; ".join(f"`{name}`: {why}" for name, why in list(report.not_folded.items())[:3])
        warnings.warn(
            f"removed channels aren't compensated in {len(report.not_folded)} layers: {shown}", PrunusWarning, stacklevel=2
        )
    small, record = remove(folded, graph, plan)
    return Compensation(small, record, report)


@torch.no_grad()
def fold_reads(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, reads: Mapping[str, Tensor], layers: Mapping[str, ReadingLayer]
) -> tuple[nn.Module, FoldingReport]:
    """`fold_constants` for values by reading weight, (inputs,), and layers that have been looked at already."""
    _check(model, graph, plan)
    folded = copy.deepcopy(model)
    tensors = dict(named_tensors(folded))
    exact: list[str] = []
    approximate: dict[str, float] = {}
    not_folded: dict[str, str] = {}
    changed: dict[str, None] = {}
    for (name, axis), gone in removed_positions(graph, plan, ("reads",)).items():
        layer = layers.get(name)
        if layer is None or layer.axis != axis or name not in reads:
            not_folded[name] = "it isn't the plain weight of a convolution or linear layer that runs in evaluation mode"
            continue
        amount, largest, error = _amount(tensors[name], layer, gone, reads[name])
        if largest == 0:
            exact.append(name)
            continue
        if not layer.outlets:
            not_folded[name] = layer.why
            continue
        for outlet in layer.outlets:
            tensors[outlet.parameter] += (outlet.sign * amount).to(tensors[outlet.parameter])
            changed[outlet.parameter] = None
        if error <= UNIFORM * largest:
            exact.append(name)
        else:
            approximate[name] = error / largest
    return folded, FoldingReport(tuple(exact), approximate, not_folded, tuple(changed))


def _amount(weight: Tensor, layer: ReadingLayer, gone: Tensor, reads: Tensor) -> tuple[Tensor, float, float]:
    """What the inputs ``gone`` give on average if they are constants, (outputs,); the most at any position; the largest error."""
    removed = torch.zeros(weight.shape[layer.axis], dtype=torch.bool)
    removed[gone] = True
    values = torch.where(removed.repeat(layer.width // len(removed)), reads.double().cpu(), 0.0).to(weight.device)
    maps = [call.response(weight, values) for call in layer.calls]
    amount = torch.stack([found.mean(1) for found in maps]).mean(0)
    error = max(float((found - amount.unsqueeze(1)).abs().max()) for found in maps)
    return amount, max(float(found.abs().max()) for found in maps), error


def _check(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> None:
    if fingerprint(model) != graph.fingerprint:
        raise UnsupportedNetwork("the model's parameters don't have the names and shapes of the traced one: trace it again")
    if plan.num_removed == 0:
        raise NothingPruned("the plan removes no channel, so there is nothing to compensate")


def _by_reader(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, values: Mapping[str, Tensor], layers: Mapping[str, ReadingLayer]
) -> dict[str, Tensor]:
    """Values by group spread over what reads the group; those that are given by reading weight are taken as they are."""
    _check(model, graph, plan)
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


def _measure(model: nn.Module, graph: ChannelGraph, run: DataRun) -> tuple[dict[str, Tensor], dict[str, ReadingLayer]]:
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
