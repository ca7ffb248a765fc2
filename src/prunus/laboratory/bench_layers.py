"""The layers of benched networks, each timed alone: at its own widths, at widths that fill vectors, and at a single channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.budgets import Timing
from prunus.export.layer_timing import LayerShape, time_layer
from prunus.export.runtimes import no_garbage_collection
from prunus.laboratory.latency import against_peaks, machine_peaks
from prunus.pipeline.time_layers import layer_shapes
from prunus.types import ChannelGraph, ExampleInputs

EVEN = 16
"""Widths are compared with their next multiple of this: float32 lanes of the widest CPU vectors."""
Widths = tuple[int, int]


@dataclass(frozen=True)
class LayerTimes:
    """A layer alone, in ms: as it is, with its widths rounded up to `EVEN` (as it is where they are even), with one channel."""

    name: str
    shape: LayerShape
    ms: float
    even_ms: float
    floor_ms: float


def time_layers_of(
    graphs: Mapping[str, ChannelGraph], inputs: ExampleInputs, runtime: str, timing: Timing, seconds: float
) -> dict[str, list[LayerTimes]]:
    """Every layer of every network, about ``seconds`` for each shape; shapes that several layers share are timed once."""
    shapes = {name: layer_shapes(graph, inputs, timing) for name, graph in graphs.items()}
    wanted = list(dict.fromkeys(shape for each in shapes.values() for shape in each))
    with no_garbage_collection():  # once for all: collecting takes longer than a small layer
        known = {shape: _times(shape, runtime, timing, seconds) for shape in wanted}
    return {
        name: [LayerTimes(layer.name, shape, *known[shape]) for layer, shape in zip(graph.layers, shapes[name], strict=True)]
        for name, graph in graphs.items()
    }


def _times(shape: LayerShape, runtime: str, timing: Timing, seconds: float) -> tuple[float, float, float]:
    """As it is, even, with one channel; neither of the latter is more than the first: what takes longer isn't a reason."""
    own, even, one = (shape.reads, shape.writes), even_widths(shape), (1, 1)
    widths: list[Widths] = list(dict.fromkeys((own, even, one)))
    found = dict(zip(widths, time_layer(shape, widths, runtime, timing, seconds=seconds), strict=True))
    return found[own], min(found[own], found[even]), min(found[own], found[one])


def even_widths(shape: LayerShape) -> Widths:
    """Each width rounded up to a multiple of `EVEN`, but those below one (an image's colours) and a depthwise layer's reads."""

    def rounded(width: int) -> int:
        return math.ceil(width / EVEN) * EVEN if width > EVEN else width

    if shape.groups > 1 and not shape.depthwise:
        return shape.reads, shape.writes
    return (1 if shape.depthwise else rounded(shape.reads)), rounded(shape.writes)


def peaks_with(rows: Mapping[str, Sequence[LayerTimes]], timing: Timing) -> dict[str, float]:
    """`machine_peaks`, or what the fastest of these layers does where that is more."""
    peaks = machine_peaks(timing)
    best = max((1e3 * r.shape.work(r.shape.reads, r.shape.writes)[0] / r.ms for each in rows.values() for r in each), default=0.0)
    return {**peaks, "macs_per_second": max(peaks["macs_per_second"], best)}


def layer_json(row: LayerTimes, timing: Timing, peaks: Mapping[str, float]) -> dict[str, Any]:
    """A layer as the result holds it."""
    shape = row.shape
    found = against_peaks(shape, row.ms, timing, peaks)
    kind = "depthwise convolution" if shape.depthwise else shape.kind
    times = {"ms": row.ms, "even_ms": row.even_ms, "floor_ms": row.floor_ms}
    return {"name": row.name, "kind": kind, "reads": shape.reads, "writes": shape.writes, **times, **found}
