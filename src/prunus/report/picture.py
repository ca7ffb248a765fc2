"""The network as a picture: its layers along the depth, widths before and after, which of them are coupled, and their time.

It is a grid of plain HTML, so it needs no script, prints, and its text stays readable at any width of the screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.wording import MISSING, count, escape, folded, milliseconds, percent, ratio, short, table

Result = Mapping[str, Any]
Link = tuple[int, int, list[int]]
"""Rows from the first to the last of coupled layers, and all of them."""
HEAD = 1  # rows of the grid above the layers


def picture(result: Result) -> str:
    """The section of a run's report; empty for a result without layers."""
    layers = result.get("layers")
    if not layers:
        return ""
    rows: Sequence[Result] = layers["rows"]
    groups = {group["name"]: group for group in result["groups"]}
    lanes = _lanes(_links(rows))
    scale = max(1, *(row["before"]["writes"] for row in rows))
    slowest = max(1e-9, *(part["ms"] for row in rows for part in (row["before"], row["after"]) if part))
    cells = [_row(row, groups, number, scale, slowest) for number, row in enumerate(rows, start=HEAD + 1)]
    links = [_link(link, lane) for lane, linked in enumerate(lanes) for link in linked]
    label = "Layers from the input to the output: channels before and after, couplings, and time; the table below has the figures"
    heads = "".join(
        f'<span class="head" style="grid-area:1/{column}">{text}</span>'
        for column, text in ((1, "layer"), (2, "channels written"), (5, "time"))
    )
    grid = (
        f'<div class="network" role="img" tabindex="0" aria-label="{label}" style="--lanes:{len(lanes)}">'
        f"{heads}{''.join(cells)}{''.join(links)}</div>"
    )
    note = f'<p class="note">{_note(bool(lanes), layers["threads"])}</p>'
    return (
        f'<section id="network"><h2>The network, layer by layer</h2>{note}{_legend(rows, groups)}{grid}{_table(rows)}</section>'
    )


def _note(coupled: bool, threads: int) -> str:
    text = "From the input down to the output. "
    if coupled:
        text += "A bracket couples layers whose outputs are added: they keep the same channels. "
    number = "1 thread" if threads == 1 else f"{count(threads)} threads"
    return f"{text}Time is that of the layer alone in eager PyTorch, one image, {number}; what is between layers isn't in it."


def _legend(rows: Sequence[Result], groups: Mapping[str, Result]) -> str:
    frozen = any(_reason(row, groups) for row in rows)
    entries = [("before", "before"), ("after", "after"), *([("frozen", "frozen (hover for the reason)")] if frozen else [])]
    items = "".join(f'<li><span class="swatch {kind}" aria-hidden="true"></span>{text}</li>' for kind, text in entries)
    return f'<ul class="legend">{items}</ul>'


def _row(row: Result, groups: Mapping[str, Result], line: int, scale: int, slowest: float) -> str:
    before, after, reason = row["before"], row["after"], _reason(row, groups)
    name, kind, left = escape(row["name"]), "frozen" if reason else "after", after["writes"] if after else 0
    widths = f"{count(left)} of {count(before['writes'])}"
    told = [f"{name}: {escape(row['kind'])}", f"{widths} channels" if after else "removed as a whole"]
    told += [f"frozen: {escape(reason)}"] if reason else []
    times = f"{milliseconds(before['ms'])} → {milliseconds(after['ms']) if after else 'gone'}"
    return (
        f'<span class="name" style="grid-area:{line}/1" title="{told[0]}"><bdi>{name}</bdi></span>'
        f'<span class="bar" style="grid-area:{line}/2" title="{"; ".join(told)}">'
        f"{_bar('before', before['writes'] / scale)}{_bar(kind, left / scale)}</span>"
        f'<span class="count" style="grid-area:{line}/3">{widths}</span>'
        f'<span class="time" style="grid-area:{line}/5" title="{name}: {times}">'
        f"{_bar('before', before['ms'] / slowest)}{_bar('after', after['ms'] / slowest if after else 0)}</span>"
    )


def _bar(kind: str, share: float) -> str:
    return f'<i class="{kind}" style="width:{100 * share:.2f}%"></i>' if share else ""


def _reason(row: Result, groups: Mapping[str, Result]) -> str | None:
    """Why what this layer writes can't be pruned, if all of it can't."""
    reasons = [groups[name]["frozen_because"] for name in row["writes"] if name in groups]
    return reasons[0] if reasons and all(reasons) else None


def _links(rows: Sequence[Result]) -> list[Link]:
    """Layers that make the channels of one group, where there are several."""
    makers: dict[str, list[int]] = {}
    for line, row in enumerate(rows, start=HEAD + 1):
        for name in row["writes"] if row["makes"] else ():
            makers.setdefault(name, []).append(line)
    spans = {tuple(lines): (lines[0], lines[-1], lines) for lines in makers.values() if len(set(lines)) > 1}
    return list(spans.values())


def _lanes(links: Sequence[Link]) -> list[list[Link]]:
    """Brackets side by side where they overlap, each in the first lane that is free: short ones next to the bars."""
    lanes: list[list[Link]] = []
    for link in sorted(links, key=lambda one: one[1] - one[0]):
        free = next((lane for lane in lanes if all(link[0] > end or link[1] < start for start, end, _ in lane)), None)
        if free is None:
            lanes.append(free := [])
        free.append(link)
    return lanes


def _link(link: Link, lane: int) -> str:
    first, last, lines = link
    ticks = "".join(f'<i class="tick" style="grid-area:{line}/4;--lane:{lane}"></i>' for line in lines)
    return f'<i class="link" style="grid-area:{first}/4/{last + 1}/5;--lane:{lane}"></i>{ticks}'


def _table(rows: Sequence[Result]) -> str:
    cells = [
        [
            f"<code>{escape(row['name'])}</code>",
            escape(row["kind"]),
            _channels(row["before"]),
            _channels(row["after"]),
            *_pair(row, "macs", short),
            *_pair(row, "ms", milliseconds),
        ]
        for row in rows
    ]
    head = ["layer", "kind", "reads → writes", "after", "MACs", "after", "left", "time", "after", "left"]
    return folded("Every layer as a table", table("Layers", head, cells, tuple(range(2, 10))))


def _channels(figures: Result | None) -> str:
    return f"{count(figures['reads'])} → {count(figures['writes'])}" if figures else "gone"


def _pair(row: Result, key: str, written: Any) -> list[str]:
    before, after = row["before"][key], (row["after"] or {key: 0})[key]
    return [written(before), written(after) if row["after"] else MISSING, percent(ratio(after, before))]
