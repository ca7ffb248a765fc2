"""Putting scores together: over the members of a group, over the channels of a layer, over criteria, over pruning steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from prunus.errors import EvidenceError, UnknownName
from prunus.types import PruningPlan, Scores

AGGREGATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda stacked: stacked.mean(0),
    "sum": lambda stacked: stacked.sum(0),
    "max": lambda stacked: stacked.amax(0),
    "l2": lambda stacked: stacked.square().sum(0).sqrt(),
}
"""How scores of several members (weights that write the same channels) become one: (members, num_channels) -> (num_channels,)."""

NORMALISATIONS = ("none", "mean", "max", "l2", "rank")


def aggregate(scores: Sequence[Tensor] | Tensor, how: str = "mean") -> Tensor | None:
    """One score a channel, (num_channels,), from one (num_channels,) for each member; None where there is no member.

    Raises:
        UnknownName: ``how`` is none of mean, sum, max, l2.
    """
    if how not in AGGREGATIONS:
        raise UnknownName.among("aggregation over members", how, AGGREGATIONS)
    if not len(scores):
        return None
    return AGGREGATIONS[how](scores if isinstance(scores, Tensor) else torch.stack(list(scores)))


def normalise(scores: Tensor, how: str = "l2") -> Tensor:
    """Scores (num_channels,) of one layer on a scale of their own, in float64; higher = keep stays so.

    ``mean``, ``max`` and ``l2`` divide by the mean, the maximum or the root of the sum of squares of the absolute scores (what is
    all zero stays so); ``rank`` is the rank divided by the number of channels, in (0, 1], equal scores sharing their mean rank;
    ``none`` leaves them. It depends on the layer's own scores only, never on an allocation.

    Raises:
        UnknownName: ``how`` is none of these.
    """
    if how not in NORMALISATIONS:
        raise UnknownName.among("normalisation", how, NORMALISATIONS)
    values = scores.to(torch.float64)
    if how == "none" or not len(values):
        return values
    if how == "rank":
        _, which, counts = values.unique(return_inverse=True, return_counts=True)
        return (counts.cumsum(0) - (counts - 1) / 2).to(torch.float64)[which] / len(values)
    scale = {"mean": values.abs().mean(), "max": values.abs().max(), "l2": torch.linalg.vector_norm(values)}[how]
    return values / scale if float(scale) else values


def layer_adaptive(scores: Tensor) -> Tensor:
    """Squared scores, each divided by the sum of those that are not smaller: (num_channels,), in [0, 1], comparable over layers.

    The normalisation of Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021. Departures: channels in
    place of single weights, and equal scores share one value instead of being ordered by their index.
    """
    distinct, which, counts = scores.to(torch.float64).abs().unique(return_inverse=True, return_counts=True)
    squares = distinct**2
    behind = (squares * counts).flip(0).cumsum(0).flip(0)
    return torch.where(behind > 0, squares / behind.clamp_min(torch.finfo(torch.float64).tiny), squares)[which]


def weighted_sum(terms: Iterable[tuple[Scores, float]], normalisation: str = "mean") -> Scores:
    """The weighted sum of the scores of several criteria, each normalised within its group first, so that no unit matters.

    Scores are comparable over groups if they were normalised, or if those of every term were. Groups that a term says nothing
    about are left out.

    Raises:
        EvidenceError: no term, or scores of networks with other widths.
        UnknownName: no such normalisation.
    """
    chosen = list(terms)
    if not chosen:
        raise EvidenceError("a weighted sum needs scores of one criterion at least")
    common = [name for name in chosen[0][0].by_group if all(name in scores.by_group for scores, _ in chosen)]
    for name in common:
        _same_widths(name, [scores for scores, _ in chosen])
    by_group = {n: sum_of([(normalise(scores.by_group[n], normalisation), weight) for scores, weight in chosen]) for n in common}
    name = " + ".join(f"{weight:g}*{scores.criterion}" for scores, weight in chosen)
    return Scores(by_group, name, normalisation != "none" or all(scores.comparable for scores, _ in chosen))


def sum_of(terms: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The sum of scores (num_channels,), each times its weight."""
    return torch.stack([values * weight for values, weight in terms]).sum(0)


def moving_average(new: Scores, previous: Scores, momentum: float = 0.9) -> Scores:
    """``momentum`` x previous + (1 - momentum) x new: scores that remember earlier pruning steps (Molchanov et al. 2019: 0.9).

    Groups without a previous score keep their new one. After channels were removed, pass ``kept(previous, plan)``.

    Raises:
        EvidenceError: momentum outside [0, 1), another criterion, or scores of a network with other widths.
    """
    if not 0 <= momentum < 1:
        raise EvidenceError(f"momentum={momentum!r} must be at least 0 and below 1: it is the share of the previous scores")
    if new.criterion != previous.criterion:
        raise EvidenceError(f"scores of {new.criterion} can't go on from scores of {previous.criterion}: use one criterion")
    by_group: dict[str, Tensor] = {}
    for name, values in new.by_group.items():
        if name in previous.by_group:
            _same_widths(name, [previous, new])
            by_group[name] = momentum * previous.by_group[name] + (1 - momentum) * values
        else:
            by_group[name] = values
    return Scores(by_group, new.criterion, new.comparable)


def kept(scores: Scores, plan: PruningPlan) -> Scores:
    """The scores of the channels that ``plan`` keeps: of the network after the surgery."""
    left = {n: values[plan.keep[n].cpu()] if n in plan.keep else values for n, values in scores.by_group.items()}
    return Scores(left, scores.criterion, scores.comparable)


def _same_widths(name: str, several: Sequence[Scores]) -> None:
    widths = [len(scores.by_group[name]) for scores in several]
    if len(set(widths)) > 1:
        shown = " and ".join(str(width) for width in dict.fromkeys(widths))
        text = f"scores of group `{name}` are for {shown} channels: score one network, or take kept(scores, plan) after a removal"
        raise EvidenceError(text)
