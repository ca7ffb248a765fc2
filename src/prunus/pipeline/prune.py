"""`prune`: trace, score, allocate, remove and verify in one call, never returning a network that isn't proven."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from prunus.allocation import DEFAULT, allocate
from prunus.budgets import Timing, shown_amount
from prunus.errors import NothingPruned
from prunus.graph import trace
from prunus.graph.trace import Keep
from prunus.importance import score
from prunus.importance.criteria import default_criterion
from prunus.pipeline.latency import PlanFor, Planned
from prunus.pipeline.removal import Compensate, removed, wants_data
from prunus.pipeline.time_network import latency_planner
from prunus.pipeline.timer import Timer
from prunus.pipeline.trying import JudgeFn, provable, tried_out
from prunus.reconstruction import FoldingReport
from prunus.reconstruction import recalibrate as recalibrated
from prunus.surgery import SurgeryRecord
from prunus.surgery.prove import Checks, prove
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
)


@dataclass(frozen=True, eq=False)
class PruneResult:
    """The small network, how it was made and what it costs. ``verification`` is None only if ``verify=False`` was asked for;
    ``compensation`` tells which layers make up for the removed channels, if ``compensate`` was, and ``recalibrated`` on how many
    images batch-norm statistics were estimated anew, if ``recalibrate`` was (0: the network has none)."""

    model: nn.Module
    plan: PruningPlan
    record: SurgeryRecord
    before: Cost
    after: Cost
    verification: VerificationReport | None
    graph: ChannelGraph
    scores: Scores
    notes: tuple[str, ...] = field(default=())
    compensation: FoldingReport | None = None
    recalibrated: int | None = None

    def __str__(self) -> str:
        lines: list[str] = []
        for t in self.plan.provenance["budget"]:
            full, achieved, requested = (
                shown_amount(t["target"], t[key]).removesuffix(f" {t['target']}") for key in ("full", "achieved", "requested")
            )
            lines.append(f"{t['target']}: {full} -> {achieved}, asked for <= {requested}" + _how_measured(t, self.plan))
        for name, before, after in (
            ("MACs", self.before.macs, self.after.macs),
            ("parameters", self.before.parameters, self.after.parameters),
        ):
            lines.append(f"{name} {before:,} -> {after:,} ({after / max(before, 1):.1%} left)")
        if "allocator" in self.plan.provenance:  # one's own allocator may not say
            lines.append(f"ranked by {self.scores.criterion}, allocated by {self.plan.provenance['allocator']}")
        if self.verification is not None:
            error, tolerance = self.verification.max_error, self.verification.tolerance
            lines.append(f"removed == silenced: largest relative error {error:.1e} (tolerance {tolerance:.0e})")
        if self.compensation is not None:
            lines.append(str(self.compensation))
        if self.recalibrated is not None:
            told = f"on {self.recalibrated:,} images, after the proof" if self.recalibrated else "nowhere: the network has none"
            lines.append(f"batch-norm statistics estimated anew {told}")
        return "\n".join([*lines, *self.notes])


def prune(
    model: nn.Module,
    example_inputs: ExampleInputs,
    budget: Budget,
    criterion: str | Criterion | None = None,
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    allocator: str | Allocator = DEFAULT,
    keep: Keep = (),
    verify: bool = True,
    *,
    mixing: Literal["allow", "freeze"] = "allow",
    whole_groups: bool = False,
    forward_fn: ForwardFn | None = None,
    train_inputs: ExampleInputs | None = None,
    batches: int | None = None,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    ema: nn.Module | None = None,
    compensate: Compensate | None = None,
    recalibrate: bool = False,
    evaluate: JudgeFn | None = None,
    timing: Timing | None = None,
    timer: Timer | None = None,
    **options: Any,
) -> PruneResult:
    """Prune ``model`` (which is untouched) to ``budget`` and prove the result: removed == silenced, in float64.

    With ``verify`` the surgery is checked on the model's own weights and on a randomised copy, whose branches can't hide an error
    behind zeros, in evaluation and in training mode. If it fails, the groups at fault are found by bisection, frozen with that
    reason, and the plan is made again.

    Args:
        keep, mixing, whole_groups, forward_fn, train_inputs: see `prunus.trace`.
        data, loss_fn, batches, seed, options: see `prunus.score`.
        optimizer, ema: moved along, see `prunus.remove`.
        compensate: ``"mean"`` puts the removed channels' mean activations into what read them, see `prunus.remove`; ``data`` are
            then read once more. The proof is that of the removal; what compensation does is in ``compensation``.
        recalibrate: estimate the small network's batch-norm statistics anew on ``data`` (at most ``batches``), after the proof,
            see `prunus.reconstruction.recalibrate`. Off unless asked for, since ``model`` in the result then isn't the silenced
            network any more; recipes do it by themselves. Behind `prunus.reconstruction.reconstruct`, which fits layers to
            the statistics that they find, it undoes part of the fit. ``ema`` keeps its statistics.
        evaluate: accuracy (higher = better) of a small network, which it may change; for allocators that try plans out
            (sensitivity, netadapt, search). What can't be shown exact is frozen before they start.
        criterion: see `prunus.score`; None is what measured best (docs/adr/0028): ``taylor`` where there are ``data``, and ``l1``
            where there are none.
        allocator: ``auto`` takes what measured best for such scores, see `prunus.ALLOCATORS`.
        timing: how latency is measured, where the budget asks for it: plans are made, their networks timed in fresh processes
            beside the full one, and made again, until the measured latency is within 5 % of the target; ``plan.provenance`` and
            ``after`` say what was measured. ``timer`` measures instead of this machine.

    Raises:
        PrunusError: what `trace`, `score`, `allocate` and `remove` raise.
        BudgetNotMet: also, no network was measured within 5 % of the latency that is asked for.
        VerificationFailed: no subset of the groups could be proven.
    """
    wants_data(compensate, data, recalibrate)
    graph = trace(model, example_inputs, keep, mixing, forward_fn, train_inputs, whole_groups=whole_groups)
    if not graph.prunable:
        shown = "; ".join(f"`{g.name}`: {g.frozen_because}" for g in graph.frozen[:3])
        raise NothingPruned(f"all {len(graph.groups)} groups are frozen, so nothing can be pruned. {shown}")
    criterion = criterion or default_criterion(data)
    scores = score(model, graph, criterion, data, loss_fn, forward_fn=forward_fn, batches=batches, seed=seed, **options)

    checks = Checks(model, example_inputs, forward_fn=forward_fn, train_inputs=train_inputs) if verify else None
    if checks is not None and evaluate is not None:
        graph = provable(model, graph, checks)

    def judge(graph: ChannelGraph) -> Callable[[PruningPlan], float] | None:
        return None if evaluate is None else tried_out(model, graph, evaluate)

    def planned(graph: ChannelGraph, plan_for: PlanFor) -> Planned:
        """A plan, proven unless that was switched off, with the groups frozen that the proof found at fault."""
        if checks is None:
            return Planned(graph, plan_for(graph, _of_prunable(scores, graph)))
        proof = prove(checks, graph, lambda graph: plan_for(graph, _of_prunable(scores, graph)))
        return Planned(proof.graph, proof.plan, proof.report, proof.notes)

    if budget.measured:
        asked = model, example_inputs, budget, allocator, timing or Timing(), timer
        with latency_planner(*asked, forward_fn=forward_fn, judge=judge) as latency:
            found = latency.proven(graph, planned)
    else:
        found = planned(graph, lambda graph, scores: allocate(graph, scores, budget, allocator, evaluate=judge(graph)))
    graph, plan, report, notes = found.graph, found.plan, found.report, found.notes
    scores = _of_prunable(scores, graph)
    small, record, folding = removed(model, graph, plan, optimizer, ema, compensate, data, forward_fn, batches)
    seen = recalibrated(small, data or (), forward_fn=forward_fn, max_batches=batches) if recalibrate else None
    provenance = {**plan.provenance, "criterion": scores.criterion}
    plan = replace(plan, provenance=provenance)
    before, after = graph.cost(), replace(graph.cost(plan), latency_ms=plan.predicted.latency_ms)
    measured = next((row["full"] for row in plan.provenance["budget"] if row["target"] == "latency"), None)
    before = replace(before, latency_ms=measured)
    return PruneResult(small, plan, record, before, after, report, graph, scores, notes, folding, seen)


def _how_measured(row: Mapping[str, Any], plan: PruningPlan) -> str:
    """Behind a row on latency: where it was measured, and what had been predicted."""
    if "predicted" not in row:
        return ""
    told = plan.provenance["latency"]
    threads = f"{told['threads']} thread{'s' * (told['threads'] != 1)}"
    predicted = shown_amount("latency", row["predicted"])
    return f"; measured on {told['runtime']}, {threads}, batch {told['batch']}; {predicted} predicted"


def _of_prunable(scores: Scores, graph: ChannelGraph) -> Scores:
    """The scores without those of groups that have been frozen since."""
    prunable = {group.name for group in graph.prunable}
    return replace(scores, by_group={name: s for name, s in scores.by_group.items() if name in prunable})
