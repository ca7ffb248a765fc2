"""The part of the coverage page that sets Prunus beside another tool."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
OUTCOMES = (
    "exact",
    "exact up to norms",
    "inexact",
    "broken forward",
    "refused",
    "error",
    "time-out",
    "nothing pruned",
    "not judged",
)
RETURNED = ("exact", "exact up to norms", "inexact", "broken forward", "nothing pruned", "not judged")
"""Outcomes with a network to look at: its time counts."""


def peer_section(networks: Mapping[str, Row], header: Mapping[str, Any]) -> list[str]:
    """Both tools on the same networks as lines of Markdown; none where the other tool saw no network."""
    seen = {key: row for key, row in networks.items() if "peer" in row}
    if not seen:
        return []
    peer = header["peer"]
    name = f"{peer['name']} {peer['version']}"
    ours, theirs = (Counter(outcome(row) for row in seen.values()), Counter(row["peer"]["verdict"] for row in seen.values()))
    shown = [o for o in OUTCOMES if ours[o] or theirs[o]]
    partly = sum(row["verdict"] == "partly frozen" for row in seen.values())
    lines = [
        f"## Beside {name}",
        "",
        f"{len(seen)} of the networks on this page, convolutional ones and small ones first; half of the channels of every layer "
        "but the network's heads (`BasePruner`, `GroupMagnitudeImportance`, as its README says; the heads are told to it); "
        f"{peer['limit']} s of CPU time and {peer['memory_gb']:.0f} GB.",
        "",
        f"| | networks | {' | '.join(shown)} |",
        "|---|" + "---:|" * (len(shown) + 1),
        *(
            f"| {tool} | {len(seen)} | {' | '.join(str(counts[o]) for o in shown)} |"
            for tool, counts in (("Prunus", ours), (name, theirs))
        ),
        "",
        f"Prunus is judged as told at the top; in {partly} of these networks some groups stay whole (*partly frozen*), and what "
        f"is removed is exact. {name} is judged by the numbers that it returns: all values of a weight are unlike, so that the "
        "inputs that it removed are found by value; they are set to zero in the original, and the outputs must be equal in "
        "float64 (relative 1e-6), in evaluation mode.",
        "",
        "- *exact up to norms*: layer, group and RMS norms see fewer channels, by design, and all else is exact. Prunus' "
        "networks with such a group count here, too.",
        "- *broken forward*: a network comes back that doesn't run. *inexact*: it runs and computes something else.",
        "- *not judged*: channels meet in softmaxes or other operations that no reference of this page covers, or the comparison "
        "itself didn't end.",
        "",
        *_times(seen, name),
    ]
    return [*lines, ""]


def outcome(row: Row) -> str:
    """Prunus' verdict in the words of the comparison."""
    if row["verdict"] not in ("exact", "exact after repair", "partly frozen"):
        return row["verdict"]
    if not row.get("groups") or not row.get("prunable_share"):
        return "nothing pruned"
    return "exact up to norms" if row.get("mixing") else "exact"


def _times(seen: Mapping[str, Row], name: str) -> list[str]:
    pairs = {
        key: (row["peer"]["seconds"], row["peer"]["prunus_seconds"])
        for key, row in seen.items()
        if row["peer"]["verdict"] in RETURNED and row["peer"].get("seconds") and row["peer"].get("prunus_seconds")
    }
    if not pairs:
        return []
    ratios = {key: theirs / ours for key, (theirs, ours) in pairs.items()}
    slow, fast = max(ratios, key=lambda k: ratios[k]), min(ratios, key=lambda k: ratios[k])
    faster = sum(ratio > 1 for ratio in ratios.values())
    own, other = (_median(pair[i] for pair in pairs.values()) for i in (1, 0))
    middle, least, most = (f"{r:.2f}" for r in (_median(ratios.values()), ratios[fast], ratios[slow]))
    return [
        "Time: CPU seconds on one thread, both tools in the same process, alternating, the better of two runs (of one run where "
        f"that takes long). Prunus: trace + plan (random channels) + remove; {name}: building the pruner + `step`. On the "
        f"{len(pairs)} networks where both return a network the median is {own:.2f} s for Prunus and {other:.2f} s for {name}; "
        f"the median of its time over Prunus' is {middle} (from {least}, {fast}, to {most}, {slow}), and Prunus is faster on "
        f"{faster}. Proving the result isn't in Prunus' time: the other tool has no such step.",
    ]


def _median(values: Any) -> float:
    return statistics.median(list(values))
