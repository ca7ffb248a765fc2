"""The report as one HTML file that works offline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, cast

from prunus.errors import ExportError
from prunus.files import write_atomically
from prunus.report import sections, summary
from prunus.report.confusion import confusion
from prunus.report.data import data
from prunus.report.drawing import place
from prunus.report.plots import MOST_PHASES, figures, stages_shown
from prunus.report.preferences import preferences
from prunus.report.rounds import rounds
from prunus.report.samples import samples
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
    path = Path(path)
    text = render(result)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode("utf-8"))
    except OSError as error:
        raise ExportError(f"the report can't be written to {path}: {error}") from error


def render(result: Mapping[str, Any]) -> str:
    """The page as text. Raises `ExportError` like `write_report`."""
    try:
        drawn = figures(result)
        parts = {section.__name__: section(result) for section in _SECTIONS}
        title = escape(result["name"])
    except (KeyError, TypeError) as error:
        problem = f"{type(error).__name__} {error}"
        raise ExportError(f"the result can't be shown as a report: {problem}; was it written by this version?") from error
    return Template(_resource("page.html")).substitute(
        parts,
        name=title,
        version=escape(result["prunus"]),
        style=_resource("style.css"),
        script=_resource("page.js"),
        plotly=_plotly(),
        figures=_script_json(drawn),
        result=_script_json(result),
        navigation=_navigation(parts),
        **_places(result, drawn),
    )


_SECTIONS = (
    *(summary.subtitle, summary.warnings, summary.lead, summary.cards, summary.budget, summary.request),
    *(sections.networks, sections.stages, sections.training, sections.legend, sections.widths, sections.frozen),
    *(confusion, rounds, samples, preferences, data, speed),
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
        "groups": "Widths",
        "exactness": "Exactness",
        "data": "Data" if parts["data"] else "",
        "training": "Training",
        "exports": "Exports",
        "reproduce": "Reproduce",
    }
    return " ".join(f'<a href="#{name}">{title}</a>' for name, title in links.items() if title)


def _script_json(value: Any) -> str:
    """JSON that can't end the script element it stands in; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in cast("list[Any]", value)]
    return value


def _resource(name: str) -> str:
    return resources.files("prunus.report").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ExportError(f"plotly can't be imported ({error}): install it with `pip install 'prunus[report]'`") from error
    return str(get_plotlyjs()).replace("</script", "<\\/script")
