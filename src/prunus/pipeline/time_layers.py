"""From a graph to one whose costs include latency: every layer timed against width, and the widths that the runtime likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from prunus.allocation.latency import TimeTable, timed
from prunus.budgets import Timing
from prunus.export.layer_timing import LayerShape
from prunus.pipeline.timer import Timer, liked_multiple, widths_to_measure
from prunus.types import ChannelGraph, ExampleInputs, first_tensor

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``."""


def quiet(what: str, done: int, total: int) -> None:
    """Show nothing."""


def layer_shapes(graph: ChannelGraph, inputs: ExampleInputs, timing: Timing) -> list[LayerShape]:
    """What is timed of every layer of the graph."""
    first = first_tensor(inputs)
    traced = int(first.shape[0]) if first is not None and first.ndim else 1
    return [LayerShape.of(layer, traced, timing.batch) for layer in graph.layers]


def time_layers(
    graph: ChannelGraph, inputs: ExampleInputs, timing: Timing, timer: Timer, progress: Progress = quiet
) -> ChannelGraph:
    """The graph with latency among its costs, as far as layers alone tell it, and the widths that the runtime likes."""
    shapes = layer_shapes(graph, inputs, timing)
    prunable = {group.name for group in graph.prunable}
    widths: list[list[Any]] = cast("Any", graph.cost_model).layer_widths()
    varying = [tuple(any(name in prunable for key in width for name in key) for width in two[:2]) for two in widths]
    wanted = list(dict.fromkeys(zip(shapes, varying, strict=True)))
    tables: dict[Any, TimeTable] = {}
    for number, (shape, vary) in enumerate(wanted):
        progress("timing layers", number, len(wanted) + 1)
        reads, writes = widths_to_measure(shape, cast("tuple[bool, bool]", vary))
        pairs = [(r, w) for r in reads for w in writes]
        ms = np.array(timer.layer(shape, pairs)).reshape(len(reads), len(writes))
        tables[shape, vary] = TimeTable.measured(reads, writes, ms)
    heaviest = sorted(wanted, key=lambda one: -float(tables[one].ms[-1, -1]))
    progress("probing widths", len(wanted), len(wanted) + 1)
    multiple = liked_multiple(timer, [shape for shape, vary in heaviest if all(vary)])
    progress("timing layers", len(wanted) + 1, len(wanted) + 1)
    return timed(graph, [tables[one] for one in zip(shapes, varying, strict=True)], multiple)
