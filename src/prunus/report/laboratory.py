"""The laboratory's pages: compared criteria, and the scores of one; each a single HTML file that works offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from prunus.errors import ExportError
from prunus.report.drawing import Figure, place
from prunus.report.laboratory_plots import (
    KINDS,
    REMOVAL,
    best,
    comparison_figures,
    ranked,
    scores_figure,
    spread,
)
from prunus.report.offline import plotly, resource, script_json, write_page
from prunus.report.wording import (
    MISSING,
    below,
    bullets,
    count,
    duration,
    escape,
    folded,
    is_number,
    milliseconds,
    moment,
    pairs,
    percent,
    plain,
    table,
)

Result = Mapping[str, Any]
_RECOVERED = {
    "none": "without recovery",
    "recalibrated": "after batch-norm recalibration",
    "fine-tuned": "after a short fine-tuning",
}
AT = 0.5
"""The share removed whose accuracies stand in the first table; else the nearest that was asked for."""


def write_comparison(result: Result, path: Path) -> None:
    """Write the page about compared criteria (the content of ``comparison.json``), replacing an old one only when complete.

    Raises:
        ExportError: plotly isn't installed, ``result`` lacks something the page shows, or ``path`` can't be written.
    """
    write_page(render_comparison(result), path, "page")


def write_scores(result: Result, path: Path) -> None:
    """Write the page about one criterion's scores, likewise."""
    write_page(render_scores(result), path, "page")


def render_comparison(result: Result) -> str:
    """The page as text. Raises `ExportError` like `write_comparison`."""
    try:
        drawn = comparison_figures(result)
        sections = {title: part for title, part in _sections(result, drawn).items() if part}
        name = str(result["subject"].get("name") or result["subject"].get("model") or "criteria")
        return laboratory_page(f"Criteria on {name}", _subtitle(result), sections, drawn, result)
    except (KeyError, TypeError) as error:
        raise _not_shown(error) from error


def render_scores(result: Result) -> str:
    """The page as text. Raises `ExportError` like `write_scores`."""
    try:
        by_group = result["scores"]
        drawn = {"plot-scores": scores_figure(by_group, result["criterion"])}
        rows = [[escape(n), count(len(v)), *(plain(x) for x in (min(v), sum(v) / len(v), max(v)))] for n, v in by_group.items()]
        listed = table("Scores of every group", ["group", "channels", "lowest", "mean", "highest"], rows, (1, 2, 3, 4))
        about = escape(f"{result['summary']} {result['paper']}.")
        note = f'<p class="note">{about}</p>{bullets(result["notes"])}'
        content = {"Scores": note + place("plot-scores", "Scores of every channel, a row for each group"), "Groups": listed}
        options = ", ".join(f"{name} = {value}" for name, value in result["options"].items())
        criterion = f"{result['criterion']} ({options})" if options else str(result["criterion"])
        subtitle = escape(f"{criterion}, {'comparable' if result['comparable'] else 'not comparable'} over groups")
        return laboratory_page(f"Scores of {result['model']}", subtitle, content, drawn, result)
    except (KeyError, TypeError) as error:
        raise _not_shown(error) from error


def _not_shown(error: Exception) -> ExportError:
    return ExportError(f"the result can't be shown: {type(error).__name__} {error}; was it written by this version?")


def laboratory_page(name: str, subtitle: str, sections: Mapping[str, str], drawn: Mapping[str, Figure], result: Result) -> str:
    """A page of the laboratory: sections by their titles, figures by the places that they are drawn in."""
    identifiers = {title: title.lower().replace(" ", "-") for title in sections}
    return Template(resource("laboratory.html")).substitute(
        name=escape(name),
        subtitle=subtitle,
        version=escape(result["prunus"]),
        navigation=" ".join(f'<a href="#{identifier}">{escape(title)}</a>' for title, identifier in identifiers.items()),
        content="\n".join(
            f'<section id="{identifiers[title]}"><h2>{escape(title)}</h2>{part}</section>' for title, part in sections.items()
        ),
        style=resource("style.css"),
        script=resource("page.js"),
        plotly=plotly(),
        figures=script_json(drawn),
        result=script_json(result),
    )


