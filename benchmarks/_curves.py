"""Accuracy over cost as an SVG: a line for each of the best rows, a band of one deviation around the best of each side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = {"prunus": "#2a78d6", "torch-pruning": "#d6572a", "control": "#777777"}
DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 4", "8 3 2 3 2 3")
LEFT, TOP, WIDE, HIGH = 60, 46, 420, 330
BANDS = 2
NEAREST = 24
"""Pixels between the labels of two costs, at least."""


@dataclass(frozen=True)
class Curve:
    """Points are (cost, accuracy, deviation)."""

    name: str
    side: str
    points: Sequence[tuple[float, float, float]]


def curves(title: str, unit: str, drawn: Sequence[Curve]) -> str:
    """The picture; rows are named at the right, in the order of their accuracy at the lowest cost.

    Of each side as many of the best as there are dashes: lines that look alike can't be told apart. What is left out is said
    behind the unit.
    """
    best = sorted(drawn, key=lambda curve: -min(curve.points)[1])
    sides = {side: [curve for curve in best if curve.side == side][: len(DASHES)] for side in COLOURS}
    ordered = [curve for curve in best if curve in sides[curve.side]]
    unit += f"; the best {len(DASHES)} rows of each side" * (len(ordered) < len(drawn))
    costs = [x for curve in ordered for x, _, _ in curve.points]
    values = [y + sign * spread for curve in ordered for _, y, spread in curve.points for sign in (-1, 1)]
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    span, width = (high - low) or 1.0, (max(costs) - min(costs)) or 1.0

    def at(x: float, y: float) -> str:
        return f"{LEFT + WIDE * (x - min(costs)) / width:.1f},{TOP + HIGH * (1 - (y - low) / span):.1f}"

    banded = [curve for own in sides.values() for curve in own[:BANDS]]
    parts = [f'<text x="12" y="24" font-size="14" font-weight="600">{escape(title)}</text>']
    for value in ticks:
        y = at(min(costs), value).split(",")[1]
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{LEFT + WIDE}" y2="{y}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end" fill="#555">{value:g}</text>')
    for cost in _apart(sorted({round(x) for x in costs}), NEAREST * width / WIDE):
        x = at(cost, low).split(",")[0]
        parts.append(f'<text x="{x}" y="{TOP + HIGH + 18}" text-anchor="middle" fill="#555">{cost}</text>')
    for curve in banded:
        points = sorted(curve.points)
        edge = [at(x, y + spread) for x, y, spread in points] + [at(x, y - spread) for x, y, spread in reversed(points)]
        parts.append(f'<polygon points="{" ".join(edge)}" fill="{COLOURS[curve.side]}" fill-opacity="0.12"/>')
    for i, curve in enumerate(ordered):
        dash = DASHES[sides[curve.side].index(curve)]
        style = f'stroke="{COLOURS[curve.side]}" stroke-dasharray="{dash}" fill="none" stroke-width="1.6"'
        parts.append(f'<polyline points="{" ".join(at(x, y) for x, y, _ in sorted(curve.points))}" {style}/>')
        dots = [at(x, y).split(",") for x, y, _ in curve.points]
        parts += [f'<circle cx="{x}" cy="{y}" r="2.4" fill="{COLOURS[curve.side]}"/>' for x, y in dots]
        y = TOP + 6 + 15 * i
        parts.append(f'<line x1="{LEFT + WIDE + 24}" y1="{y}" x2="{LEFT + WIDE + 54}" y2="{y}" {style}/>')
        parts.append(f'<text x="{LEFT + WIDE + 60}" y="{y + 4}">{escape(curve.name)}</text>')
    height = max(TOP + HIGH + 44, TOP + 15 * len(ordered) + 20)
    parts.append(f'<text x="{LEFT + WIDE / 2}" y="{TOP + HIGH + 38}" text-anchor="middle" fill="#555">{escape(unit)}</text>')
    whole = LEFT + WIDE + 230
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{whole}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""])


def _ticks(lowest: float, highest: float) -> list[float]:
    """Round values, four to eight of them, from below the lowest to above the highest."""
    rough = (highest - lowest or 1.0) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * i for i in range(math.floor(lowest / step), math.ceil(highest / step) + 1)]


def _apart(costs: Sequence[int], least: float) -> list[int]:
    """Those of the costs, ascending, that are at least so far from the one before."""
    found: list[int] = []
    for cost in costs:
        if not found or cost - found[-1] >= least:
            found.append(cost)
    return found
