"""Latency budgets: layers are measured against width, plans are predicted, and what comes out is measured until it is met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from torch import nn

from prunus.allocation import allocate
from prunus.allocation.latency import Correction, LatencyModel, with_model
from prunus.allocation.ranking import levels_at
from prunus.allocation.widths import Widths
from prunus.budgets import Timing, shown_amount
from prunus.errors import BudgetNotMet
from prunus.pipeline.called import Called
from prunus.pipeline.latency_reasons import why_not_met
from prunus.pipeline.time_layers import Progress, quiet, time_layers
from prunus.pipeline.timer import Timer, check_device
from prunus.surgery import remove
from prunus.types import (
    Allocator,
    Budget,
    ChannelGraph,
    ExampleInputs,
    ForwardFn,
    PruningPlan,
    Scores,
    VerificationReport,
)

WITHIN = 0.05
"""How far the measured latency may be from the target, as a share of it."""
_CLOSE = 0.02
"""Nearer than this no better plan is looked for; it is also how far below what it is asked for a plan may be predicted."""
_MOST = 8
"""Plans that are measured at most."""
_SHARES = (0.3, 0.6)
"""Shares of every group that the two networks lose which calibrate the model, beside the full one."""
_REFITS = 2
"""Measured plans after which the whole model is fit again; later ones only correct what it is asked for."""
Judge = Callable[[ChannelGraph], "Callable[[PruningPlan], float] | None"]
"""``judge(graph)`` gives the accuracy of a plan, for allocators that try plans out."""
PlanFor = Callable[[ChannelGraph, Scores], PruningPlan]


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan, the graph with the groups frozen that can't be removed from, and the proof of it, if one was asked for."""

    graph: ChannelGraph
    plan: PruningPlan
    report: VerificationReport | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """A network that was timed: predicted (ms, None for those that calibrate), measured, the full one's in the same turns."""

    channels: tuple[int, ...]
    predicted_ms: float | None
    measured_ms: float
    full_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


@dataclass(frozen=True, eq=False)
class _Tried:
    """A plan that was measured; ``off``: how far from the target, as a share of it."""

    off: float
    plan: PruningPlan
    measured: Measurement


