"""Proof of a plan: removal must equal silencing in both modes; groups at fault are found, frozen, and the plan is made again."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn

from prunus.errors import PrunusError, PrunusWarning, VerificationFailed, raise_if_out_of_memory
from prunus.graph.trace import twice
from prunus.surgery.culprits import Crash, crash_of, find_culprits
from prunus.surgery.remove import remove
from prunus.surgery.silence import silence
from prunus.surgery.verify import amplification, randomise, settled, verify, verify_training
from prunus.types import ChannelGraph, ExampleInputs, ForwardFn, PruningPlan, VerificationReport, map_tensors

CHAOTIC = 1e4
"""Amplification of rounding errors from which on equal networks may differ by more than the tolerance of `verify`."""
Check: TypeAlias = Callable[[ChannelGraph, PruningPlan], VerificationReport]


@dataclass(frozen=True, eq=False)
class Proof:
    """A plan that holds: ``graph`` with the groups at fault frozen, ``frozen`` their reasons, ``notes`` what to tell the user."""

    graph: ChannelGraph
    plan: PruningPlan
    report: VerificationReport
    frozen: dict[str, str]
    notes: tuple[str, ...]


class Checks:
    """Everything that must hold of a plan for one network; the copy with random weights is made once, when it is needed.

    Args:
        own_weights: also check on the network's own weights. Off for a network that is already randomised, which is then
            checked as it is.
        extra: further checks, run last.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs,
        *,
        forward_fn: ForwardFn | None = None,
        train_inputs: ExampleInputs | None = None,
        own_weights: bool = True,
        extra: Sequence[Check] = (),
    ) -> None:
        self.model, self.inputs, self.forward_fn = model, example_inputs, forward_fn
        self._noisy = noisy(example_inputs)
        self._train_inputs: Any = None
        self._given_train_inputs = example_inputs if train_inputs is None else train_inputs
        self._twin = None if own_weights else model
        self._settled = False
        self._last: tuple[nn.Module, PruningPlan, nn.Module, nn.Module] | None = None
        first = (self.on_own_weights,) if own_weights else ()
        self.all: tuple[Check, ...] = (*first, self.predicted_parameters, self.on_random_weights, self.in_training, *extra)

    @property
    def twin(self) -> nn.Module:
        """The network with random weights, behind which no error can hide."""
        if self._twin is None:
            self._twin = randomise(self.model)
        return self._twin

    @property
    def train_inputs(self) -> Any:
        """Noisy inputs on which the network trains: as given, else two unlike ones (equal ones have no variance to divide by)."""
        if self._train_inputs is None:
            self._train_inputs = noisy(self._given_train_inputs)
            if crash_of(copy.deepcopy(self.model).train(), self._train_inputs, self.forward_fn) is not None:
                self._train_inputs = noisy(twice(self._given_train_inputs))
        return self._train_inputs

    def run(self, graph: ChannelGraph, plan: PruningPlan) -> tuple[VerificationReport, Check | None]:
        """The report of the check that fails, with it; else the worst report and None."""
        worst: VerificationReport | None = None
        for check in self.all:
            report = tried(check, graph, plan)
            if not report.passed:
                return report, check
            if worst is None or report.max_error > worst.max_error:
                worst = replace(report, detail=f"{worst.detail}; {report.detail}".strip("; ")) if worst else report
        assert worst is not None
        return worst, None

    def on_own_weights(self, graph: ChannelGraph, plan: PruningPlan) -> VerificationReport:
        """Removed == silenced on the network and inputs as given."""
        return self._compare(self.model, self.inputs, graph, plan)

    def on_random_weights(self, graph: ChannelGraph, plan: PruningPlan) -> VerificationReport:
        """Removed == silenced on random weights and noisy inputs."""
        report = self._compare(self.twin, self._noisy, graph, plan)
        if math.isnan(report.max_error) and self.twin is not self.model:  # says nothing about the plan
            detail = "random weights overflow, so only the network's own were checked"
            return VerificationReport(0.0, report.tolerance, True, detail)
        if not report.passed and self._settle():
            return self.on_random_weights(graph, plan)
        return report

    def _settle(self) -> bool:
        """Give random weights on which rounding errors grow without bounds, so that they say nothing about the plan, statistics
        of batch norm on which they don't; whether that was done now."""
        if self._settled:
            return False
        self._settled = True
        before = amplification(self.twin, self._noisy, self.forward_fn)
        if not before > CHAOTIC:
            return False
        calmer = settled(self.twin, self.train_inputs, self.forward_fn)
        if not amplification(calmer, self._noisy, self.forward_fn) < before:
            return False
        self._twin, self._last = calmer, None
        return True

    def in_training(self, graph: ChannelGraph, plan: PruningPlan) -> VerificationReport:
        """Removed == silenced in training mode."""
        silent, small = self._pair(self.twin, graph, plan)
        report = verify_training(silent, small, self.train_inputs, forward_fn=self.forward_fn)
        if report.passed:  # its tolerance is another one: a passed report must not become the worst of all
            return VerificationReport(0.0, report.tolerance, True)
        return report

    def predicted_parameters(self, graph: ChannelGraph, plan: PruningPlan) -> VerificationReport:
        """The closed form must count what the small network has."""
        _, small = self._pair(self.model, graph, plan)
        predicted, counted = graph.cost(plan).parameters, sum(p.numel() for p in small.parameters())
        detail = f"the plan predicts {predicted:,} parameters, the small network has {counted:,}"
        return VerificationReport(0.0, 0.0, predicted == counted, "" if predicted == counted else detail)

    def _compare(self, model: nn.Module, inputs: Any, graph: ChannelGraph, plan: PruningPlan) -> VerificationReport:
        silent, small = self._pair(model, graph, plan)
        return verify(silent, small, inputs, forward_fn=self.forward_fn)

    def _pair(self, model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> tuple[nn.Module, nn.Module]:
        """The silenced and the small network; the last pair is kept, because the next check mostly asks for it again."""
        if self._last is None or self._last[0] is not model or self._last[1] is not plan:
            self._last = None  # frees the old pair before the new one is made
            self._last = model, plan, silence(model, graph, plan), remove(model, graph, plan)[0]
        return self._last[2:]

    def crash(self, graph: ChannelGraph, plan: PruningPlan) -> Crash | None:
        """Where the small network's forward pass breaks in evaluation or, on inputs that the original takes, in training mode."""
        try:
            small, _ = remove(self.model, graph, plan)
        except Exception as error:  # surgery itself breaks down, which its own check tells
            raise_if_out_of_memory(error)
            return None
        found = crash_of(small.eval(), self.inputs, self.forward_fn)
        if found is not None:
            return found
        found = crash_of(small.train(), self.train_inputs, self.forward_fn)
        if found is None or crash_of(copy.deepcopy(self.model).train(), self.train_inputs, self.forward_fn) is not None:
            return None
        return found


def tried(check: Check, graph: ChannelGraph, plan: PruningPlan) -> VerificationReport:
    """The check's report; surgery that breaks down is a failed check of the groups at fault, not the end of all others."""
    try:
        return check(graph, plan)
    except (MemoryError, torch.OutOfMemoryError, PrunusError):
        raise
    except Exception as error:
        raise_if_out_of_memory(error)
        detail = f"surgery itself breaks down, please report it: {type(error).__name__}: {error}"
        return VerificationReport(math.inf, 0.0, False, detail)


def prove(checks: Checks, graph: ChannelGraph, plan_for: Callable[[ChannelGraph], PruningPlan]) -> Proof:
    """Make plans with ``plan_for`` until one passes all checks, freezing the groups at fault with what was found.

    Every round gives up repairs of at least one group, or freezes one, so that there is an end.

    Raises:
        VerificationFailed: no group is left.
    """
    frozen: dict[str, str] = {}
    notes: list[str] = []
    while True:
        plan = plan_for(graph)
        report, failed = checks.run(graph, plan)
        if failed is None:
            return Proof(graph, plan, report, frozen, tuple(notes))
        crash = checks.crash(graph, plan) if math.isinf(report.max_error) else None
        culprits = find_culprits(graph, plan, _breaks(checks, graph, failed, crash), crash.module if crash else None)
        if (relaxed := _without_coincidences(checks, graph, plan, culprits)) is not None:
            graph = relaxed
            continue
        new = dict.fromkeys(culprits, _reason(report, crash))
        frozen |= new
        graph = graph.freeze(new)
        notes.append(f"frozen after verification failed on them: {', '.join(culprits)}")
        warnings.warn(f"{notes[-1]}; the plan is made again without them", PrunusWarning, stacklevel=3)
        if not graph.prunable:
            raise VerificationFailed(f"removal differs from silencing in every group: {report.detail}", report)


def _without_coincidences(checks: Checks, graph: ChannelGraph, plan: PruningPlan, culprits: Sequence[str]) -> ChannelGraph | None:
    """The graph without repairs of these groups' widths, if they are what failed: an attribute may have their value by chance
    (eight groups of eight channels)."""
    relaxed = graph.without_held(culprits)
    if len(relaxed.held) == len(graph.held):
        return None
    part = replace(plan, keep={name: plan.keep[name] for name in culprits})
    return relaxed if checks.run(relaxed, part)[1] is None else None


def _breaks(checks: Checks, graph: ChannelGraph, failed: Check, crash: Crash | None) -> Callable[[PruningPlan], bool]:
    """Whether a part of the plan fails, by the cheapest test that shows it: a forward pass that breaks needs no reference."""
    if crash is not None:
        return lambda part: checks.crash(graph, part) is not None
    return lambda part: not tried(failed, graph, part).passed


def _reason(report: VerificationReport, crash: Crash | None) -> str:
    found = report.detail or f"error {report.max_error:.1e}"
    if crash is not None:
        found = f"{found}; it breaks in `{crash.module or 'the network'}`{f', {crash.line}' if crash.line else ''}"
    if math.isfinite(report.max_error):  # it runs, with other values
        found, cause = f"{found}, relative error {report.max_error:.1e}", "the network computes with a width"
    else:
        cause = "the network holds a width"
    return f"removal differs from silencing ({found}): {cause} that the trace doesn't see"


def check_plan(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, example_inputs: ExampleInputs, forward_fn: ForwardFn | None = None
) -> VerificationReport:
    """The failing or worst of the verifications on the model's own weights and on random ones, in both modes."""
    return Checks(model, example_inputs, forward_fn=forward_fn).run(graph, plan)[0]


def noisy(inputs: Any) -> Any:
    """The same inputs with noise: constant images would let spatial errors cancel."""
    generator = torch.Generator().manual_seed(0)

    def add(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor + 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor)

    return map_tensors(add, inputs)
