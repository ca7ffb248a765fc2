"""What Plotly figures of the report have in common. Colours are names of CSS variables; the page puts in those of its scheme."""

from __future__ import annotations

import html
from typing import Any, TypeAlias

from prunus.report.wording import escape

Figure: TypeAlias = "dict[str, Any]"

INK, GRID = "var(--ink-soft)", "var(--line)"
SERIES = (("var(--accent)", "solid", "circle"), ("var(--second)", "dash", "square"), ("var(--third)", "dot", "diamond"))


def place(identifier: str, title: str, kind: str = "plot") -> str:
    """The captioned element that the page's script draws the figure of this name into; ``title`` is escaped here."""
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="{kind}" id="{identifier}" tabindex="0" role="img" '
        f'aria-label="{escape(title)}; the figures are in the tables"></div></figure>'
    )


def layout(height: int, *, legend: bool = True) -> dict[str, Any]:
    """The layout of a figure that is ``height`` pixels high and as wide as its place."""
    return {
        "height": height,
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 56, "r": 18, "t": 40, "b": 48},
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": INK},
        "paper_bgcolor": "var(--card)",
        "plot_bgcolor": "var(--card)",
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}, "align": "left"},
        "hovermode": "closest",
        "dragmode": False,
    }


def axis(title: str) -> dict[str, Any]:
    """An axis that can't be dragged."""
    return {"title": {"text": title}, "gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID, "fixedrange": True}


def line(name: object, style: tuple[str, str, str]) -> dict[str, Any]:
    """A line with markers, in one of the `SERIES` styles, which differ in more than colour."""
    colour, dash, symbol = style
    return {
        "type": "scatter",
        "name": plotly_text(name),
        "mode": "lines+markers",
        "line": {"color": colour, "dash": dash, "width": 2.5},
        "marker": {"color": colour, "symbol": symbol, "size": 6},
    }


def large_markers(style: tuple[str, str, str]) -> dict[str, Any]:
    """Markers that stand out from the line and from one another."""
    return {"color": style[0], "symbol": style[2], "size": 11, "line": {"color": "var(--card)", "width": 2}}


def plotly_text(value: object) -> str:
    """Plotly reads a little HTML in texts, so they are escaped as well."""
    return html.escape(str(value), quote=False)


def tail(name: object, longest: int = 22) -> str:
    """The end of a long name: of dotted names it tells more than the beginning."""
    text = str(name)
    return plotly_text(text if len(text) <= longest else "…" + text[-longest + 1 :])


def head(name: object, longest: int = 14) -> str:
    """The beginning of a long name."""
    text = str(name)
    return plotly_text(text if len(text) <= longest else text[: longest - 1] + "…")


def wrapped(text: object, width: int = 13) -> str:
    """Lines of at most ``width`` characters where words allow."""
    lines = [""]
    for word in str(text).split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(plotly_text(part) for part in lines)
