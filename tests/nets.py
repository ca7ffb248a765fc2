"""Small networks, one difficulty each, with hand-written expected channel groups.

``NETS`` maps a name to its `Net`; ``EXACT`` names those of which removal must equal silencing, ``REFUSED`` those on which
`verify` must fail because the program holds a width. The families are in `difficulties`.
"""

from __future__ import annotations

import torch
from torch import nn

from difficulties import (
    attention,
    blocks,
    convolutions,
    held,
    movement,
    programs,
    selection,
    sequence,
    stages,
    statistics,
    vision,
    weights,
)
from difficulties.network import G, Net, Program, conv, conv_bn, image
from prunus.types import ChannelGraph, PruningPlan

__all__ = ["EXACT", "FROZEN", "NETS", "REFUSED", "G", "Net", "Program", "conv", "conv_bn", "image", "random_plan", "residual"]

_FAMILIES = (convolutions, movement, statistics, programs, held, attention, sequence, selection, vision, stages, blocks, weights)
NETS = {net.name: net for family in _FAMILIES for net in family.NETS}
EXACT = [name for name, net in NETS.items() if net.outcome == "exact"]
REFUSED = [name for name, net in NETS.items() if net.outcome == "refused"]
FROZEN = [name for name, net in NETS.items() if net.outcome == "frozen"]


def random_plan(graph: ChannelGraph, seed: int = 0, share: float | None = 0.5) -> PruningPlan:
    """Remove ``share`` of every prunable group (None: a random number of each, possibly none), at least one channel stays."""
    generator = torch.Generator().manual_seed(seed)
    keep: dict[str, torch.Tensor] = {}
    for group in graph.prunable:
        n = group.num_channels
        gone = max(1, int(n * share)) if share is not None else int(torch.randint(0, n, (), generator=generator))
        mask = torch.ones(n, dtype=torch.bool)
        mask[torch.randperm(n, generator=generator)[: min(gone, n - 1)]] = False
        keep[group.name] = mask
    return PruningPlan(keep, graph.cost())


def residual() -> nn.Module:
    """The residual network with identity shortcut, for tests that need just a typical network."""
    return NETS["residual identity"].model()
