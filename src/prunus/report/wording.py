"""How figures and names are written in the report. Everything that returns HTML has escaped its input."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

MISSING = "\u2013"  # en dash
TIMES = "\u00d7"


def escape(value: object) -> str:
    """Any value as HTML text, safe inside elements and quoted attributes."""
    return html.escape(str(value), quote=True)


def is_number(value: object) -> bool:
    """True for a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count(value: Any) -> str:
    """``1,035,000``."""
    if not is_number(value):
        return MISSING
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def short(value: Any) -> str:
    """``1.04 M``: three significant figures."""
    if not is_number(value):
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.9995:  # rounds up to the next unit
            return f"{_three(value / size)} {unit}"
    return _three(value)


def size(value: Any) -> str:
    """Bytes as ``1.04 MB`` (decimal units)."""
    if not is_number(value):
        return MISSING
    text = short(value)
    return f"{text[:-1]}{text[-1]}B" if text[-1] in "GMk" else f"{text} B"


def percent(share: Any) -> str:
    """0.398 -> ``39.8 %``."""
    return f"{share * 100:.1f} %" if is_number(share) else MISSING


def points(difference: Any) -> str:
    """-0.004 -> ``-0.4 points``, with a true minus sign."""
    if not is_number(difference):
        return MISSING
    rounded = round(difference * 100, 1)
    sign = "\u2212" if rounded < 0 else "+" if rounded > 0 else "\u00b1"
    return f"{sign}{abs(rounded):.1f} points"


def milliseconds(value: Any) -> str:
    """``4.21 ms``."""
    return f"{_three(value)} ms" if is_number(value) else MISSING


def duration(seconds: Any) -> str:
    """``1 min 1 s``."""
    if not is_number(seconds):
        return MISSING
    if seconds < 60:
        return f"{_three(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def error(value: Any) -> str:
    """``1.0e-15``."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if is_number(value) else "not finite" if value is not None else MISSING


def plain(value: Any) -> str:
    """Six significant figures, or the text itself."""
    if value is None:
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if is_number(value) else str(value)


def moment(text: Any) -> str:
    """``2026-11-22T10:00:00+00:00`` -> ``22 November 2026, 10:00 UTC``; other text stays as it is."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return f"{time.day} {time:%B %Y, %H:%M} {time.tzname() or ''}".strip()


def ratio(after: Any, before: Any) -> float | None:
    """after / before, or None where that can't be computed."""
    if not (is_number(after) and is_number(before)) or before == 0:
        return None
    return after / before


def speed_up(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> float | None:
    """How many times as fast the second network is, or None without two measurements."""
    return ratio(before["median_ms"], after["median_ms"]) if before and after else None


def below(text: str) -> str:
    """A second, smaller line in a table cell; ``text`` is HTML already."""
    return f"<small>{text}</small>"


def tag(text: str, kind: str) -> str:
    """A small label; ``kind`` is good, bad or plain. ``text`` is escaped here."""
    mark = {"good": "✓ ", "bad": "✗ "}.get(kind, "")
    return f'<span class="tag {kind}">{mark}{escape(text)}</span>'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table in a scrolling box. Cells are HTML already, the first of a row is its header; ``numeric`` columns align right."""

    def classes(column: int) -> str:
        return ' class="number"' if column in numeric else ""

    top = "".join(f'<th scope="col"{classes(i)}>{escape(title)}</th>' for i, title in enumerate(head))
    body = "".join(
        f'<tr><th scope="row"{classes(0)}>{row[0]}</th>'
        + "".join(f"<td{classes(i)}>{cell}</td>" for i, cell in enumerate(row[1:], start=1))
        + "</tr>\n"
        for row in rows
    )
    title = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table><caption>{title}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def pairs(entries: Iterable[tuple[str, str]]) -> str:
    """A definition list; the values are HTML already."""
    return "<dl>" + "".join(f"<div><dt>{escape(term)}</dt><dd>{value}</dd></div>" for term, value in entries) + "</dl>"


def folded(summary: str, content: str) -> str:
    """Content that shows on a click; ``content`` is HTML already."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def bullets(texts: Iterable[object]) -> str:
    """A list of texts, escaped here; empty for no text."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _three(value: float) -> str:
    """Three significant figures without an exponent for everyday sizes."""
    if value == 0:
        return "0"
    value = value if abs(value) >= 1000 else float(f"{value:.3g}")
    if abs(value) >= 1000 or abs(value) < 0.001:
        return f"{value:.3g}" if abs(value) < 0.001 else f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"
