"""`check_network`: is this network pruned exactly?"""

from __future__ import annotations

import copy
import time
import warnings
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunus.errors import PrunusError, PrunusWarning, UnsupportedNetwork, VerificationFailed, raise_if_out_of_memory
from prunus.graph import trace
from prunus.graph.labels import named_tensors
from prunus.graph.trace import Keep, cloned
from prunus.surgery import SurgeryRecord, randomise, remove
from prunus.surgery.prove import Checks, Proof, prove
from prunus.surgery.remove import apply_record
from prunus.testing.training_step import TrainingStep
from prunus.types import (
    ChannelGraph,
    ExampleInputs,
    ForwardFn,
    PruningPlan,
    call_model,
)

Verdict: TypeAlias = Literal["exact", "exact after repair", "partly frozen", "refused"]
_OUTPUT, _KEPT = "it is the network's output", "is listed in keep"
"""How reasons begin or end that are no shortcoming: an output keeps its shape, and what the caller listed in keep stays."""


@dataclass(frozen=True, eq=False)
class NetworkReport:
    """What `check_network` found; print it.

    ``prunable_share`` and ``macs_left`` are shares of the network's MACs: those that fall away with the prunable channels, and
    those left by the plan that was checked. ``frozen`` and ``mixing`` name groups; ``repaired`` names the attributes
    (``module.attribute``) that surgery had to change beyond those that repeat a layer's shape. ``max_error`` is relative to the
    largest output, in float64. ``seconds`` holds trace, plan, remove and verify.
    """

    verdict: Verdict
    prunable_share: float
    macs_left: float
    frozen: Mapping[str, str]
    repaired: tuple[str, ...]
    mixing: tuple[str, ...]
    max_error: float
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    num_groups: int = 0
    as_it_must_be: tuple[str, ...] = field(default=())

    @property
    def shortcomings(self) -> dict[str, str]:
        """The frozen groups that could be pruned if Prunus could follow them: no outputs, nothing that was listed in keep."""
        return {name: reason for name, reason in self.frozen.items() if name not in self.as_it_must_be}

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {self.prunable_share:.1%} of the MACs are in prunable channels"]
        if self.verdict != "refused":
            lines.append(
                f"removed and checked: {self.macs_left:.1%} of the MACs left, largest relative error {self.max_error:.1e}"
            )
        if self.repaired:
            lines.append(f"widths held by the program and repaired: {', '.join(self.repaired)}")
        if self.mixing:
            lines.append(
                f"{len(self.mixing)} of {self.num_groups} groups pass through statistics over channels, which are taken over "
                f"the kept ones; mixing='freeze' leaves these groups alone: {', '.join(self.mixing[:3])}"
                + (", ..." if len(self.mixing) > 3 else "")
            )
        lines += [f"`{name}` stays whole: {reason}" for name, reason in self.shortcomings.items()]
        if self.shortcomings:
            lines.append(
                "what to do next: an operation without a rule can be given one with `prunus.op_rule`; a width that a module "
                "holds as an attribute (self.width) and uses by that name is repaired by itself, so move numbers there"
            )
        lines += list(self.notes)
        lines.append(", ".join(f"{step} {seconds:.2f} s" for step, seconds in self.seconds.items()))
        return "\n".join(lines)


