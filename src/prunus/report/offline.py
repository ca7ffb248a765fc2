"""What a page needs to work offline: its resources inside, its data as JSON, a file that is only replaced when complete."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast

from prunus.errors import ExportError
from prunus.files import write_atomically


def write_page(text: str, path: Path, what: str) -> None:
    """Write the page, replacing an old one only when complete; ``what`` it is stands in the `ExportError` if it can't be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode("utf-8"))
    except OSError as error:
        raise ExportError(f"the {what} can't be written to {path}: {error}") from error


def script_json(value: Any) -> str:
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


def resource(name: str) -> str:
    """A file of this package."""
    return resources.files("prunus.report").joinpath(name).read_text(encoding="utf-8")


def plotly() -> str:
    """The library's code. Raises `ExportError` where it isn't installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ExportError(f"plotly can't be imported ({error}): install it with `pip install 'prunus[report]'`") from error
    return str(get_plotlyjs()).replace("</script", "<\\/script")
