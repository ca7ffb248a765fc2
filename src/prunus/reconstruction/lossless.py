"""Lossless pruning: channels that are constants by construction, that nothing reads, or that repeat another one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import UnsupportedNetwork, VerificationFailed
from prunus.graph import trace
from prunus.graph.labels import named_tensors
from prunus.graph.trace import Keep
from prunus.importance.evidence import DataRun, to_device
from prunus.reconstruction.constants import fold_reads
from prunus.reconstruction.known_values import known_values
from prunus.reconstruction.reading_layers import ReadingLayer, ReadingLayers, in_evaluation
from prunus.reconstruction.redundant import Redundant, find_redundant
from prunus.surgery import SurgeryRecord, remove, verify
from prunus.surgery.prove import Checks, noisy, prove
from prunus.types import (
    ChannelGraph,
    Cost,
    ExampleInputs,
    ForwardFn,
    PruningPlan,
    VerificationReport,
    call_model,
    map_tensors,
)

TOLERANCE = 1e-10
"""Largest relative difference of outputs in float64, where all arithmetic is done."""
DATA_BATCHES = 8
"""So many batches of ``data`` are run through both networks."""


@dataclass(frozen=True, eq=False)
class LosslessResult:
    """The small network, how it was made, and what was found.

    ``constants``, ``unread`` and ``duplicates``: group name -> channels removed because they are constants by construction,
    because all weights that read them are zero, and because they repeat a channel that stays. ``not_lossless``: group name ->
    how many more channels are redundant, and why they had to stay. ``verification`` compares the outputs of the small network
    with those of the original, as delivered: in a float32 network the folded biases are rounded to float32.
    ``algebra`` is the largest relative difference before that rounding, all in float64; at most 1e-10.
    """

    model: nn.Module
    plan: PruningPlan
    record: SurgeryRecord
    before: Cost
    after: Cost
    verification: VerificationReport
    algebra: float
    constants: Mapping[str, int]
    unread: Mapping[str, int]
    duplicates: Mapping[str, int]
    not_lossless: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        kinds = (("constant", self.constants), ("unread", self.unread), ("duplicate", self.duplicates))
        counts = ", ".join(f"{sum(found.values())} {kind}" for kind, found in kinds)
        lines = [f"removed without loss: {counts} channels"]
        lines += [f"`{name}` keeps more: {why}" for name, why in self.not_lossless.items()]
        before, after = self.before, self.after
        lines.append(f"MACs {before.macs:,} -> {after.macs:,}, parameters {before.parameters:,} -> {after.parameters:,}")
        error, tolerance = self.verification.max_error, self.verification.tolerance
        lines.append(
            f"same outputs: largest relative error {error:.1e} (tolerance {tolerance:.0e}), {self.algebra:.1e} before rounding"
        )
        return "\n".join([*lines, *self.notes])


def prune_lossless(
    model: nn.Module,
    example_inputs: ExampleInputs,
    data: Iterable[Any] | None = None,
    *,
    keep: Keep = (),
    forward_fn: ForwardFn | None = None,
    train_inputs: ExampleInputs | None = None,
) -> LosslessResult:
    """Remove what the network doesn't need to compute the same function in evaluation mode; ``model`` is untouched.

    - Constants by construction (a norm with gamma == 0 emits the activation of its beta, a filter of zeros that of its bias, and
      so on through everything that reads nothing else): folded into the next bias, or the running mean of the next batch norm.
      Where the next convolution pads with zeros only channels whose constant is zero go. No threshold, no data.
    - Channels whose every reading weight is zero.
    - Duplicates (the same writing slices in all writers, the same norm parameters): the reading slices are added up.

    Where the program looks at values, or takes integers, constants can't be found, and a note says so.
    In training mode a batch norm no longer sees the channels' constants, which its statistics would have taken off anyway.

    Args:
        data: batches (``(inputs, targets)`` or inputs) on which the outputs are compared as well; the first 8 are.
        keep, forward_fn, train_inputs: see `prunus.trace`.

    Raises:
        NothingPruned: no channel is redundant, or none can go without loss; the message says which stay, and why.
        UnsupportedNetwork: the network can't be traced, or doesn't run in float64.
        VerificationFailed: no part of what was found could be proven.
    """
    graph = trace(model, example_inputs, keep, forward_fn=forward_fn, train_inputs=train_inputs)
    twin, inputs = copy.deepcopy(model).double(), _double(example_inputs)
    layers = _layers(twin, inputs, forward_fn)
    known, notes = _known(twin, inputs, forward_fn, layers)
    redundant = replace(find_redundant(twin, graph, known, layers), notes=notes)
    others = _others(model, example_inputs, data)

    def same_function(graph: ChannelGraph, plan: PruningPlan) -> VerificationReport:
        small = remove(_changed(twin, graph, plan, redundant, layers)[0], graph, plan)[0]
        return _compare(twin, small, [inputs, *map(_double, others)], forward_fn, TOLERANCE)

    checks = Checks(model, example_inputs, forward_fn=forward_fn, train_inputs=train_inputs, extra=(same_function,))
    proof = prove(checks, graph, redundant.plan)
    plan, algebra = proof.plan, same_function(proof.graph, proof.plan).max_error
    changed, names = _changed(twin, proof.graph, plan, redundant, layers)
    small, record = remove(_rounded(model, changed, names), proof.graph, plan)
    return LosslessResult(
        model=small,
        plan=plan,
        record=record,
        before=graph.cost(),
        after=graph.cost(plan),
        verification=_as_delivered(model, small, [example_inputs, *others], forward_fn, algebra),
        algebra=algebra,
        constants=redundant.counts("constants", plan),
        unread=redundant.counts("unread", plan),
        duplicates=redundant.counts("duplicates", plan),
        not_lossless={**redundant.not_lossless, **proof.frozen},
        notes=(*notes, *proof.notes),
    )


def _layers(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> dict[str, ReadingLayer]:
    watch = ReadingLayers(model)
    try:
        with in_evaluation(model, torch.float64), watch:
            output = call_model(model, inputs, forward_fn)
    except Exception as error:
        raise UnsupportedNetwork(
            f"the network doesn't run in float64, so that nothing can be proven: {type(error).__name__}: {error}"
        ) from error
    return watch.layers(output)


def _known(
    model: nn.Module, inputs: Any, forward_fn: ForwardFn | None, layers: Mapping[str, ReadingLayer]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What `known_values` finds; where it can't look, nothing is known, and a note says why."""
    try:
        return known_values(model, inputs, forward_fn=forward_fn), ()
    except UnsupportedNetwork as error:
        nothing = {name: torch.full((layer.width,), torch.nan) for name, layer in layers.items()}
        return nothing, (f"only unread and duplicate channels were looked for: {error}",)