class _Clock:
    """Seconds by step, in the order in which steps were first taken."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


def check_network(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    fraction: float = 0.5,
    seed: int = 0,
    keep: Keep = (),
    mixing: Literal["allow", "freeze"] = "allow",
    forward_fn: ForwardFn | None = None,
    train_inputs: ExampleInputs | None = None,
) -> NetworkReport:
    """Tell whether ``model`` is pruned exactly: a random ``fraction`` of the channels of every group is removed from a copy.

    The copy's parameters and buffers are random, away from zero, so that no branch can hide an error. Checked are: removed ==
    silenced in evaluation and in training mode (float64), the predicted parameters and MACs, a training step of the small
    network, and that its record rebuilds it. Groups that fail are frozen, and the check goes on without them. ``model`` and the
    random state stay as they were.

    Args:
        keep, mixing, forward_fn, train_inputs: see `prunus.trace`.

    Returns:
        The report; a network that Prunus refuses gets the verdict ``"refused"`` with the reasons, not an error.

    Raises:
        VerificationFailed: something wrong would be returned, or Prunus itself broke down: please report it.
        UnknownName: a selector in ``keep`` names nothing.

    >>> import torch, prunus.testing
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> report = prunus.testing.check_network(net, torch.randn(1, 3, 8, 8))
    >>> report.verdict, report.macs_left, dict(report.frozen)
    ('exact', 0.5, {'2': "it is the network's output"})
    """
    clock = _Clock()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", PrunusWarning)  # the report says it all
        try:
            return _check(model, example_inputs, fraction, seed, keep, mixing, forward_fn, train_inputs, clock)
        except (PrunusError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise_if_out_of_memory(error)
            raise VerificationFailed(
                f"Prunus broke down on this network, which is a defect of Prunus; nothing wrong was returned. Please report the "
                f"error with the network: {type(error).__name__}: {error}"
            ) from error


def _check(
    model: nn.Module,
    inputs: Any,
    fraction: float,
    seed: int,
    keep: Keep,
    mixing: Literal["allow", "freeze"],
    forward_fn: ForwardFn | None,
    train_inputs: Any,
    clock: _Clock,
) -> NetworkReport:
    try:
        with clock.step("trace"):
            graph = trace(model, inputs, keep, mixing, forward_fn, train_inputs)
    except UnsupportedNetwork as error:
        return NetworkReport("refused", 0.0, 1.0, {"": str(error)}, (), (), 0.0, clock.seconds)
    if not graph.prunable:
        return _report(graph, None, None, clock, ())
    with clock.step("verify"):
        twin = randomise(model, seed)
    step = TrainingStep(twin, inputs if train_inputs is None else train_inputs, forward_fn)
    checks = Checks(twin, inputs, forward_fn=forward_fn, train_inputs=train_inputs, own_weights=False, extra=(step.check,))

    def plan_for(graph: ChannelGraph) -> PruningPlan:
        with clock.step("plan"):
            return random_plan(graph, fraction, seed)

    plan_for(graph)
    began, planned = time.perf_counter(), clock.seconds["plan"]
    try:
        proof = prove(checks, graph, plan_for)
    except VerificationFailed as error:
        reasons = {g.name: str(error) for g in graph.prunable}
        clock.seconds["verify"] += time.perf_counter() - began
        return _report(graph.freeze(reasons), None, None, clock, ())
    clock.seconds["verify"] += time.perf_counter() - began - (clock.seconds["plan"] - planned)
    clock.seconds["plan"] = planned
    with clock.step("remove"):
        small, record = remove(twin, proof.graph, proof.plan)
    with clock.step("verify"):
        _rebuilds(twin, small, record)
        notes = _counted(twin, small, inputs, forward_fn, proof)
    return _report(proof.graph, proof, record, clock, notes)


def random_plan(graph: ChannelGraph, fraction: float = 0.5, seed: int = 0) -> PruningPlan:
    """Remove a random ``fraction`` of every prunable group, at least one channel and never all of them.

    What is removed from a group depends on its name and the seed only, so that freezing another group changes nothing here.
    """
    keep: dict[str, Tensor] = {}
    for group in graph.prunable:
        generator = torch.Generator().manual_seed(seed + zlib.crc32(group.name.encode()))
        gone = min(max(1, round(group.num_channels * fraction)), group.num_channels - 1)
        mask = torch.ones(group.num_channels, dtype=torch.bool)
        mask[torch.randperm(group.num_channels, generator=generator)[:gone]] = False
        keep[group.name] = mask
    return PruningPlan(keep, graph.cost(PruningPlan(keep, graph.cost())))


def _report(
    graph: ChannelGraph, proof: Proof | None, record: SurgeryRecord | None, clock: _Clock, notes: tuple[str, ...]
) -> NetworkReport:
    frozen = {g.name: g.frozen_because or "" for g in graph.frozen}
    natural = tuple(name for name, reason in frozen.items() if reason.startswith(_OUTPUT) or reason.endswith(_KEPT))
    full = max(graph.cost().macs, 1)
    without = graph.cost_model.cost({g.name: 0 for g in graph.prunable}).macs
    repaired: tuple[str, ...] = tuple(getattr(record, "repaired", ()))
    verdict: Verdict = "exact after repair" if repaired else "exact"
    if proof is None:
        verdict = "refused"
    elif len(frozen) > len(natural):
        verdict = "partly frozen"
    return NetworkReport(
        verdict,
        1 - without / full,
        1.0 if proof is None else proof.plan.predicted.macs / full,
        frozen,
        repaired,
        tuple(g.name for g in graph.prunable if g.mixing),
        0.0 if proof is None else proof.report.max_error,
        clock.seconds,
        (*graph.notes, *notes),
        len(graph.groups),
        natural,
    )


def _rebuilds(model: nn.Module, small: nn.Module, record: SurgeryRecord) -> None:
    """The record, through its JSON form, must make the same network from a fresh one."""
    again = apply_record(model, SurgeryRecord.from_json(record.to_json()))
    ours, theirs = ({name: tensor for name, tensor in named_tensors(m)} for m in (small, again))
    differing = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    modules = zip(small.named_modules(), again.modules(), strict=True)
    differing += [name for (name, one), other in modules if _numbers(one) != _numbers(other)]
    if differing:
        raise VerificationFailed(f"the surgery record doesn't rebuild the small network: {', '.join(differing[:5])} differ")


def _numbers(module: nn.Module) -> dict[str, Any]:
    """Attributes that are whole numbers or sequences of them: those that surgery may have edited."""
    found = {name: value if isinstance(value, (list, tuple)) else (value,) for name, value in vars(module).items()}
    return {n: list(v) for n, v in found.items() if n != "training" and all(isinstance(item, int) for item in v)}


def _counted(model: nn.Module, small: nn.Module, inputs: Any, forward_fn: ForwardFn | None, proof: Proof) -> tuple[str, ...]:
    """A note if the referee counts other MACs than the plan predicts, on a network that it counts like Prunus before pruning."""
    try:
        before, after = (_count(m, inputs, forward_fn) for m in (model, small))
    except Exception as error:
        raise_if_out_of_memory(error)
        return (f"PyTorch's counter of operations fails on this network ({type(error).__name__}: {error})",)
    full, predicted = proof.graph.cost().macs, proof.plan.predicted.macs
    batch = max(1, round(before / max(full, 1)))
    if before != full * batch:  # kernels that it doesn't know
        return (f"PyTorch's counter sees {before:,} of {full:,} MACs before pruning, {after:,} of {predicted:,} after it",)
    if after != predicted * batch:
        return (f"the plan predicts {predicted * batch:,} MACs, {after:,} are counted in the small network",)
    return ()


def _count(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> int:
    copied = copy.deepcopy(model).requires_grad_(False).eval()  # the counter asks parameters that are inputs for their gradients
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        torch.manual_seed(0)
        call_model(copied, cloned(inputs), forward_fn)
    return counter.get_total_flops() // 2
