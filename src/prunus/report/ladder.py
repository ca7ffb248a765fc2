"""The ladder of recovery: accuracy after every rung, what it gained and took; the rows of controls; and a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.errors import ExportError
from prunus.report.drawing import Figure, axis, layout, place, plotly_text, wrapped
from prunus.report.laboratory import laboratory_page
from prunus.report.offline import write_page
from prunus.report.stages import BEFORE
from prunus.report.trade_off import points_of, trade_off_figure
from prunus.report.wording import (
    MISSING,
    below,
    bullets,
    count,
    duration,
    escape,
    is_number,
    pairs,
    percent,
    plain,
    points,
    ratio,
    table,
)

Result = Mapping[str, Any]
PLOT = "plot-ladder"


def ladder(result: Result) -> str:
    """The section of a run's report; empty for a result without rungs."""
    rows: Sequence[Result] = result.get("ladder") or ()
    if len(rows) < 2:
        return ""
    before = next((s["accuracy"] for s in result["stages"] if s["stage"] == BEFORE), None)
    return f"<h3>Which rung of recovery gave what</h3>{_table(rows, before)}"


def controls(result: Result) -> str:
    """Rows that a pruned network must be better than; empty where none were run."""
    rows: Sequence[Result] = result.get("controls") or ()
    if not rows:
        return ""
    last = result["stages"][-1]
    networks, recovered = result["networks"], (result.get("ladder") or [{}])[-1]
    listed = [
        _control("pruned and recovered", "this run", None, networks["after"]["macs"], last["accuracy"], last["accuracy"], None)
    ]
    listed += [_control(r["row"], r["what"], r["epochs"], r["macs"], r["accuracy"], last["accuracy"], r["seconds"]) for r in rows]
    head = ["row", "epochs", "MACs", "accuracy", "against this run", "time"]
    split = escape(recovered.get("split", last["split"]))
    note = f'<p class="note">Last epoch, on {split} images, one seed. Liu et al. 2019 found such rows to be strong.</p>'
    shown = trade_off_figure(points_of(result, result["name"]), "macs") is not None
    drawn = place("plot-trade-off", "Accuracy against MACs: this run, the unpruned network, the controls") if shown else ""
    return f"<h3>Controls</h3>{drawn}{table('Is it the pruning?', head, listed, (1, 2, 3, 4, 5))}{note}"


def _control(row: str, what: str, epochs: Any, macs: Any, accuracy: float, own: float, seconds: Any) -> list[str]:
    change = MISSING if row == "pruned and recovered" else points(accuracy - own)
    return [f"{escape(row)}{below(escape(what))}", count(epochs), count(macs), percent(accuracy), change, duration(seconds)]


def _table(rows: Sequence[Result], before: Any) -> str:
    """Accuracy after each rung; ``before``: that of the unpruned network, if it is known."""
    lost = before - rows[0]["accuracy"] if is_number(before) else None
    listed = [
        [
            escape(r["rung"]),
            percent(r["accuracy"]),
            MISSING if r["gained"] is None else points(r["gained"]),
            MISSING
            if r["gained"] is None or not lost or lost <= 0
            else percent(ratio(r["accuracy"] - rows[0]["accuracy"], lost)),
            count(r["epochs"]) if r["epochs"] else MISSING,
            duration(r["seconds"]),
        ]
        for r in rows
    ]
    head = ["after", "accuracy", "gained", "of the loss back", "epochs", "time"]
    return table(f"Accuracy after each rung, on {rows[0]['split']} images", head, listed, (1, 2, 3, 4, 5))


def ladder_figure(result: Result) -> Figure:
    """Accuracy after every rung, in percent; dotted: that of the unpruned network."""
    rows = result["ladder"]
    full = 100 * result["full"]["accuracy"]
    bars = {
        "type": "bar",
        "x": [wrapped(r["rung"]) for r in rows],
        "y": [100 * r["accuracy"] for r in rows],
        "text": [percent(r["accuracy"]) for r in rows],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": "var(--accent)"},
        "customdata": [[plotly_text(r["rung"]), percent(r["accuracy"]), duration(r["seconds"])] for r in rows],
        "hovertemplate": "%{customdata[0]}<br><b>%{customdata[1]}</b>, %{customdata[2]}<extra></extra>",
    }
    frame = layout(360, legend=False)
    frame["xaxis"], frame["yaxis"] = axis(""), axis("accuracy") | {"ticksuffix": " %", "range": [0, 108]}
    ends = {"x0": -0.5, "x1": len(rows) - 0.5, "y0": full, "y1": full}
    frame["shapes"] = [{"type": "line", **ends, "line": {"color": "var(--ink-soft)", "dash": "dot", "width": 1.5}}]
    return {"data": [bars], "layout": frame}


def write_recovery(result: Result, path: Path) -> None:
    """Write the page about ``prunus recover`` (the content of ``recovery.json``), replacing an old one only when complete.

    Raises:
        ExportError: plotly isn't installed, ``result`` lacks something the page shows, or ``path`` can't be written.
    """
    write_page(render_recovery(result), path, "page")


def render_recovery(result: Result) -> str:
    """The page as text. Raises `ExportError` like `write_recovery`."""
    try:
        rows, full = result["ladder"], result["full"]["accuracy"]
        title = f"Accuracy after each rung; dotted: the unpruned network's, {percent(full)}"
        asked = [(str(name), escape(plain(value))) for name, value in result["request"].items() if value is not None]
        machine = [(name, escape(plain(value))) for name, value in result["environment"].items()]
        parts = {
            "Accuracy": _lead(rows, full) + place(PLOT, title, "plot wide") + _table(rows, full),
            "Doubts": bullets([*result["warnings"], *result["notes"]]),
            "What was done": pairs([*asked, *machine]),
        }
        sections = {name: part for name, part in parts.items() if part}
        subtitle = escape(f"{result['request']['model']} on {result['request']['data']}")
        return laboratory_page("Recovery of a pruned network", subtitle, sections, {PLOT: ladder_figure(result)}, result)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        told = f"{type(error).__name__} {error}".strip()
        raise ExportError(f"the recovery can't be shown: {told}; was it written by this version?") from error


def _lead(rows: Sequence[Result], full: float) -> str:
    first, last = rows[0]["accuracy"], rows[-1]["accuracy"]
    told = f"Accuracy goes from {percent(first)} as pruned to {percent(last)}; the unpruned network has {percent(full)}."
    return f'<p class="lead">{told}</p>'