def _subtitle(result: Result) -> str:
    network, seeds = result["network"], len(result["seeds"])
    channels = f"{count(network['sampled'])} of {count(network['channels'])} channels"
    subject = f"{escape(result['subject'].get('data', 'images'))}, accuracy {percent(network['accuracy']['mean'])}"
    return f"{subject}; {channels}, {seeds} seed{'s' * (seeds != 1)}; {escape(moment(result['created']))}"


def _sections(result: Result, drawn: Mapping[str, Figure]) -> dict[str, str]:
    return {
        "Agreement with the oracle": _lead(result) + _agreement(result, drawn),
        "Within layers": _within(result, drawn),
        "Rank correlations": _correlations(drawn),
        "Accuracy after removal": _removal(result, drawn),
        "Not applicable": _not_applicable(result),
        "Doubts": bullets([*result["warnings"], *(f"{r['name']}: {n}" for r in result["criteria"] for n in r["notes"])]),
        "What was compared": _compared(result),
    }


def _lead(result: Result) -> str:
    rows = ranked(result)
    if not rows or best(rows[0]) < -1:
        return '<p class="lead">No criterion could be compared with the oracle.</p>'
    kind = max(KINDS, key=lambda k: rows[0]["spearman"][k]["mean"] or -2)
    figure = spread(rows[0]["spearman"][kind])
    text = (
        f"{escape(rows[0]['name'])} agrees best with the oracle: rank correlation {figure} over all layers, scores {KINDS[kind]}."
    )
    note = (
        "The oracle is the absolute change of the loss when a channel is silenced alone, measured. Rank correlations are "
        "Spearman's, equal scores sharing their mean rank; mean ± standard deviation over the seeds."
    )
    return f'<p class="lead">{text}</p><p class="note">{note}</p>'


def _agreement(result: Result, drawn: Mapping[str, Figure]) -> str:
    head = ["criterion", "Spearman, raw", "Spearman, L2", "within layers", "lowest 20 %, raw", "lowest 20 %, L2", "time"]
    rows = [_row(r) for r in (*ranked(result), *(r for r in result["criteria"] if r["reference"]))]
    listed = table("Every criterion against the oracle", head, rows, range(1, len(head)))
    title = "Rank correlation of every criterion's scores with the oracle, over all layers"
    return (place("plot-agreement", title) if "plot-agreement" in drawn else "") + listed


def _row(row: Result) -> list[str]:
    cells = [escape(row["name"]) + below(escape("the reference" if row["reference"] else row["family"]))]
    if row["reference"]:
        cells += [MISSING] * 5
    else:
        cells += [spread(row["spearman"][kind]) for kind in ("raw", "l2", "within")]
        cells += [_accuracy(row["overlap"][kind]) for kind in KINDS]
    seconds = row["seconds"]["mean"]
    return [*cells, milliseconds(1000 * seconds) if seconds < 1 else duration(seconds)]


def _accuracy(figure: Result) -> str:
    return percent(figure["mean"]) + (f" ± {100 * figure['std']:.1f}" if is_number(figure["std"]) else "")


def _within(result: Result, drawn: Mapping[str, Figure]) -> str:
    if "plot-layers" not in drawn:
        return ""
    names = list(dict.fromkeys(name for row in ranked(result) for name in row["layers"]))
    rows = [
        [escape(row["name"]), *(spread(row["layers"][name]) if name in row["layers"] else MISSING for name in names)]
        for row in ranked(result)
    ]
    listed = table("Rank correlation with the oracle within every layer", ["criterion", *names], rows, range(1, 1 + len(names)))
    title = "Rank correlation with the oracle within a layer: every point is a layer, mean over the seeds"
    return place("plot-layers", title) + folded("Every layer as a table", listed)


