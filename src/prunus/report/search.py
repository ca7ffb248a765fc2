"""The page about a search: its trials by accuracy and cost, how it went, which groups mattered; one file, offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from prunus.errors import ExportError
from prunus.report.drawing import SERIES, Figure, axis, large_markers, layout, line, place, plotly_text, tail
from prunus.report.laboratory import laboratory_page
from prunus.report.offline import write_page
from prunus.report.wording import bullets, count, duration, escape, folded, pairs, percent, plain, points, table

Result = Mapping[str, Any]
FRONT, PROGRESS, GROUPS = "plot-front", "plot-progress", "plot-groups"


def write_search(result: Result, path: Path) -> None:
    """Write the page about a search (the content of ``search.json``), replacing an old one only when complete.

    Raises:
        ExportError: plotly isn't installed, ``result`` lacks something the page shows, or ``path`` can't be written.
    """
    write_page(render_search(result), path, "page")


def render_search(result: Result) -> str:
    """The page as text. Raises `ExportError` like `write_search`."""
    try:
        drawn = {FRONT: front_figure(result), PROGRESS: progress_figure(result)}
        if result["importances"]:
            drawn[GROUPS] = groups_figure(result)
        sections = {title: part for title, part in _sections(result, drawn).items() if part}
        name = f"Search of {result['subject'].get('model', 'a network')}"
        return laboratory_page(name, _subtitle(result), sections, drawn, result)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        told = f"{type(error).__name__} {error}".strip()
        raise ExportError(f"the search can't be shown: {told}; was it written by this version?") from error


def _chosen(result: Result) -> Result:
    return next(trial for trial in result["trials"] if trial["number"] == result["chosen"]["trial"])


def _uniform(result: Result) -> Result:
    """The first trial is the uniform plan."""
    return min(result["trials"], key=lambda trial: trial["number"])


def front_figure(result: Result) -> Figure:
    """Accuracy against cost of every trial, with the Pareto front, the uniform plan and the chosen one."""
    by_number = {trial["number"]: trial for trial in result["trials"]}
    best = [by_number[number] for number in result["front"]]
    traces = [_cloud(str(result["settings"]["sampler"]), result["trials"], SERIES[0])]
    if result["baseline"]:
        traces.append(_cloud("random", result["baseline"], SERIES[2]))
    traces.append(line("Pareto front", SERIES[1]) | _at(best))
    for name, trial, style in (("uniform", _uniform(result), SERIES[2]), ("chosen", _chosen(result), SERIES[0])):
        traces.append({"type": "scatter", "mode": "markers", "name": name, "marker": large_markers(style), **_at([trial])})
    frame = layout(420)
    frame["margin"] |= {"l": 76}
    frame["xaxis"] = axis(f"cost, % of the budget ({_asked(result)})") | {"ticksuffix": " %"}
    frame["yaxis"] = axis("accuracy before fine-tuning") | {"ticksuffix": " %"}
    return {"data": traces, "layout": frame}


def _cloud(name: str, trials: Sequence[Result], style: tuple[str, str, str]) -> dict[str, Any]:
    marker = {"color": style[0], "symbol": style[2], "size": 6, "opacity": 0.55}
    return {"type": "scatter", "mode": "markers", "name": f"trials of {plotly_text(name)}", "marker": marker, **_at(trials)}


def _at(trials: Sequence[Result]) -> dict[str, Any]:
    return {
        "x": [100 * trial["cost"] for trial in trials],
        "y": [100 * trial["accuracy"] for trial in trials],
        "customdata": [[f"trial {t['number']}", percent(t["accuracy"]), percent(t["cost"])] for t in trials],
        "hovertemplate": "%{customdata[0]}<br><b>%{customdata[1]}</b> at %{customdata[2]} of the budget<extra></extra>",
    }


def progress_figure(result: Result) -> Figure:
    """The best accuracy so far after every trial within the budget, of the search and of random draws."""
    traces: list[dict[str, Any]] = []
    drawn = [(str(result["settings"]["sampler"]), result["trials"], SERIES[0]), ("random", result["baseline"], SERIES[2])]
    for name, trials, style in drawn:
        within = [trial for trial in trials if trial["cost"] <= 1 + 1e-9]
        if within:
            best = list(accumulate((100 * trial["accuracy"] for trial in within), max))
            steps = {"x": [trial["number"] + 1 for trial in within], "y": best}
            told = {"hovertemplate": "best of %{x} trials: <b>%{y:.1f} %</b><extra></extra>"}
            stepped = {"color": style[0], "dash": style[1], "width": 2.5, "shape": "hv"}
            traces.append(line(name, style) | steps | told | {"mode": "lines", "line": stepped})
    uniform = _uniform(result)["accuracy"]
    longest = max(len(result["trials"]), len(result["baseline"]))
    flat = {"x": [1, longest], "y": [100 * uniform] * 2, "mode": "lines", "hoverinfo": "skip"}
    traces.append(line("uniform", SERIES[1]) | flat)
    frame = layout(340)
    frame["margin"] |= {"l": 76}
    frame["xaxis"] = axis("trials")
    frame["yaxis"] = axis("best accuracy so far") | {"ticksuffix": " %"}
    return {"data": traces, "layout": frame}


def groups_figure(result: Result) -> Figure:
    """How much of the trials' differences in accuracy each group's width explains."""
    shares = sorted(result["importances"].items(), key=lambda item: item[1])
    names = [name for name, _ in shares]
    frame = layout(110 + 20 * len(names), legend=False)
    frame["margin"] |= {"l": 190, "t": 12}
    frame["xaxis"] = axis("share of the variance of accuracy") | {"ticksuffix": " %", "rangemode": "tozero"}
    frame["yaxis"] = axis("") | {"tickvals": list(range(len(names))), "ticktext": [tail(name, 26) for name in names]}
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [100 * share for _, share in shares],
        "y": list(range(len(names))),
        "marker": {"color": "var(--accent)"},
        "customdata": [plotly_text(name) for name in names],
        "hovertemplate": "%{customdata}<br><b>%{x:.1f} %</b><extra></extra>",
    }
    return {"data": [bars], "layout": frame}


def _asked(result: Result) -> str:
    return ", ".join(f"{row['target']} ≤ {count(row['requested'])}" for row in result["budget"])


def _subtitle(result: Result) -> str:
    network = result["network"]
    images = f"{count(network['images'])} {network['split']} images of {result['subject'].get('data', 'the user')}"
    sampler = result["settings"]["sampler"]
    return escape(f"{len(result['trials'])} trials by {sampler}; accuracies on {images}, after BN recalibration, nothing trained")


def _sections(result: Result, drawn: Mapping[str, Figure]) -> dict[str, str]:
    groups = place(GROUPS, "Importance of the groups (fANOVA on their kept shares)") if GROUPS in drawn else ""
    return {
        "Accuracy and cost": _lead(result) + place(FRONT, "Every trial, and the Pareto front", "plot wide"),
        "How the search went": place(PROGRESS, "The best accuracy within the budget, trial by trial"),
        "Which groups matter": groups,
        "The chosen widths": _widths(result),
        "Every trial": _every_trial(result),
        "Doubts": bullets(result["notes"]),
        "What was searched": _about(result),
    }


def _lead(result: Result) -> str:
    found, uniform, whole = _chosen(result), _uniform(result), result["network"]["accuracy"]
    beside = ""
    if result["baseline"]:
        random = max(trial["accuracy"] for trial in result["baseline"] if trial["cost"] <= 1 + 1e-9)
        beside = f", the best of {len(result['baseline'])} random draws {percent(random)}"
    change = points(found["accuracy"] - uniform["accuracy"])
    told = (
        f"At {_asked(result)} the chosen plan has {percent(found['accuracy'])}, {change} beside the uniform plan{beside}; "
        f"the whole network has {percent(whole)}."
    )
    note = "The best of many trials is too good on the images that it was chosen by: judge it on others, after fine-tuning."
    return f'<p class="lead">{escape(told)}</p><p class="note">{escape(note)}</p>'


def _widths(result: Result) -> str:
    found, uniform = _chosen(result)["kept"], _uniform(result)["kept"]
    rows = [
        [escape(name), count(width), count(found[name]), percent(found[name] / width), count(uniform[name])]
        for name, width in result["widths"].items()
    ]
    return table("Channels of every group", ["group", "channels", "kept", "share", "uniform"], rows, range(1, 5))


def _every_trial(result: Result) -> str:
    rows = [_trial_row(trial) for trial in result["trials"]]
    head = ["trial", "accuracy", "cost of budget", "channels kept", "time"]
    return folded("Every trial as a table", table("Every trial of the search", head, rows, (0, 1, 2, 4)))


def _trial_row(trial: Result) -> list[str]:
    kept = " ".join(map(str, trial["kept"].values()))
    return [count(trial["number"]), percent(trial["accuracy"]), percent(trial["cost"]), kept, duration(trial["seconds"])]


def _about(result: Result) -> str:
    asked = {**result["subject"], **result["settings"]}
    entries = [
        (str(name).replace("_", " "), escape(plain(value)))
        for name, value in asked.items()
        if value not in (None, "", [], {}) and name != "budget"
    ]
    entries += [("budget", escape(_asked(result))), ("MACs", count(result["network"]["cost"]["macs"]))]
    return pairs(entries + [(name, escape(plain(value))) for name, value in result["environment"].items()])
