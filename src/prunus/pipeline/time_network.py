"""Planners on this machine, and graphs whose costs include its latency."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn

from prunus.allocation import DEFAULT
from prunus.budgets import Timing
from prunus.pipeline.latency import Judge, LatencyPlanner
from prunus.pipeline.time_layers import Progress, quiet
from prunus.pipeline.timer import MachineTimer, Timer
from prunus.types import Allocator, Budget, ChannelGraph, ExampleInputs, ForwardFn


@contextmanager
def latency_planner(
    model: nn.Module,
    inputs: ExampleInputs,
    budget: Budget,
    allocator: str | Allocator,
    timing: Timing,
    timer: Timer | None = None,
    forward_fn: ForwardFn | None = None,
    judge: Judge = lambda _: None,
) -> Generator[LatencyPlanner, None, None]:
    """A planner on this machine, or on ``timer``, that shows its progress on a terminal."""
    with ExitStack() as stack:
        if timer is None:
            timer = stack.enter_context(MachineTimer(inputs, budget.runtime, timing))
        progress = stack.enter_context(shown_progress())
        yield LatencyPlanner(
            model, inputs, budget, allocator, timing, timer, forward_fn=forward_fn, judge=judge, progress=progress
        )


@contextmanager
def shown_progress() -> Generator[Progress, None, None]:
    """A bar on a terminal, where rich is installed; silence elsewhere."""
    try:
        from prunus.training.progress import progress_bar
    except ImportError:  # the core goes without rich
        yield quiet
        return
    with progress_bar("measuring", None) as report:
        yield lambda what, done, total: report(f"{what} ({done} of {total})", done, None)


def time_network(
    model: nn.Module,
    graph: ChannelGraph,
    example_inputs: ExampleInputs,
    runtime: str = "eager",
    timing: Timing | None = None,
    forward_fn: ForwardFn | None = None,
) -> ChannelGraph:
    """The graph with latency among its costs, for `allocate` and `reach`: layers timed against width, the sum fit to the network.

    What it predicts of a plan isn't checked on the network that the plan leaves: `prune` does that.

    Raises:
        InvalidBudget: the runtime doesn't have what ``timing`` asks for, or the network isn't on the CPU.
        ExportError: the runtime isn't installed or can't run the network.
    """
    timing = timing or Timing()
    with torch.no_grad(), MachineTimer(example_inputs, runtime, timing) as timer:
        budget = Budget(latency=1.0, runtime=cast("Any", runtime))
        planner = LatencyPlanner(model, example_inputs, budget, DEFAULT, timing, timer, forward_fn=forward_fn)
        planner.calibrate(graph)
        return planner.timed(graph)
