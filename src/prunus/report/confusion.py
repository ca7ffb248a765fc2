"""Which classes the networks take for which: heatmaps for few classes, the most frequent mistakes for many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.report.drawing import Figure, axis, head, layout, place, plotly_text
from prunus.report.stages import first_and_last
from prunus.report.wording import count, escape, folded, percent, ratio, table

Stage = Mapping[str, Any]
MOST_CLASSES = 20  # in a heatmap
FEW_CLASSES = 4  # up to which there is room for zeros and for names side by side
SHORT_NAME = 2  # characters that stand upright over a narrow column
MOST_DIGITS = 40  # in a row that a phone shows
MOST_COUNTED = 12  # classes up to which the cells hold their counts


def confusion(result: Mapping[str, Any]) -> str:
    """The two heatmaps with a table of the classes; or, of many classes, the pairs that are confused most."""
    shown = _heatmap_stages(result)
    if shown:
        places = "".join(place(name, f"Confusion, {stage['stage']}") for name, stage in shown.items())
        note = "Rows are the true class, columns the predicted one. The stronger the colour, the larger the share of the row."
        parts = f'<p class="note">{note}</p><div class="columns">{places}</div>' + _classes(result)
    else:
        parts = _most_confused(result) + _classes(result)
    return f"<h3>Which classes are confused</h3>{parts}" if parts else ""


def confusion_figures(result: Mapping[str, Any]) -> dict[str, Figure]:
    """A heatmap for the first and for the last evaluation on the test images."""
    return {
        name: _heatmap(stage["confusion"], class_names(result, len(stage["confusion"])))
        for name, stage in _heatmap_stages(result).items()
    }


def class_names(result: Mapping[str, Any], number: int) -> list[str]:
    """The names of the classes; their numbers where the result doesn't name exactly so many."""
    names = [str(name) for name in (result.get("data") or {}).get("classes") or ()]
    return names if len(names) == number else [str(n) for n in range(number)]


def _ends(result: Mapping[str, Any], key: str) -> list[Stage]:
    """The evaluations before pruning and at the end, of those on the test images that have something under ``key``."""
    return first_and_last([s for s in result["stages"] if s.get("split") == "test" and s.get(key)])


def _heatmap_stages(result: Mapping[str, Any]) -> dict[str, Stage]:
    stages = _ends(result, "confusion")
    if any(len(s["confusion"]) > MOST_CLASSES for s in stages):
        return {}
    return dict(zip(("plot-confusion-first", "plot-confusion-last"), stages, strict=False))


def _heatmap(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    number = len(matrix)
    shares = [[ratio(cell, sum(row)) or 0.0 for cell in row] for row in matrix]
    labels = [head(name) for name in names]
    full = [plotly_text(name) for name in names]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": [[share**0.5 for share in row] for row in shares],
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "colorscale": [[0, "var(--page)"], [1, "var(--accent)"]],
        "customdata": [
            [[full[t], full[p], count(row[p]), count(sum(row)), percent(shares[t][p])] for p in range(number)]
            for t, row in enumerate(matrix)
        ],
        "hovertemplate": "true %{customdata[0]}, predicted %{customdata[1]}<br>"
        "<b>%{customdata[2]}</b> of %{customdata[3]} images, %{customdata[4]}<extra></extra>",
    }
    ticks: dict[str, Any] = {"tickvals": list(range(number)), "ticktext": labels, "showgrid": False, "zeroline": False}
    ticks |= {"ticks": "", "showline": False}
    frame = layout(max(220, 30 * number) + 80, legend=False)
    upright = number <= FEW_CLASSES or max(map(len, labels)) <= SHORT_NAME
    frame["xaxis"] = axis("") | ticks | {"side": "top", "automargin": True, "tickangle": 0 if upright else -90}
    frame["yaxis"] = axis("") | ticks | {"range": [number - 0.5, -0.5], "automargin": True}
    frame["margin"] |= {"l": 30, "r": 8, "b": 12}
    return {"data": [trace, *_written(matrix, trace["z"])], "layout": frame}


def _written(matrix: Sequence[Sequence[int]], strengths: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """The counts in the cells, in the colour that is legible there; zeros only where there is room."""
    number, digits = len(matrix), len(str(max(map(max, matrix))))
    if number > MOST_COUNTED or (number > FEW_CLASSES and number * digits > MOST_DIGITS):
        return []
    cells = [(t, p) for t in range(number) for p in range(number) if matrix[t][p] or number <= FEW_CLASSES]
    text: dict[str, Any] = {
        "type": "scatter",
        "mode": "text",
        "x": [p for _, p in cells],
        "y": [t for t, _ in cells],
        "text": [count(matrix[t][p]) for t, p in cells],
        "textfont": {
            "size": 16 if number <= FEW_CLASSES else 11,
            "color": ["var(--card)" if strengths[t][p] > 0.55 else "var(--ink)" for t, p in cells],
        },
        "hoverinfo": "skip",
    }
    return [text]


def _classes(result: Mapping[str, Any]) -> str:
    """Every class: how many of its images each network recognises, and what the last one takes it for most often."""
    stages = _ends(result, "confusion")
    if not stages:
        return ""
    names = class_names(result, len(stages[-1]["confusion"]))
    rows: list[list[str]] = []
    for n, name in enumerate(names):
        counts = stages[-1]["confusion"][n]
        recalls = [percent(ratio(s["confusion"][n][n], sum(s["confusion"][n]))) for s in stages]
        wrong = max((other for other in range(len(names)) if other != n), key=lambda other: counts[other], default=n)
        taken = f"{escape(names[wrong])} ({count(counts[wrong])})" if counts and wrong != n and counts[wrong] else "none"
        rows.append([escape(name), count(sum(counts)), *recalls, taken])
    titles = ["class", "test images", *(f"right, {s['stage']}" for s in stages), "most frequent mistake"]
    numeric = range(1, 2 + len(stages))
    return folded("Every class as a table", table("Share of every class that is recognised", titles, rows, list(numeric)))


def _most_confused(result: Mapping[str, Any]) -> str:
    stages = _ends(result, "most_confused")
    number = len((result.get("data") or {}).get("classes") or ())
    parts: list[str] = []
    for stage in stages:
        names = class_names(result, number or 1 + max(max(true, predicted) for true, predicted, _ in stage["most_confused"]))
        rows = [
            [escape(names[true]), escape(names[predicted]), count(times)] for true, predicted, times in stage["most_confused"]
        ]
        parts.append(table(f"Most confused pairs, {stage['stage']}", ["true class", "predicted", "images"], rows, (2,)))
    return f'<div class="columns">{"".join(parts)}</div>' if parts else ""
