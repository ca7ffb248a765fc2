"""The oracle: how the loss changes when a channel is silenced where it is read. Measured, one channel at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from prunus.graph.group_view import GroupView
from prunus.importance.evidence import Collector, DataRun, Evidence
from prunus.importance.oracle_batches import Ablation, Batch
from prunus.importance.oracle_racing import raced_loss_changes
from prunus.types import ChannelGraph


def oracle(view: GroupView, evidence: Evidence, *, signed: bool = False) -> Tensor | None:
    """Absolute change of the mean loss by silencing the channel alone (oracle-abs); ``signed``: the change itself (oracle-loss).

        score[c] = abs(C(D; gate[c] = 0) - C(D)),   C the mean loss over all examples of D

    Molchanov et al. 2016; the absolute value is taken outside of the mean over the data. The channel is silenced where it is
    read, in evaluation mode. ``racing=True`` spends less on channels that are surely not among the lowest (see
    `raced_loss_changes`); ``greedy`` ranks anew after every removal (see `removal_order`). Where several processes run, they
    share the channels.

    When to use: as what other criteria are judged by, and to prune where an evaluation for every channel is affordable. It
    measures one channel alone and before any fine-tuning: neither the loss of removing many nor that after recovery.
    """
    changes = evidence.of("loss_changes", view.group)
    return changes if signed or changes is None else changes.abs()


def raced_oracle(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Absolute change of the mean loss by silencing the channel alone, on fewer minibatches for channels that are surely high.

        score[c] = abs(mean over the minibatches that c has seen of C(gate[c] = 0) - C)

    When to use: to find the lowest tenth on many minibatches at a tenth of the oracle's cost; above that the order is rough.
    """
    changes = evidence.of("raced_loss_changes", view.group)
    return None if changes is None else changes.abs()


def greedy_oracle(view: GroupView, evidence: Evidence) -> Tensor | None:
    """When the channel goes if the one with the lowest absolute change is removed and the others are ranked anew each time.

        score[c] = how many channels are silenced before c;   next is argmin of abs(C(gates; gate[c] = 0) - C(gates))

    When to use: on toy networks, as the best that one channel at a time can do: N channels take N (N + 1) / 2 evaluations.
    """
    return evidence.of("removal_order", view.group)


def signed_greedy_oracle(view: GroupView, evidence: Evidence) -> Tensor | None:
    """When the channel goes if the one with the lowest loss change is removed and the others are ranked anew each time.

        score[c] = how many channels are silenced before c;   next is argmin of C(gates; gate[c] = 0) - C(gates)

    When to use: as the greedy form by absolute change, where a removal that lowers the loss should come first.
    """
    return evidence.of("signed_removal_order", view.group)


def loss_changes(model: nn.Module, graph: ChannelGraph, run: DataRun, *, fast: bool = True) -> dict[str, Tensor]:
    """Change of the mean loss over all examples by silencing each channel alone: group name -> float64 (num_channels,).

    Equal to running the network once for every channel and batch (``fast=False``), but for rounding. Groups that computed
    weights or opaque operations read are left out.

    Raises:
        EvidenceError: the data are empty or a loss isn't finite.
    """
    totals: dict[str, Tensor] = {}
    examples = 0
    ablation = Ablation(model, graph, run, fast=fast, shared=True)
    with ablation() as batches:
        for batch in batches:
            for name, size in ablation.sizes.items():
                part = batch.examples * ablation.changes(batch, name, torch.arange(size))
                totals[name] = totals[name] + part if name in totals else part
            examples += batch.examples
    return {name: total / examples for name, total in totals.items()}


def removal_order(model: nn.Module, graph: ChannelGraph, run: DataRun, *, signed: bool = False) -> dict[str, Tensor]:
    """When each channel goes if the lowest is silenced for good and all others are ranked anew: 0 for the first, float64.

    N channels take N(N + 1)/2 evaluations of every minibatch, and all minibatches are held in memory: for small networks. Ties go
    to the first channel of the first group.

    Raises:
        EvidenceError: the data are empty or a loss isn't finite.
    """
    ablation = Ablation(model, graph, run, shared=True)
    with ablation() as batches:
        held = list(batches)
        sizes = dict(ablation.sizes)
        gates = {name: torch.ones(size) for name, size in sizes.items()}
        order = {name: torch.full((size,), -1.0, dtype=torch.float64) for name, size in sizes.items()}
        for step in range(sum(sizes.values())):
            changes = _mean_changes(ablation, held, gates)
            values = torch.cat([changes[name] if signed else changes[name].abs() for name in sizes])
            gone = torch.cat([gates[name] for name in sizes]) == 0
            at = int(values.masked_fill(gone, torch.inf).argmin())
            name, channel = _locate(sizes, at)
            order[name][channel] = step
            gates[name][channel] = 0
            held = [Batch(ablation, batch.batch, gates) for batch in held]
    return order


def _mean_changes(ablation: Ablation, held: list[Batch], gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean loss change by silencing each channel that isn't silent yet: float64 (num_channels,), zero for those that are."""
    found = {name: torch.zeros(len(gate), dtype=torch.float64) for name, gate in gates.items()}
    examples = sum(batch.examples for batch in held)
    for batch in held:
        for name, gate in gates.items():
            left = gate.nonzero()[:, 0]
            if len(left):
                found[name][left] += batch.examples * ablation.changes(batch, name, left) / examples
    return found


def _locate(sizes: Mapping[str, int], at: int) -> tuple[str, int]:
    for name, size in sizes.items():
        if at < size:
            return name, at
        at -= size
    raise IndexError(at)


ABLATION_COLLECTORS: dict[str, Collector] = {
    "loss_changes": loss_changes,
    "raced_loss_changes": raced_loss_changes,
    "removal_order": removal_order,
    "signed_removal_order": partial(removal_order, signed=True),
}
