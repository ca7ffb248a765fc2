"""The page of the coverage matrix, from its JSON."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from _coverage_peer_page import peer_section

from prunus.files import write_atomically

Row = Mapping[str, Any]
VERDICTS = ("exact", "exact after repair", "partly frozen", "refused", "error", "time-out")
KINDS = ("cnn", "hybrid", "transformer", "quantized", "segmentation", "detection", "video", "optical flow")
ENOUGH = 0.8
"""Share of the MACs that a network must hold in prunable channels to count as prunable."""


def write_page(rows: Mapping[str, Any], path: Path) -> None:
    """Write the page that ``rows`` (the JSON) make."""
    write_atomically(path, page(rows).encode())


def page(rows: Mapping[str, Any]) -> str:
    """The whole page as Markdown."""
    networks: dict[str, Row] = dict(sorted(rows["networks"].items()))
    header = rows["header"]
    versions = header["environment"]
    lines = [
        "# Which networks are pruned exactly",
        "",
        f"Made by `make coverage-matrix` from {len(networks)} networks with torch {versions['torch']}, "
        f"torchvision {versions['torchvision']} and timm {versions.get('timm', '')}. Each runs in a process of its own with "
        f"{header['limit']} s of CPU time on one thread and {header['memory_gb']:.0f} GB. All parameters and buffers are random, "
        "away from zero; half of the channels of every group are removed; the small network must equal the silenced one in "
        "float64, in evaluation and training mode, cost what was predicted and take a training step "
        "(`prunus.testing.check_network`).",
        "",
        "- *exact*: nothing is frozen but the network's output.",
        "- *exact after repair*: likewise; attributes that hold a width were edited along.",
        "- *partly frozen*: some groups stay whole, for the reasons below; all others are pruned exactly.",
        "- *refused*: Prunus says why and returns nothing. *error*: Prunus broke down. *time-out*: over the limit of time or of "
        "memory.",
        "",
        "MACs: share of the network's MACs in channels that may be pruned. Seconds are CPU seconds of trace + plan + remove and, "
        "apart, of a forward pass. Memory is the peak of trace + plan + remove, with the network itself, over that of a forward "
        "pass.",
        "",
        *_counts(networks),
        *peer_section(networks, header),
        *_families(networks),
        *_slowest(networks),
        *_table(networks),
        *_reasons(networks),
    ]
    return "\n".join(lines) + "\n"


def _counts(networks: Mapping[str, Row]) -> list[str]:
    lines = ["## Counts", "", f"| | networks | {' | '.join(VERDICTS)} | at least {ENOUGH:.0%} of the MACs prunable |"]
    lines.append("|---|" + "---:|" * (len(VERDICTS) + 2))
    for kind in (*KINDS, "all"):
        chosen = [r for r in networks.values() if kind in (r["kind"], "all")]
        if chosen:
            verdicts = Counter(r["verdict"] for r in chosen)
            enough = sum(_prunable(r) for r in chosen)
            counts = " | ".join(str(verdicts[v]) for v in VERDICTS)
            lines.append(f"| {kind} | {len(chosen)} | {counts} | {enough} |")
    return [*lines, ""]


def _prunable(row: Row) -> bool:
    return row["verdict"] in VERDICTS[:3] and row.get("prunable_share", 0.0) >= ENOUGH


def _families(networks: Mapping[str, Row]) -> list[str]:
    """A family is counted by all of its members, among the transformers if one of them is one."""
    members: dict[str, list[Row]] = defaultdict(list)
    for key, row in networks.items():
        members[f"{key.partition(':')[0]} {row['family']}"].append(row)
    transformers = {name for name, rows in members.items() if any(row["kind"] == "transformer" for row in rows)}
    lines = ["## Families", ""]
    for kind, names in (("networks with convolutions", members.keys() - transformers), ("transformers", transformers)):
        short = sorted(name for name in names if not all(_prunable(row) for row in members[name]))
        if names:
            lines.append(
                f"Of {len(names)} families of {kind}, {len(names) - len(short)} ({1 - len(short) / len(names):.1%}) have all "
                f"their members here prunable in groups that hold at least {ENOUGH:.0%} of the MACs."
                + (f" The others: {', '.join(short)}." if short else "")
            )
            lines.append("")
    return lines


def _slowest(networks: Mapping[str, Row]) -> list[str]:
    timed = {key: sum(row["seconds"].values()) for key, row in networks.items() if "seconds" in row}
    if not timed:
        return []
    lines = ["## The slowest", "", "| network | trace + plan + remove, s | forward, s |", "|---|---:|---:|"]
    for key in sorted(timed, key=lambda k: -timed[k])[:5]:
        lines.append(f"| {key} | {timed[key]:.2f} | {networks[key]['forward_seconds']:.2f} |")
    over = sum(seconds > 2 for seconds in timed.values())
    return [*lines, "", f"{over} of {len(timed)} networks take more than 2 s.", ""]


def _table(networks: Mapping[str, Row]) -> list[str]:
    peers = any("peer" in row for row in networks.values())
    told = " torch-pruning | s | Prunus beside it, s |" if peers else ""
    lines = [
        "## Networks",
        "",
        "| network | input | verdict | MACs | mixing | s | forward s | memory |" + told,
        "|---|---|---|---:|---:|---:|---:|---:|" + ("---|---:|---:|" if peers else ""),
    ]
    for key, row in networks.items():
        cells = [key, row.get("input", ""), row["verdict"], _percent(row.get("prunable_share")), row.get("mixing", "")]
        cells += [_number(sum(row["seconds"].values()) if "seconds" in row else None), _number(row.get("forward_seconds"))]
        cells.append(_memory(row))
        if peers:
            peer = row.get("peer", {})
            cells += [peer.get("verdict", ""), _number(peer.get("seconds")), _number(peer.get("prunus_seconds"))]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return [*lines, ""]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _number(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"


def _memory(row: Row) -> str:
    if row.get("pruning_mb") is None or row.get("forward_mb") is None:
        return ""
    return f"{(row['model_mb'] + row['pruning_mb']) / (row['model_mb'] + row['forward_mb']):.1f}x"


def causes(networks: Mapping[str, Row]) -> dict[str, dict[str, list[str]]]:
    """Reason without its place -> network -> the groups that it keeps whole, the most frequent reason first."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key, row in networks.items():
        for group, reason in row.get("shortcomings", {}).items():
            found[cause(reason)][key].append(group or "the whole network")
        if row["verdict"] in ("error", "time-out"):
            found[f"{row['verdict']}: {row.get('error', '')[:200]}"][key].append(row.get("where", ""))
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def cause(reason: str) -> str:
    """A reason without module paths and figures: what networks have in common. Source lines stay."""
    reason = re.sub(r" \(called in `[^`]*`\)", "", reason)
    reason = re.sub(r"it breaks in `[^`]*`", "it breaks", reason)
    return re.sub(r"(\w+\.py:\d+)|\d+(?:\.\d+)?(?:e[+-]\d+)?", lambda found: found[1] or "#", reason)


def _reasons(networks: Mapping[str, Row]) -> list[str]:
    lines = ["## What stays whole, and why", ""]
    for reason, where in causes(networks).items():
        lines.append(f"- {reason}: {len(where)} network{'s' * (len(where) != 1)}, e.g. {_examples(where)}")
    return lines if len(lines) > 2 else []


def _examples(where: Mapping[str, Iterable[str]]) -> str:
    shown = [f"{key} (`{next(iter(groups))}`)" for key, groups in list(where.items())[:3]]
    return ", ".join(shown)
