"""Latency budgets for continuous integration: whether a bench's networks keep within them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunus.errors import BudgetNotMet, ExportError


def check_limits(result: Mapping[str, Any], *, max_ms: float | None = None, min_speed_up: float | None = None) -> None:
    """Raise where a network of a bench takes more than ``max_ms`` (median), or isn't ``min_speed_up`` times as fast as the first.

    Of several networks the first is the reference and free to take what it takes. Milliseconds belong to one machine; a
    speed-up is measured in turns and holds on a slower one as well.

    Raises:
        BudgetNotMet: a network in one of the settings doesn't keep within a limit; the text names all that don't.
        ExportError: a setting couldn't be measured, so that nobody knows; ``min_speed_up`` with a single network.
    """
    first, others = result["reference"], [row["name"] for row in result["networks"][1:]]
    if min_speed_up is not None and not others:
        raise ExportError("a speed-up is that of a second network beside the first: name two, or limit milliseconds")
    failed = [f"{row['case']}: {row['error']}" for row in result["cases"] if row["error"] is not None]
    if failed:
        raise ExportError(f"nobody knows whether the limits are kept, as not everything could be measured: {'; '.join(failed)}")
    broken = [text for row in result["cases"] for name in others or [first] for text in _broken(row, name, max_ms, min_speed_up)]
    if broken:
        raise BudgetNotMet("; ".join(broken))


def _broken(row: Mapping[str, Any], name: str, max_ms: float | None, min_speed_up: float | None) -> list[str]:
    """What a network exceeds in one setting."""
    found, told = row["networks"][name], []
    low, high = found["interval_ms"]
    if max_ms is not None and found["p50_ms"] > max_ms:
        told.append(
            f"{name} takes {found['p50_ms']:.3g} ms ({low:.3g} to {high:.3g}) on {row['case']}, "
            f"{found['p50_ms'] / max_ms - 1:.1%} more than the {max_ms:.3g} ms allowed{_doubt(low <= max_ms)}"
        )
    if min_speed_up is not None and row["compared"][name]["speed_up"] < min_speed_up:
        speed_up, (low, high) = row["compared"][name]["speed_up"], row["compared"][name]["interval"]
        told.append(
            f"{name} is {speed_up:.3g} times as fast as the first network ({low:.3g} to {high:.3g}) on {row['case']}, not "
            f"{min_speed_up:.3g} times{_doubt(high >= min_speed_up)}"
        )
    return told


def _doubt(within: bool) -> str:
    return "; the interval holds the limit, so that another measurement may come out otherwise" if within else ""