def _changed(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, redundant: Redundant, layers: Mapping[str, ReadingLayer]
) -> tuple[nn.Module, list[str]]:
    """A copy in which readers make up for what ``plan`` removes, and the names of the tensors that changed."""
    changed, report = fold_reads(model, graph, plan, redundant.constants_read(plan), layers)
    if report.not_folded or report.approximate:
        raise VerificationFailed(f"a constant that was to be folded exactly isn't: {report}")
    merged = redundant.merge(dict(named_tensors(changed)), plan)
    return changed, [*report.changed, *merged]


@torch.no_grad()
def _rounded(model: nn.Module, changed: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy of ``model`` with the named tensors of ``changed``, in the model's own types."""
    result, values = copy.deepcopy(model), dict(named_tensors(changed))
    own = dict(named_tensors(result))
    for name in names:
        own[name].copy_(values[name])
    return result


def _as_delivered(
    model: nn.Module, small: nn.Module, several: Iterable[Any], forward_fn: ForwardFn | None, algebra: float
) -> VerificationReport:
    """The comparison with the constants rounded to the types of the model's weights."""
    tolerance = max(TOLERANCE, 100 * max(torch.finfo(t.dtype).eps for t in model.parameters() if t.is_floating_point()))
    report = _compare(model, small, several, forward_fn, tolerance)
    if not report.passed:
        raise VerificationFailed(
            f"without rounding the small network is the same ({algebra:.1e}), but its weights' type isn't precise enough for the "
            f"folded constants: outputs differ by {report.max_error:.1e}; prune the network in a wider type",
            report,
        )
    return report


def _others(model: nn.Module, inputs: Any, data: Iterable[Any] | None) -> list[Any]:
    """Further inputs: the same with noise, and those of the user's data."""
    if data is None:
        return [noisy(inputs)]
    run = DataRun(data)
    return [noisy(inputs), *(run.inputs(to_device(batch, model)) for batch in islice(iter(run), DATA_BATCHES))]


def _double(inputs: Any) -> Any:
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, inputs)


def _compare(
    model: nn.Module, small: nn.Module, several: Iterable[Any], forward_fn: ForwardFn | None, tolerance: float
) -> VerificationReport:
    """The worst report over several inputs."""
    reports = [verify(model, small, inputs, forward_fn=forward_fn, tolerance=tolerance) for inputs in several]
    return next((report for report in reports if not report.passed), max(reports, key=lambda report: report.max_error))
