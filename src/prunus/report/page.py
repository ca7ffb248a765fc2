"""The report as one HTML file that works offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from prunus.errors import ExportError
from prunus.report import sections, summary
from prunus.report.confusion import confusion
from prunus.report.data import data
from prunus.report.drawing import place
from prunus.report.ladder import controls, ladder
from prunus.report.offline import plotly, resource, script_json, write_page
from prunus.report.picture import picture
from prunus.report.plots import MOST_PHASES, figures, stages_shown
from prunus.report.preferences import preferences
from prunus.report.rounds import rounds
from prunus.report.samples import samples
from prunus.report.scores import scores
from prunus.report.sparsity import sparsity
from prunus.report.speed import speed
from prunus.report.wording import escape

_PLACES = {
    "plot-widths": "Channels of every group before and after pruning",
    "plot-loss": "Training loss over the epochs",
    "plot-accuracy": "Validation accuracy over the epochs",
}


def write_report(result: Mapping[str, Any], path: Path) -> None:
    """Write the page about ``result`` (the content of ``result.json``) to ``path``, replacing an old one only when complete.

    Raises:
        ExportError: plotly isn't installed, ``result`` lacks something the page shows, or ``path`` can't be written.
    """
    write_page(render(result), Path(path), "report")


def render(result: Mapping[str, Any]) -> str:
    """The page as text. Raises `ExportError` like `write_report`."""
    try:
        drawn = figures(result)
        parts = {section.__name__: section(result) for section in _SECTIONS}
        title = escape(result["name"])
    except (KeyError, TypeError) as error:
        problem = f"{type(error).__name__} {error}"
        raise ExportError(f"the result can't be shown as a report: {problem}; was it written by this version?") from error
    return Template(resource("page.html")).substitute(
        parts,
        name=title,
        version=escape(result["prunus"]),
        style=resource("style.css"),
        script=resource("page.js"),
        plotly=plotly(),
        figures=script_json(drawn),
        result=script_json(result),
        navigation=_navigation(parts),
        **_places(result, drawn),
    )


_SECTIONS = (
    *(summary.subtitle, summary.warnings, summary.lead, summary.cards, summary.budget, summary.request),
    *(sections.networks, sections.stages, sections.training, sections.legend, sections.widths, sections.frozen),
    *(confusion, rounds, ladder, controls, samples, picture, scores, preferences, data, sparsity, speed),
    *(sections.exactness, sections.exports, sections.environment, sections.recipe, sections.command, sections.files),
)


def _places(result: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, str]:
    """The places of the figures that the page's own text names; one without data stays empty."""
    all_shown = len(stages_shown(result)) == len(result["stages"])
    rest = "" if all_shown else ", of the rounds only the last"
    titles = {"plot-stages": f"Accuracy in percent at every stage of the run{rest}", **_PLACES}
    if len(result["training"]) > MOST_PHASES:
        titles |= {name: f"{titles[name]}, one line per phase" for name in ("plot-loss", "plot-accuracy")}
    kinds = {"plot-widths": "plot tall"}
    return {
        name.replace("-", "_"): place(name, title, kinds.get(name, "plot")) if name in drawn else ""
        for name, title in titles.items()
    }


def _navigation(parts: Mapping[str, str]) -> str:
    """Links to the sections that there are."""
    links = {
        "accuracy": "Accuracy",
        "pictures": "Pictures" if parts["samples"] else "",
        "networks": "Size and speed",
        "network": "Layers" if parts["picture"] else "",
        "groups": "Widths",
        "exactness": "Exactness",
        "data": "Data" if parts["data"] else "",
        "training": "Training",
        "exports": "Exports",
        "reproduce": "Reproduce",
    }
    return " ".join(f'<a href="#{name}">{title}</a>' for name, title in links.items() if title)
