"""What a result holds of the scores: enough to draw how they are spread and where the cut went."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.types import PruningPlan, Scores

MOST = 25
"""Values kept of one group's kept channels, and of its removed ones."""


def score_rows(scores: Scores, plan: PruningPlan) -> dict[str, Any]:
    """``criterion``, whether its scores can be compared ``across groups``, and by group the scores of ``kept`` and ``removed``
    channels, ascending: all up to `MOST`, else as many evenly spaced quantiles, the least and the largest among them."""
    groups: dict[str, Any] = {}
    for name, values in scores.by_group.items():
        keep = plan.keep.get(name, torch.ones(len(values), dtype=torch.bool)).to(values.device)
        groups[name] = {"kept": _spread(values[keep]), "removed": _spread(values[~keep])}
    return {"criterion": scores.criterion, "across_groups": scores.comparable, "groups": groups}


def _spread(values: Tensor) -> list[float]:
    values = values.double()
    values = values[torch.isfinite(values)].sort().values
    if len(values) > MOST:
        values = values[torch.linspace(0, len(values) - 1, MOST).round().long()]
    return values.tolist()
