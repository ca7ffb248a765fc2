"""Rows of a result about every layer: what it reads and writes before and after, its multiply-adds, its time alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from prunus.budgets import Timing
from prunus.export.layer_timing import LayerShape, time_layer
from prunus.export.runtimes import no_garbage_collection
from prunus.pipeline.time_layers import layer_shapes
from prunus.types import ChannelGraph, Layer

_SECONDS = 0.05
"""About so long each shape of a layer is timed."""


@dataclass(frozen=True)
class _Call:
    """One call of a layer in one network."""

    layer: Layer
    shape: LayerShape
    ms: float

    @property
    def macs(self) -> int:
        return self.shape.work(self.shape.reads, self.shape.writes)[0]


def layer_rows(full: ChannelGraph, small: ChannelGraph, inputs: Tensor, threads: int) -> list[dict[str, Any]]:
    """One row for every call of a layer of the full network, in the order of the calls.

    ``name``, ``kind``; ``writes``: the groups it writes (names); ``makes``: whether it makes these channels from others, which a
    depthwise convolution doesn't; ``before`` and ``after``: ``reads`` and ``writes`` in channels, ``macs``, and ``ms`` alone in
    eager PyTorch (`time_layer`), for one image. ``after`` is None where the layer is gone; of a layer that was divided into
    several (``conv.0``, ``conv.1``) it is read from the first, written by the last, and the rest is their sum.
    """
    timing = Timing(threads=threads)
    times: dict[LayerShape, float] = {}
    with no_garbage_collection():  # once for all: collecting takes longer than a small layer
        calls_before, calls_after = (_calls(graph, inputs, timing, times) for graph in (full, small))
    left: dict[str, list[_Call]] = defaultdict(list)
    for call in calls_after:
        left[call.layer.name].append(call)
    widths: list[list[Mapping[tuple[str, ...], float]]] = cast("Any", full.cost_model).layer_widths()
    rows: list[dict[str, Any]] = []
    for call, (_, writes, *_) in zip(calls_before, widths, strict=True):
        found = _taken(left, call.layer.name)
        depthwise = call.shape.depthwise
        rows.append(
            {
                "name": call.layer.name,
                "kind": "depthwise convolution" if depthwise else call.layer.kind,
                "writes": _names(writes),
                "makes": not depthwise,
                "before": _figures([call]),
                "after": _figures(found) if found else None,
            }
        )
    return rows


def _calls(graph: ChannelGraph, inputs: Tensor, timing: Timing, times: dict[LayerShape, float]) -> list[_Call]:
    """The calls of a network, each shape timed once."""
    shapes = layer_shapes(graph, inputs, timing)
    for shape in shapes:
        if shape not in times:
            times[shape] = time_layer(shape, [(shape.reads, shape.writes)], "eager", timing, seconds=_SECONDS)[0]
    return [_Call(layer, shape, times[shape]) for layer, shape in zip(graph.layers, shapes, strict=True)]


def _taken(left: dict[str, list[_Call]], name: str) -> list[_Call]:
    """The next call of this layer in the small network, or one of each of the parts that it was divided into."""
    names = [name] if name in left else [other for other in left if other.startswith(f"{name}.")]
    return [left[each].pop(0) for each in names if left[each]]


def _figures(calls: list[_Call]) -> dict[str, Any]:
    return {
        "reads": calls[0].shape.reads * (calls[0].shape.writes if calls[0].shape.depthwise else 1),
        "writes": calls[-1].shape.writes,
        "macs": sum(call.macs for call in calls),
        "ms": sum(call.ms for call in calls),
    }


def _names(width: Mapping[tuple[str, ...], float]) -> list[str]:
    return list(dict.fromkeys(name for names in width for name in names))
