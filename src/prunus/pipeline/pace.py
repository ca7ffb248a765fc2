"""How much of the way to its budget every round of iterative pruning goes, and what earlier ones already take of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from prunus.allocation.widths import EXACTLY, fits, floor_of
from prunus.budgets import Amount, Budget
from prunus.surgery import SurgeryRecord
from prunus.types import ChannelGraph


def absolute(budget: Budget, full: ChannelGraph, progress: float = 1.0, pace: str = "geometric", carried: int = 0) -> Budget:
    """``budget`` in absolute amounts, ``progress`` (in (0, 1]) of the way there from the full network's costs.

    With F the full cost, B the budget's and t the progress: F (B / F)^t (geometric), F - (F - B) t (linear), or
    F - (F - B) (1 - (1 - t)^3) (cubic: Zhu and Gupta 2017, equation 1).
    """
    costs = {**asdict(full.cost()), "channels": full.num_prunable_channels}
    amounts: dict[str, Amount] = {}
    for target in budget.targets:
        if target == "latency":
            continue  # a share of what is measured when the round's plan is made, which is the only one
        whole = float(costs[target])
        final = budget.limit(target, whole)
        if pace == "geometric":
            amount = whole * (final / whole) ** progress
        else:
            amount = whole - (whole - final) * (progress if pace == "linear" else 1 - (1 - progress) ** 3)
        amounts[target] = max(1, int(amount + 1e-6) - (carried if target == "file_size" else 0))
    return replace(budget, limits=_floors(budget, full), **amounts)


def _floors(budget: Budget, full: ChannelGraph) -> dict[str, float | int]:
    """The fewest channels of every group of the full network: a share of it, not of what an earlier round left. A branch that
    may go as a whole has none."""
    may_go = full.emptiable if budget.min_channels == 0 else frozenset[str]()
    held = {group.name for group in full.prunable if any(fits(glob, group) for glob in budget.limits)}
    return {f"{EXACTLY}{g.name}": floor_of(g, budget) for g in full.prunable if g.name not in may_go or g.name in held}


def carried(record: SurgeryRecord, number: int) -> int:
    """Bytes of the record of the rounds before round ``number``, which the file holds as well."""
    return len(json.dumps(record.to_json())) if number > 1 else 0
