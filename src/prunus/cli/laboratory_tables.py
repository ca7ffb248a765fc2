"""What the laboratory's commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from prunus.report.laboratory_plots import ranked, signed
from prunus.types import ChannelGraph, Scores


def scores_table(graph: ChannelGraph, found: Scores) -> Table:
    """Every prunable group: the range of its scores and its five lowest channels."""
    table = Table(title=f"scores by {escape(found.criterion)}, higher = keep", title_justify="left")
    for heading in ("group", "channels", "lowest", "mean", "highest", "lowest channels"):
        table.add_column(heading, justify="left" if heading in ("group", "lowest channels") else "right", overflow="fold")
    for group in graph.prunable:
        values = found.by_group.get(group.name)
        if values is None:
            table.add_row(escape(group.name), str(group.num_channels), "", "", "", "no score: kept whole")
            continue
        lowest = ", ".join(map(str, values.argsort(stable=True)[:5].tolist()))
        figures = (f"{float(v):.4g}" for v in (values.min(), values.mean(), values.max()))
        table.add_row(escape(group.name), str(group.num_channels), *figures, lowest)
    return table


def comparison_table(result: Mapping[str, Any]) -> Table:
    """Best agreement first; what couldn't be compared is left to the lines below."""
    removal = result["removal"]
    curves, recoveries = (removal["curves"], removal["recoveries"]) if removal else ({}, [])
    share = min(result["settings"]["shares"], key=lambda s: abs(s - 0.5), default=0.5)
    table = Table(title="criteria against the oracle, mean over the seeds", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("criterion ", no_wrap=True, overflow="ellipsis")
    short = {"recalibrated": "recal.", "fine-tuned": "tuned"}
    for heading in ("raw", "L2", "within", "lowest", "seconds", *(short.get(name, name) for name in recoveries)):
        table.add_column(f" {heading}", justify="right")
    reference = [row for row in result["criteria"] if row["reference"]]
    for row in (*ranked(result), *reference):
        cells = [""] * 4 if row["reference"] else [signed(row["spearman"][k]["mean"]) for k in ("raw", "l2", "within")]
        cells += [] if row["reference"] else [f"{row['overlap']['l2']['mean']:.0%}"]
        cells.append(f"{row['seconds']['mean']:.2f}")
        points = (curves.get(row["name"], {}).get(recovery, ()) for recovery in recoveries)
        found = [next((p["mean"] for p in one if p["share"] == share), None) for one in points]
        table.add_row(escape(row["name"]), *cells, *("" if value is None else f"{value:.1%}" for value in found))
    return table


def comparison_legend(result: Mapping[str, Any]) -> str:
    """What the columns of the table are."""
    text = (
        "raw, L2: rank correlation with the oracle over all layers, of scores as they are and L2-normalised within each layer; "
        "within: its mean within the layers; lowest: share of the lowest 20 % (L2) that are among the oracle's; seconds: to score"
    )
    if result["removal"]:
        share = min(result["settings"]["shares"], key=lambda s: abs(s - 0.5))
        text += f"; {', '.join(result['removal']['recoveries'])}: test accuracy with {share:.0%} of the channels removed"
    return text