class LatencyPlanner:
    """Finds plans whose measured latency is what a budget asks for. Layers are timed once, whole networks as they are planned.

    ``timer`` stands in for the machine in tests. After `plan`, ``full_ms`` is the full network's latency and ``measurements``
    what was timed.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: ExampleInputs,
        budget: Budget,
        allocator: str | Allocator,
        timing: Timing,
        timer: Timer,
        *,
        forward_fn: ForwardFn | None = None,
        judge: Judge = lambda _: None,
        progress: Progress = quiet,
    ) -> None:
        check_device(model)
        self.model, self.inputs, self.budget, self.allocator = model, inputs, budget, allocator
        self.timing, self.timer, self.forward_fn, self.progress = timing, timer, forward_fn, progress
        self.judge = judge
        self.full_ms = 0.0
        self.measurements: list[Measurement] = []
        self._timed: list[tuple[dict[str, int], float]] = []
        self._calibrating = 0
        self._layers: LatencyModel | None = None
        self._model: LatencyModel | None = None

    # -- graphs that know latency

    def timed(self, graph: ChannelGraph) -> ChannelGraph:
        """The graph with latency among its costs, by the latest calibration."""
        if self._layers is None:
            found = time_layers(graph, self.inputs, self.timing, self.timer, self.progress).cost_model
            self._layers = cast("LatencyModel", found)
        return with_model(graph, self._model or self._layers)

    def calibrate(self, graph: ChannelGraph, plans: Sequence[PruningPlan] = ()) -> None:
        """Time the full network and those that these plans leave, and fit the model to them."""
        names = [str(number) for number in range(len(plans))]
        networks = {"full": self.model, **{n: remove(self.model, graph, p)[0] for n, p in zip(names, plans, strict=True)}}
        self.progress("timing networks", 0, len(networks))
        found = self.timer.networks({name: self._called(network) for name, network in networks.items()})
        self.full_ms = found["full"].median_ms
        self._model = cast("LatencyModel", self.timed(graph).cost_model)
        counts = [dict[str, int](), *(plan.counts() for plan in plans)]
        measured = [found["full"], *(found[name] for name in names)]
        self._timed = [(kept, latency.median_ms) for kept, latency in zip(counts, measured, strict=True)]
        self._calibrating = len(self._timed)
        self._model = self._model.calibrated(self._timed)
        self.measurements = [self._noted(plan, None, found[n], found["full"]) for n, plan in zip(names, plans, strict=True)]

    # -- plans

    def proven(self, graph: ChannelGraph, planned: Callable[[ChannelGraph, PlanFor], Planned]) -> Planned:
        """The plan of `plan`, through ``planned``, which proves what a function plans and freezes what it can't.

        A first plan is proven before anything that it leaves is timed, and the last one before it is given back.
        """
        first = planned(graph, self.first_plan)
        if self.budget.latency is None:
            return first
        found = planned(first.graph, self.plan)
        return replace(found, notes=first.notes + found.notes)

    def first_plan(self, graph: ChannelGraph, scores: Scores) -> PruningPlan:
        """A plan by the layers and the full network alone, to be proven before anything that it leaves is timed."""
        if self.budget.latency is not None and not self.full_ms:
            self.calibrate(graph)
        try:
            return self._allocate(graph, scores, self._target())
        except BudgetNotMet as error:  # the measurements to come decide
            if error.plan is None or self.budget.latency is None:
                raise
            return error.plan

    def plan(self, graph: ChannelGraph, scores: Scores) -> PruningPlan:
        """The plan whose network, measured, is nearest to the budget.

        Raises:
            BudgetNotMet: its latency is more than 5 % off; the message says what the time goes to.
        """
        if self.budget.latency is None:
            return self._allocate(graph, scores, 0.0)
        uniform = Widths(self.timed(graph), scores, replace(self.budget, latency="0.001ms"))
        shares = [np.full(len(uniform.groups), share) for share in _SHARES]
        self.calibrate(graph, [uniform.plan(levels_at(uniform, share), "uniform") for share in shares])
        tried: list[_Tried] = []
        nudged = 1.0
        for _ in range(_MOST):
            plan = self._next(graph, scores, nudged)
            again = next((one for one in tried if one.plan.counts() == plan.counts()), None)
            if again is not None:
                nudged = self._away_from(again, nudged)
                continue
            nudged = 1.0
            tried.append(self._try(graph, plan, len(tried)))
            if tried[-1].off <= _CLOSE:
                break
        return self._best(graph, tried)

    def _away_from(self, again: _Tried, nudged: float) -> float:
        """After a plan that was measured before: allow finer widths, or if any is allowed, ask for a little more or less."""
        finer = self._model.relaxed() if self._model is not None and self.budget.liked_widths else None
        self._model = finer or self._model
        return nudged if finer else nudged * (1 + _CLOSE if again.measured.measured_ms < self._target() else 1 - _CLOSE)

    def _next(self, graph: ChannelGraph, scores: Scores, nudged: float) -> PruningPlan:
        """The plan that the corrected model takes for the budget's, or the nearest that there is."""
        try:
            return self._allocate(graph, scores, nudged * self._correction().predicted(self._target()))
        except BudgetNotMet as error:
            if error.plan is None:
                raise
            return error.plan

    def _try(self, graph: ChannelGraph, plan: PruningPlan, number: int) -> _Tried:
        """Remove, time beside the full network, and note."""
        self.progress("timing pruned networks", number, _MOST)
        predicted = self._correction().measured(self._ms(plan.counts()))
        small = remove(self.model, graph, plan)[0]
        found = self.timer.networks({"full": self._called(self.model), "small": self._called(small)})
        measurement = self._noted(plan, predicted, found["small"], found["full"])
        self.measurements.append(measurement)
        self._timed.append((plan.counts(), measurement.measured_ms))
        if number < _REFITS and self._model is not None:
            self._model = self._model.calibrated(self._timed)
        off = measurement.measured_ms / self._target() - 1
        if off < 0 and self._held_by_others(plan):
            off = 0.0
        return _Tried(abs(off), plan, measurement)

    def _best(self, graph: ChannelGraph, tried: Sequence[_Tried]) -> PruningPlan:
        best = min(tried, key=lambda one: one.off)
        off, plan, found = best.off, best.plan, best.measured
        others = [row for row in plan.provenance["budget"] if row["target"] != "latency"]
        row = {
            "target": "latency",
            "requested": self._target(),
            "full": self.full_ms,
            "achieved": found.measured_ms,
            "met": off <= WITHIN,
            "predicted": found.predicted_ms,
        }
        told = {"runtime": self.budget.runtime, **self._settings(), "measured": [asdict(one) for one in self.measurements]}
        cost = replace(plan.predicted, latency_ms=found.measured_ms)
        plan = PruningPlan(plan.keep, cost, {**plan.provenance, "budget": [row, *others], "latency": told})
        if off > WITHIN or not all(row["met"] for row in others):
            asked = shown_amount("latency", self._target())
            model = cast("LatencyModel", self.timed(graph).cost_model)
            raise BudgetNotMet(
                f"the budget latency <= {asked} ({self._target() / self.full_ms:.1%} of {shown_amount('latency', self.full_ms)}) "
                f"on {self.budget.runtime} isn't met: the nearest of {len(tried)} measured networks takes "
                f"{shown_amount('latency', found.measured_ms)}. {why_not_met(model, plan, found, self.budget)}",
                plan,
            )
        return plan

    # -- small things

    def _allocate(self, graph: ChannelGraph, scores: Scores, ms: float) -> PruningPlan:
        slack = {"latency": f"{ms:.9g}ms", "tolerance": max(self.budget.tolerance, _CLOSE)} if ms else {}
        budget = replace(self.budget, **cast("dict[str, Any]", slack))
        return allocate(self.timed(graph), scores, budget, self.allocator, evaluate=self.judge(graph))

    def _target(self) -> float:
        return self.budget.limit("latency", self.full_ms) if self.budget.latency is not None else 0.0

    def _ms(self, kept: Mapping[str, int]) -> float:
        model = self._model or self._layers
        assert model is not None
        return sum(model.parts(kept).values())

    def _correction(self) -> Correction:
        """By the networks of plans that were measured, which are alike; before there is one, by those that calibrate."""
        like = self._timed[self._calibrating :] or self._timed
        return Correction([(self._ms(kept), ms) for kept, ms in like])

    def _held_by_others(self, plan: PruningPlan) -> bool:
        """Whether another target allows no larger network."""
        rows = [row for row in plan.provenance["budget"] if row["target"] != "latency"]
        return any(row["achieved"] >= row["requested"] * (1 - max(self.budget.tolerance, _CLOSE)) for row in rows)

    def _noted(self, plan: PruningPlan, predicted: float | None, found: Any, full: Any) -> Measurement:
        """In proportion to the full network of the same turns, where the budget is a share of it; else as it is."""
        scale = self.full_ms / full.median_ms if isinstance(self.budget.latency, float) else 1.0
        times = (found.median_ms * scale, full.median_ms, found.p10_ms * scale, found.p90_ms * scale)
        return Measurement(tuple(plan.counts().values()), predicted, *times, found.runs)

    def _called(self, network: nn.Module) -> nn.Module:
        return Called(network, self.forward_fn) if self.forward_fn is not None else network

    def _settings(self) -> dict[str, Any]:
        settings = {name: value for name, value in asdict(self.timing).items() if name != "cache"}
        return {**settings, "fresh_process": getattr(self.timer, "in_fresh_process", False)}
