"""Why a latency can't be had: decided by what was measured."""

from __future__ import annotations

from typing import Any

from prunus.allocation.latency import LatencyModel
from prunus.types import Budget, PruningPlan

_MUCH = 0.4
"""A share of the time from which on it is named as the reason."""
_NOISY = 0.15
"""Spread of the timed passes (10th to 90th percentile, as a share of the median) from which on the machine is."""


def why_not_met(model: LatencyModel, plan: PruningPlan, measured: Any, budget: Budget) -> str:
    """Sentences on what the time of the nearest network goes to, and what to do; ``measured`` has median and percentiles."""
    kept = plan.counts()
    parts = model.parts(kept)
    total = sum(parts.values()) or 1.0
    floor = model.by_layers * sum(float(layer.table.ms[0, 0]) for layer in model.layers)
    calls, memory = (parts["calls"] + min(floor, parts["layers"])) / total, parts["memory"] / total
    reasons: list[str] = []
    slow = measured.measured_ms > next(row["requested"] for row in plan.provenance["budget"] if row["target"] == "latency")
    if slow and calls >= _MUCH:
        reasons.append(
            f"it is launch-bound: {calls:.0%} of its time is what its {len(model.layers)} layers take at any width, so fewer "
            "layers or a larger batch would help, not fewer channels"
        )
    if slow and memory >= _MUCH:
        reasons.append(
            f"it is memory-bound: {memory:.0%} of its time goes to operations that only read and write activations; a runtime "
            "that fuses them (compile, onnxruntime) would help"
        )
    liked = max(model.multiples.values(), default=1)
    if isinstance(budget.multiple_of, int) and liked > 1 and budget.multiple_of % liked:
        reasons.append(f'its widths are odd ones: here multiples of {liked} are fast, and multiple_of="auto" takes them')
    spread = (measured.p90_ms - measured.p10_ms) / measured.measured_ms
    if spread >= _NOISY:
        reasons.append(f"timings vary by {spread:.0%} from pass to pass: the machine is busy, try again when it isn't")
    if not reasons:
        reasons.append("widths come in steps that are too coarse, or most channels are frozen: lower multiple_of or min_channels")
    return "; ".join(reasons)[0].upper() + "; ".join(reasons)[1:]
