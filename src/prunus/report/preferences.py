"""The section about what channels prefer; the pictures are on a page of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunus.report.wording import MISSING, escape, table


def preferences(result: Mapping[str, Any]) -> str:
    """The section; empty for a result without a gallery."""
    found = result.get("gallery")
    if not found:
        return ""
    rows = [
        [
            escape(row["name"]),
            str(row["channels"]),
            str(row["clusters"]),
            str(row["removed"]),
            MISSING if row["similarity"] is None else f"{row['similarity']:.2f}",
            MISSING if row["lost"] is None else str(row["lost"]),
        ]
        for row in found["rows"]
    ]
    head = ["group", "channels", "clusters", "removed", "similarity after recovery", "functions lost"]
    note = (
        "The pattern that each channel responds to most, clustered; similarity is the median cosine of a kept channel's patterns "
        f"before pruning and after recovery, and a function counts as lost below {found['lost_below']:g}. "
        f'<a href="{escape(found["file"])}">All patterns</a> are in a page of their own.'
    )
    shown = table("Preferred patterns by group", head, rows, numeric=range(1, len(head)))
    return f'<section id="preferences"><h2>What channels prefer</h2><p class="note">{note}</p>{shown}</section>'
