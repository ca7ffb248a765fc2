"""What the commands print: tables from the same values that the JSON output holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from prunus.allocation import Reach
from prunus.budgets import shown_amount
from prunus.types import ChannelGraph


def graph_table(graph: ChannelGraph) -> Table:
    """Every group with its state; frozen ones with their reason."""
    table = Table(title="channel groups", title_justify="left")
    for heading, justify in (("group", "left"), ("channels", "right"), ("layers", "right"), ("state", "left")):
        table.add_column(heading, justify=justify, overflow="fold")  # pyright: ignore[reportArgumentType]
    for group in graph.groups:
        state = (
            f"frozen: {group.frozen_because}" if group.frozen_because else ("prunable, mixing" if group.mixing else "prunable")
        )
        writers = {m.parameter_axis.parameter.rpartition(".")[0] for m in group.with_role("writes")}
        units = group.width_factor  # of a layer whose groups, heads or norm's groups all lose the same slots
        channels = f"{group.num_channels}" if units == 1 else f"{group.num_channels} x {units}"
        table.add_row(escape(group.name), channels, str(len(writers)), escape(state))
    return table


def graph_json(graph: ChannelGraph) -> dict[str, Any]:
    """The same as plain values."""
    cost = graph.cost()
    groups = [
        {
            "name": g.name,
            "channels": g.num_channels,
            "frozen_because": g.frozen_because,
            "mixing": g.mixing,
            "members": [
                {"parameter": m.parameter_axis.parameter, "axis": m.parameter_axis.axis, "role": m.parameter_axis.role}
                for m in g.members
            ],
        }
        for g in graph.groups
    ]
    costs = {"macs": cost.macs, "parameters": cost.parameters, "activation_bytes": cost.activation_bytes}
    return {**costs, "groups": groups, "unsupported_ops": dict(graph.unsupported_ops), "notes": list(graph.notes)}


def reach_table(rows: Sequence[Reach]) -> Table:
    """Smallest, asked for and full, target by target."""
    table = Table(title="how far the budget can go", title_justify="left")
    for heading in ("target", "smallest", "asked for", "now", ""):
        table.add_column(heading, justify="left" if heading in ("target", "") else "right")
    for row in rows:
        state = "met already" if row.asked >= row.full else "reachable" if row.reachable else "out of reach"
        smallest, asked, full = (
            shown_amount(row.target, value).removesuffix(f" {row.target}") for value in (row.smallest, row.asked, row.full)
        )
        figures = f"{smallest} ({row.smallest / row.full:.1%})", f"{asked} ({row.asked / row.full:.1%})"
        table.add_row(row.target, *figures, full, state)
    return table


def result_table(result: Mapping[str, Any]) -> Table:
    """The summary of a run: both networks side by side."""
    before, after = result["networks"]["before"], result["networks"]["after"]
    table = Table(title=f"{escape(str(result['name']))}: {escape(str(result['request']['model']))}", title_justify="left")
    for heading in ("", "before", "after", "left"):
        table.add_column(heading, justify="left" if not heading else "right")
    stages = result["stages"]
    first, last = stages[0], stages[-1]
    table.add_row(
        "test accuracy",
        f"{first['accuracy']:.2%}",
        f"{last['accuracy']:.2%}",
        f"{100 * (last['accuracy'] - first['accuracy']):+.2f} points",
    )
    for stage in stages[1:-1]:
        table.add_row(f"  {stage['stage']}", "", f"{stage['accuracy']:.2%}", "")
    for label, key in (
        ("MACs", "macs"),
        ("parameters", "parameters"),
        ("peak activations, bytes", "activation_bytes"),
        ("file, bytes", "file_bytes"),
    ):
        table.add_row(label, f"{before[key]:,}", f"{after[key]:,}", f"{after[key] / max(before[key], 1):.1%}")
    pairs = [(f"latency, {before['latency']['runtime']}", before["latency"], after["latency"])]
    pairs += [(f"latency, {e['latency_after']['runtime']}", e["latency_before"], e["latency_after"]) for e in result["exports"]]
    for label, a, b in pairs:
        table.add_row(
            label, f"{a['median_ms']:.3f} ms", f"{b['median_ms']:.3f} ms", f"{a['median_ms'] / b['median_ms']:.2f}x as fast"
        )
    return table


def result_notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences under the summary: the budget, the proof, the exports."""
    notes: list[str] = []
    for row in result["budget"]:
        verdict = "met" if row["met"] else "NOT met"
        asked, achieved = (
            shown_amount(row["target"], row[k]).removesuffix(f" {row['target']}") for k in ("requested", "achieved")
        )
        told = f", {shown_amount('latency', row['predicted'])} predicted" if row.get("predicted") else ""
        notes.append(f"budget: {row['target']} <= {asked} asked for{told}, {achieved} achieved ({verdict})")
    proof = result["verification"]
    bound = f"(tolerance {proof['tolerance']:.0e})"
    notes.append(f"removed == silenced: largest relative error {proof['max_error']:.1e} in float64 {bound}")
    for export in result["exports"]:
        agrees = f"{export['format']} agrees with PyTorch, largest relative error {export['max_error']:.1e}"
        notes.append(f"{export['file']}: {agrees}")
    prunable = sum(not group["frozen_because"] for group in result["groups"])
    notes.append(f"{prunable} of {len(result['groups'])} channel groups prunable; the report says why the others aren't")
    return notes
