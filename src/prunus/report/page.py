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
from prunus.report.plots import figures
from prunus.report.wording import escape

_PLACES = {
    "plot-stages": "Accuracy in percent at every stage of the run",
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
        **{place.replace("-", "_"): _place(place, title) if place in drawn else "" for place, title in _PLACES.items()},
    )


_SECTIONS = (
    *(summary.subtitle, summary.warnings, summary.lead, summary.cards, summary.budget, summary.request),
    *(sections.networks, sections.stages, sections.training, sections.legend, sections.widths, sections.frozen),
    *(sections.exactness, sections.exports, sections.environment, sections.recipe, sections.command, sections.files),
)


def _place(identifier: str, title: str) -> str:
    kind = "plot tall" if identifier == "plot-widths" else "plot"
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="{kind}" id="{identifier}" tabindex="0" role="img" '
        f'aria-label="{escape(title)}; the figures are in the tables"></div></figure>'
    )


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
