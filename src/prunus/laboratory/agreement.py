"""How well two rankings of channels agree: tie-aware rank correlation, and the overlap of what each would remove first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from prunus.errors import EvidenceError
from prunus.importance import normalise

Values = npt.NDArray[np.float64]
LOWEST = 0.2
"""The share of channels with the lowest scores whose overlap is told: those that would be removed first."""


def spearman(scores: Any, reference: Any) -> float | None:
    """Pearson's correlation of the ranks, in [-1, 1]; equal values share their mean rank.

    None where it isn't defined: fewer than two channels, or one side is all equal.

    Raises:
        EvidenceError: the two have different lengths.
    """
    first, second = _pair(scores, reference)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(cast("Any", stats.spearmanr(first, second)).statistic)


def lowest_overlap(scores: Any, reference: Any, share: float = LOWEST) -> float | None:
    """Share of the lowest-scored channels that are among the lowest of the reference, too: in [0, 1]; None without channels.

    Both sides hold ``share`` of the channels, rounded, at least one. Where equal scores straddle the border, it is the expected
    value if ties were broken at random; channels whose reference equals the last of the lowest count as among them.

    Raises:
        EvidenceError: the two have different lengths.
    """
    first, second = _pair(scores, reference)
    if not len(first):
        return None
    number = max(1, round(share * len(first)))
    border = np.sort(first)[number - 1]
    below, tied = first < border, first == border
    chance = below + tied * ((number - below.sum()) / tied.sum())
    among = second <= np.sort(second)[number - 1]
    return float((chance * among).sum() / number)


def _pair(scores: Any, reference: Any) -> tuple[Values, Values]:
    first, second = np.asarray(scores, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise EvidenceError(f"scores of shapes {first.shape} and {second.shape} can't be compared: one value a channel each")
    return first, second


@dataclass(frozen=True)
class Agreement:
    """One criterion against the oracle. ``raw`` and ``l2``: global Spearman of the scores as they are, and of scores divided by
    the L2 norm of their layer's (Molchanov et al. 2016: without it, scores of different layers may not compare); ``layers``: that
    within every group of three channels or more, ``within`` their mean; ``overlap_raw`` and ``overlap_l2``: of the lowest."""

    raw: float | None
    l2: float | None
    within: float | None
    layers: Mapping[str, float | None]
    overlap_raw: float | None
    overlap_l2: float | None
    channels: int


FEWEST = 3
"""Channels without which a rank correlation within a layer says nothing: of two it is 1 or -1."""


def agreement(
    scores: Mapping[str, Tensor], oracle: Mapping[str, Tensor], sample: Mapping[str, Tensor] | None = None
) -> Agreement:
    """How a criterion's scores (group -> (num_channels,)) agree with the oracle's.

    ``sample`` names the channels (int64) that the oracle has been evaluated on: ``oracle[group]`` holds those only. Groups that
    either says nothing about are left out. The L2 norm is that of all channels of the layer.
    """
    common = [name for name in oracle if name in scores]
    raw = [_chosen(scores[name], sample, name) for name in common]
    l2 = [_chosen(normalise(scores[name], "l2"), sample, name) for name in common]
    measured = [oracle[name].numpy() for name in common]
    layers = {name: spearman(own, other) for name, own, other in zip(common, raw, measured, strict=True) if len(other) >= FEWEST}
    defined = [rho for rho in layers.values() if rho is not None]
    joined, whole, unit = _joined(measured), _joined(raw), _joined(l2)
    return Agreement(
        raw=spearman(whole, joined),
        l2=spearman(unit, joined),
        within=float(np.mean(defined)) if defined else None,
        layers=layers,
        overlap_raw=lowest_overlap(whole, joined),
        overlap_l2=lowest_overlap(unit, joined),
        channels=len(joined),
    )


def correlations(several: Mapping[str, Mapping[str, Tensor]], normalisation: str = "none") -> list[list[float | None]]:
    """Global Spearman of every criterion's scores with every other's, on the groups that both know: (criteria, criteria).

    ``several``: criterion -> group -> scores of the same channels. Each group's are normalised first (see `normalise`).
    """
    scaled = [{name: normalise(values, normalisation).numpy() for name, values in one.items()} for one in several.values()]
    found: list[list[float | None]] = []
    for row, first in enumerate(scaled):
        line = [found[column][row] for column in range(row)]
        for second in scaled[row:]:
            common = [name for name in first if name in second]
            line.append(spearman(_joined(first[n] for n in common), _joined(second[n] for n in common)))
        found.append(line)
    return found


def _chosen(values: Tensor, sample: Mapping[str, Tensor] | None, name: str) -> Values:
    return (values if sample is None else values[sample[name]]).double().numpy()


def _joined(parts: Iterable[Values]) -> Values:
    return np.concatenate([*parts, torch.empty(0, dtype=torch.float64).numpy()])
