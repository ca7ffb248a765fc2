"""Damage of random halves: how much one layer's output changes when half of what it reads is silenced (AOFP's scoring path)."""

from __future__ import annotations

import math
import zlib
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import EvidenceError
from prunus.graph.group_view import GroupView
from prunus.importance.evidence import DataRun, Evidence
from prunus.importance.oracle_batches import Ablation, Batch
from prunus.importance.oracle_replay import Lanes, NotReplayable, Replay, tensors_in, vmapped
from prunus.importance.readers import Reading, ReadingCall
from prunus.types import ChannelGraph

HALVES = 64
"""So many random halves of a group are silenced for every minibatch; all halves there are, if they aren't more."""


def aofp_damage(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean relative damage to the next layer's output by the random halves of the group that hold the channel (AOFP).

        t(M)     = sum of (out - out without M)^2 / sum of out^2
        score[c] = mean of t(M) over random halves M of the group that hold c

    Ding et al. 2019: the sum of squared changes over the sum of squares of the next layer's output, mean over the sets in which a
    channel was silenced. Departures: the output is taken where it is read again (behind norm, activation, pooling and residual
    addition), or is the network's; where several layers read the group, their sums are added. A layer behind that sees the output
    as it was: damage goes one layer far.

    When to use: to find channels that can go together, for each is judged in the company of half the layer, and by the next
    layer's output in place of the loss. Scores are of one layer: rank there, or normalise.
    """
    return evidence.of("half_damages", view.group)


class _OneLayer(Replay):
    """Measures the changes where a layer reads what depends on the silenced channels, and gives that layer what it had before."""

    def __init__(self, recording: Any, lanes: Any) -> None:
        super().__init__(recording, lanes)
        self.changed: list[Tensor] = []
        self.energy: list[Tensor] = []
        self._reads = 0

    def reading(self, call: ReadingCall, key: Any) -> Any:
        index, self._reads = self._reads, self._reads + 1
        before = self._recording.reads[index] if index < len(self._recording.reads) else None
        if before is None or before[0].weight is not call.weight:
            raise NotReplayable("the layers run in another order when channels are silenced")
        if key in self._recording.results:
            return super().reading(call, key)
        self.compare(call.x, before[0].x)
        return before[1]

    def compare(self, after: Tensor, before: Tensor) -> None:
        """Note the damage to one tensor."""
        self.changed.append((after.double() - before.double()).square().sum())
        self.energy.append(before.double().square().sum())


def half_masks(num_channels: int, seed: int) -> Tensor:
    """Sets of half the channels (rounded down), bool (sets, num_channels): all there are, or `HALVES` random ones."""
    half = num_channels // 2
    if math.comb(num_channels, half) <= HALVES:
        chosen = torch.tensor(list(combinations(range(num_channels), half)), dtype=torch.int64)
    else:
        generator = torch.Generator().manual_seed(seed % 2**63)
        chosen = torch.rand(HALVES, num_channels, generator=generator).argsort(1)[:, :half]
    return torch.zeros(len(chosen), num_channels, dtype=torch.bool).scatter_(1, chosen, True)


def half_damages(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Mean damage of the halves that hold each channel: group name -> float64 (num_channels,). Drawn anew for each minibatch.

    Raises:
        EvidenceError: the data are empty, a loss isn't finite, or the network can't be re-entered exactly.
    """
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    ablation = Ablation(model, graph, run)
    with ablation() as batches:
        for index, batch in enumerate(batches):
            for name, size in ablation.sizes.items():
                if size < 2:
                    continue
                masks = half_masks(size, (run.seed * 1_000_003 + zlib.crc32(name.encode())) * 1_009 + index)
                damages = damages_of(ablation, batch, name, masks)
                totals[name] = totals.get(name, 0) + masks.T.double() @ damages
                counts[name] = counts.get(name, 0) + masks.sum(0)
    return {name: total / counts[name].clamp_min(1) for name, total in totals.items()}


def damages_of(ablation: Ablation, batch: Batch, name: str, masks: Tensor) -> Tensor:
    """Relative one-layer damage of silencing each set of channels (bool (sets, num_channels)): float64 (sets,)."""
    reason = ablation.notes[-1] if ablation.notes else ""
    while batch.recording is not None:
        try:
            return _measure(ablation, batch, name, masks)
        except NotReplayable as error:
            reason = str(error)
            batch.record(reason)
    ablation.notes.clear()
    raise EvidenceError(f"aofp_damage can't re-enter the network behind group `{name}`: {reason}; use the oracle or taylor")


def _measure(ablation: Ablation, batch: Batch, name: str, masks: Tensor) -> Tensor:
    recording = batch.recording
    assert recording is not None
    outputs = tensors_in(batch.output)

    def lane(lanes: Lanes) -> tuple[Tensor, Tensor]:
        with _OneLayer(recording, lanes) as mode:
            found = batch.forward()
        for after, before in zip(tensors_in(found), outputs, strict=True):
            if after is not before:
                mode.compare(after, before)
        if not mode.changed:
            return torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        return torch.stack(mode.changed).sum(), torch.stack(mode.energy).sum()

    readings = ablation.readings[name]
    found: list[Tensor] = []
    for chunk in masks.split(recording.lanes_at_once(readings)):
        changed, energy = vmapped(lane, _half_lanes(ablation.model, readings, chunk))
        found.append((changed / energy.clamp_min(torch.finfo(torch.float64).tiny)).cpu())
    return torch.cat(found)


def _half_lanes(model: nn.Module, readings: dict[int, Reading], masks: Tensor) -> Lanes:
    lanes: Lanes = {}
    for weight in model.parameters():
        if id(weight) in readings:
            length, positions = readings[id(weight)]
            gate = torch.ones(len(masks), length, dtype=weight.dtype)
            gate[:, positions] = (~masks).to(weight.dtype).unsqueeze(2).expand(-1, -1, positions.shape[1])
            lanes[id(weight)] = {"gate": gate.to(weight.device)}
    return lanes
