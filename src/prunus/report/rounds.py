"""Iterative pruning: accuracy against what is left of the MACs, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.drawing import SERIES, Figure, axis, large_markers, layout, line, place, plotly_text
from prunus.report.wording import count, escape, folded, is_number, percent, ratio, short, table

Row = Mapping[str, Any]
MOST_LABELS = 10


def rounds(result: Mapping[str, Any]) -> str:
    """The plot and its table; empty where pruning took a single round."""
    if rounds_figure(result) is None:
        return ""
    rows = [
        [
            escape(_round_name(row)),
            count(row["macs"]),
            percent(share),
            count(row.get("parameters")),
            count(row.get("channels")),
            percent(row["accuracy"]),
            escape(row.get("split", "")),
        ]
        for row, share in _with_shares(result["rounds"])
    ]
    head = ["round", "MACs", "MACs left", "parameters", "channels", "accuracy", "split"]
    title = "Accuracy against MACs left: each mark is a round of pruning, from right to left"
    listed = folded("Every round as a table", table("Rounds of pruning", head, rows, (1, 2, 3, 4, 5)))
    return f"<h3>Round by round</h3>{place('plot-rounds', title)}{listed}"


def rounds_figure(result: Mapping[str, Any]) -> Figure | None:
    """Accuracy over MACs left, both in percent, one line per split; None up to two entries, or where nothing is known."""
    entries: Sequence[Row] = result.get("rounds") or ()
    known = [(row, share) for row, share in _with_shares(entries) if share is not None and is_number(row["accuracy"])]
    if len(entries) <= 2 or not known:
        return None
    splits = list(dict.fromkeys(str(row.get("split", "")) for row, _ in known))
    traces: list[dict[str, Any]] = []
    for split, style in zip(splits, SERIES * len(splits), strict=False):
        rows = [(row, share) for row, share in known if str(row.get("split", "")) == split]
        trace: dict[str, Any] = line(f"{split} accuracy", style) | {
            "mode": "lines+markers+text",
            "x": [share * 100 for _, share in rows],
            "y": [row["accuracy"] * 100 for row, _ in rows],
            "text": _labels([row for row, _ in rows]),
            "textposition": "top center",
            "textfont": {"color": "var(--ink)", "size": 12},
            "customdata": [[plotly_text(_round_name(r)), short(r["macs"]), percent(s), percent(r["accuracy"])] for r, s in rows],
            "hovertemplate": "%{customdata[0]}<br><b>%{customdata[3]}</b><br>"
            "%{customdata[1]} MACs, %{customdata[2]}<extra></extra>",
            "cliponaxis": False,
            "marker": large_markers(style),
        }
        traces.append(trace)
    frame = layout(320, legend=len(splits) > 1)
    least = min(share for _, share in known) * 100
    frame["xaxis"] = axis("MACs left") | {"ticksuffix": " %", "range": [least - 0.06 * (100 - least) - 1, 106], "zeroline": False}
    frame["yaxis"] = axis("") | {"ticksuffix": " %", "range": _accuracy_range([row["accuracy"] * 100 for row, _ in known])}
    return {"data": traces, "layout": frame}


def _with_shares(entries: Sequence[Row]) -> list[tuple[Row, float | None]]:
    """Every entry with the share of the first one's MACs that it has left."""
    return [(row, ratio(row["macs"], entries[0]["macs"])) for row in entries]


def _round_name(row: Row) -> str:
    """``round 3, after fine-tuning``, whether the entry calls its stage ``fine-tuning`` or ``round 3: after fine-tuning``."""
    if row["round"] == 0:
        return "before pruning"
    after = str(row.get("after") or "").rpartition("after ")[2]
    return f"round {row['round']}" + (f", after {after}" if after else "")


def _labels(rows: Sequence[Row]) -> list[str]:
    """``before``, then the number of the round; of many rounds the last and every so manyth."""
    step = -(-len(rows) // MOST_LABELS)
    last = len(rows) - 1
    return [
        "" if n % step and n != last else "before" if row["round"] == 0 else plotly_text(row["round"])
        for n, row in enumerate(rows)
    ]


def _accuracy_range(shares: Sequence[float]) -> list[float]:
    """At least five points high, with room for the labels above."""
    low, high = min(shares), max(shares)
    height = max(high - low, 5.0)
    return [max(low - 0.15 * height, -1.0), min(high + 0.3 * height, 112.0)]
