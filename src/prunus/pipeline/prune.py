"""`prune`: trace, score, allocate, remove and verify in one call, never returning a network that isn't proven."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.allocation import allocate
from prunus.errors import NothingPruned, PrunusWarning, VerificationFailed
from prunus.graph import trace
from prunus.graph.trace import Keep
from prunus.importance import score
from prunus.surgery import SurgeryRecord, randomise, remove, silence, verify
from prunus.surgery.remove import apply_record
from prunus.surgery.verify import verify_training
from prunus.types import (
    Allocator,
    Budget,
    ChannelGraph,
    Cost,
    Criterion,
    ExampleInputs,
    ForwardFn,
    LossFn,
    PruningPlan,
    Scores,
    VerificationReport,
    map_tensors,
)


@dataclass(frozen=True, eq=False)
class PruneResult:
    """The small network, how it was made and what it costs. ``verification`` is None only if ``verify=False`` was asked for."""

    model: nn.Module
    plan: PruningPlan
    record: SurgeryRecord
    before: Cost
    after: Cost
    verification: VerificationReport | None
    graph: ChannelGraph
    scores: Scores
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines: list[str] = []
        for t in self.plan.provenance["budget"]:
            lines.append(f"{t['target']}: {t['full']:,.0f} -> {t['achieved']:,.0f}, asked for <= {t['requested']:,.0f}")
        for name, before, after in (
            ("MACs", self.before.macs, self.after.macs),
            ("parameters", self.before.parameters, self.after.parameters),
        ):
            lines.append(f"{name} {before:,} -> {after:,} ({after / max(before, 1):.1%} left)")
        if self.verification is not None:
            error, tolerance = self.verification.max_error, self.verification.tolerance
            lines.append(f"removed == silenced: largest relative error {error:.1e} (tolerance {tolerance:.0e})")
        return "\n".join([*lines, *self.notes])


def prune(
    model: nn.Module,
    example_inputs: ExampleInputs,
    budget: Budget,
    criterion: str | Criterion = "l1",
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    allocator: str | Allocator = "global",
    keep: Keep = (),
    verify: bool = True,
    *,
    mixing: Literal["allow", "freeze"] = "allow",
    forward_fn: ForwardFn | None = None,
    train_inputs: ExampleInputs | None = None,
    batches: int | None = None,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    ema: nn.Module | None = None,
    **options: Any,
) -> PruneResult:
    """Prune ``model`` (which is untouched) to ``budget`` and prove the result: removed == silenced, in float64.

    With ``verify`` the surgery is checked on the model's own weights and on a randomised copy, whose branches can't hide an error
    behind zeros, in evaluation and in training mode. If it fails, the groups at fault are found by bisection, frozen with that
    reason, and the plan is made again.

    Args:
        keep, mixing, forward_fn, train_inputs: see `prunus.trace`.
        data, loss_fn, batches, seed, options: see `prunus.score`.
        optimizer, ema: moved along, see `prunus.remove`.

    Raises:
        PrunusError: what `trace`, `score`, `allocate` and `remove` raise.
        VerificationFailed: no subset of the groups could be proven.
    """
    graph = trace(model, example_inputs, keep, mixing, forward_fn, train_inputs)
    if not graph.prunable:
        shown = "; ".join(f"`{g.name}`: {g.frozen_because}" for g in graph.frozen[:3])
        raise NothingPruned(f"all {len(graph.groups)} groups are frozen, so nothing can be pruned. {shown}")
    scores = score(model, graph, criterion, data, loss_fn, forward_fn=forward_fn, batches=batches, seed=seed, **options)
    notes: list[str] = []
    while True:
        plan = allocate(graph, scores, budget, allocator)
        report = check_plan(model, graph, plan, example_inputs, forward_fn) if verify else None
        if report is None or report.passed:
            break
        culprits = _culprits(model, graph, plan, example_inputs, forward_fn, _pruned(plan))
        detail = report.detail or f"error {report.max_error:.1e}"
        reason = f"removal differs from silencing ({detail}): the network holds a width that the trace doesn't see"
        graph = graph.freeze(dict.fromkeys(culprits, reason))
        scores = replace(scores, by_group={name: s for name, s in scores.by_group.items() if name not in culprits})
        notes.append(f"frozen after verification failed on them: {', '.join(culprits)}")
        warnings.warn(f"{notes[-1]}; the plan is made again without them", PrunusWarning, stacklevel=2)
        if not graph.prunable:
            raise VerificationFailed(f"removal differs from silencing in every group: {report.detail}", report)
    small, record = remove(model, graph, plan, optimizer, ema)
    provenance = {**plan.provenance, "criterion": scores.criterion}
    plan = replace(plan, provenance=provenance)
    return PruneResult(small, plan, record, graph.cost(), graph.cost(plan), report, graph, scores, tuple(notes))


def check_plan(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, example_inputs: ExampleInputs, forward_fn: ForwardFn | None = None
) -> VerificationReport:
    """Worst of the verifications on the model's own weights and on a copy with random weights and inputs, in both modes."""
    small, record = remove(model, graph, plan)
    report = verify(silence(model, graph, plan), small, example_inputs, forward_fn=forward_fn)
    predicted, counted = graph.cost(plan).parameters, sum(p.numel() for p in small.parameters())
    if predicted != counted:
        detail = f"the plan predicts {predicted:,} parameters, the small network has {counted:,}"
        return VerificationReport(report.max_error, report.tolerance, False, detail)
    if not report.passed:
        return report
    twin = randomise(model)
    noisy = _noisy(example_inputs)
    structural = verify(silence(twin, graph, plan), apply_record(twin, record), noisy, forward_fn=forward_fn)
    if structural.max_error != structural.max_error:  # NaN: random weights overflow in this network, the check says nothing
        return replace(report, detail=f"{report.detail}; random weights overflow, so only the network's own were checked")
    training = verify_training(silence(twin, graph, plan), apply_record(twin, record), noisy, forward_fn=forward_fn)
    if not training.passed:
        return training
    return structural if not structural.passed or structural.max_error > report.max_error else report


def _noisy(inputs: Any) -> Any:
    """The same inputs with noise: constant images would let spatial errors cancel."""
    generator = torch.Generator().manual_seed(0)

    def add(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor + 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor)

    return map_tensors(add, inputs)


def _pruned(plan: PruningPlan) -> list[str]:
    return [name for name, mask in plan.keep.items() if not bool(mask.all())]


def _culprits(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    inputs: ExampleInputs,
    forward_fn: ForwardFn | None,
    names: Sequence[str],
) -> list[str]:
    """Groups that fail, by bisection of a failing set. Halves that only fail together: the second one is given up."""
    if len(names) == 1:
        return list(names)
    found: list[str] = []
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for half in halves:
        part = replace(plan, keep={name: plan.keep[name] for name in half})
        if not check_plan(model, graph, part, inputs, forward_fn).passed:
            found += _culprits(model, graph, part, inputs, forward_fn, half)
    return found or list(halves[1])