def _correlations(drawn: Mapping[str, Figure]) -> str:
    titles = {kind: f"Rank correlations between the criteria over all layers, scores {words}" for kind, words in KINDS.items()}
    return "".join(
        place(f"plot-correlations-{k}", t, "plot wide") for k, t in titles.items() if f"plot-correlations-{k}" in drawn
    )


def _removal(result: Result, drawn: Mapping[str, Figure]) -> str:
    removal = result["removal"]
    if removal is None:
        return ""
    parts = [
        '<p class="note">The lowest channels of the whole network are really removed, at least one of every group stays. Scores '
        "that aren't comparable over groups are divided by their group's mean first. Mean over the seeds.</p>"
    ]
    parts.append(_at_half(result) if removal["recoveries"] else "")
    for recovery in removal["recoveries"]:
        done = _RECOVERED[recovery]
        title = f"Test accuracy against the share of channels removed, {done}"
        head = ["criterion", *(f"{plain(100 * share)} %" for share in result["settings"]["shares"])]
        rows = [[escape(n), *(_accuracy(p) for p in one[recovery])] for n, one in removal["curves"].items()]
        parts.append(f"<h3>{escape(done[0].upper() + done[1:])}</h3>")
        parts.append(place(REMOVAL[recovery], title, "plot wide") if REMOVAL[recovery] in drawn else "")
        parts.append(folded("As a table", table(title, head, rows, range(1, len(head)))))
    refused = [f"{r['criterion']}, seed {r['seed']}, {percent(r['share'])}: {r['why']}" for r in removal["refused"]]
    return "".join(parts) + (folded("What couldn't be judged", bullets(refused)) if refused else "")


def _at_half(result: Result) -> str:
    """Accuracies at one share, best first after the last recovery."""
    curves, recoveries = result["removal"]["curves"], result["removal"]["recoveries"]
    shares: list[float] = result["settings"]["shares"]
    at = min(range(len(shares)), key=lambda n: abs(shares[n] - AT))
    names = sorted(curves, key=lambda name: -(curves[name][recoveries[-1]][at]["mean"] or 0))
    rows = [[escape(name), *(_accuracy(curves[name][recovery][at]) for recovery in recoveries)] for name in names]
    title = f"Test accuracy with {plain(100 * shares[at])} % of the channels removed"
    return table(title, ["criterion", *(_RECOVERED[r] for r in recoveries)], rows, range(1, 1 + len(recoveries)))


def _not_applicable(result: Result) -> str:
    rows = [[escape(r["name"]), escape(r["not_applicable"])] for r in result["criteria"] if r["not_applicable"] is not None]
    return table("Criteria that this network doesn't allow", ["criterion", "why"], rows) if rows else ""


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(one)}" for name, one in value.items())
    return ", ".join(map(plain, value)) if isinstance(value, list) else plain(value)


def _compared(result: Result) -> str:
    cost, network = result["network"]["cost"], result["network"]
    asked = {**result["subject"], **result["settings"]}
    entries = [
        (str(name).replace("_", " "), escape(_setting(value))) for name, value in asked.items() if value not in (None, "", [])
    ]
    entries += [("seeds", escape(", ".join(map(str, result["seeds"])))), ("test images", count(network["test_images"]))]
    entries += [("MACs", count(cost["macs"])), ("parameters", count(cost["parameters"]))]
    entries += [(name, escape(plain(value))) for name, value in result["environment"].items()]
    head = ["group", "channels", "evaluated by the oracle", "state"]
    rows = [
        [escape(g["name"]), count(g["channels"]), count(g["sampled"]), escape(g["frozen_because"] or "prunable")]
        for g in network["groups"]
    ]
    return pairs(entries) + folded("Every group", table("Groups of the network", head, rows, (1, 2)))
