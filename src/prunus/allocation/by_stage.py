"""Allocation by stage: He et al.'s widths, deeper layers keeping more and the last ones everything."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from prunus.allocation.ranking import along
from prunus.allocation.widths import Widths
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

DEEP = 1.5
"""Share of the channels that deep layers keep, in that of shallow ones."""


def shallow_to_deep(graph: ChannelGraph, scores: Scores, budget: Budget) -> PruningPlan:
    """Deep layers keep one and a half times as large a share of their channels as shallow ones, and the last stage stays whole.

    He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 4.1.2: of VGG-16's five stages the
    first three keep a share, the fourth one and a half times as large a one, the fifth is untouched. A stage is what has one
    extent of maps: the one of the smallest maps is the last (with layers that have none), the one before it is deep. A network
    of a single stage is pruned evenly.
    """
    extents = {layer.name: math.prod(layer.output_size[2:]) for layer in graph.layers}
    found: dict[str, int] = {}
    for group in graph.prunable:
        writers = [member.parameter_axis.parameter.rpartition(".")[0] for member in group.with_role("writes")]
        found[group.name] = max((extents.get(name, 1) for name in writers), default=1)
    stages = sorted({extent for extent in found.values() if extent > 1}, reverse=True)
    untouched, deep = (stages[-1], stages[-2]) if len(stages) > 1 else (0, 0)
    pruned = {name for name, extent in found.items() if extent > untouched}
    chosen = {name: values for name, values in scores.by_group.items() if name in pruned}
    widths = Widths(graph, replace(scores, by_group=chosen), budget)
    factors = np.array([DEEP if found[group.group.name] == deep else 1.0 for group in widths.groups])
    return along(widths, lambda t: 1 - np.minimum(1.0, (1 - t) * factors), "shallow_to_deep")
