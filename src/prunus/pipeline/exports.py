"""The small network in other formats: each file checked, and measured beside the full network's in the same format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus.errors import ExportError
from prunus.export import export, route_of
from prunus.export.runtimes import measure_sessions
from prunus.export.signature import FlatInputs
from prunus.export.write import Route


@dataclass(frozen=True, eq=False)
class Exported:
    """What is exported: the small network, the full one where it is known, and one input; ``batches`` of test images."""

    small: nn.Module
    full: nn.Module | None
    example: Any
    batches: Sequence[tuple[Tensor, Tensor]] = ()

    @property
    def images(self) -> list[Tensor]:
        """The test images without their labels."""
        return [images for images, _ in self.batches]


@dataclass(frozen=True)
class Timed:
    """How files are timed: so many runs of each, with so many CPU threads."""

    runs: int = 30
    threads: int = 1


def export_row(
    subject: Exported, format: str, path: Path, timed: Timed, *, checks: Iterable[Any], full_path: Path | None = None
) -> dict[str, Any]:
    """Write and check the small network's file, and measure it beside the full one's, which is kept under ``full_path`` only.

    Raises:
        ExportError: as `prunus.export.export`; also where the full network can't be exported.
    """
    route = route_of(format)
    check = export(subject.small, subject.example, path, format, check_inputs=checks)
    row: dict[str, Any] = {name: value for name, value in asdict(check).items() if name != "path"}
    row |= {"file": path.name, "files": written(route, path)}
    with tempfile.TemporaryDirectory(prefix="prunus-export-") as folder:
        files = {"after": path}
        if subject.full is not None:
            before = full_path or Path(folder) / f"full{route.suffix}"
            full = export(subject.full, subject.example, before, format)
            row["file_bytes_before"] = full.file_bytes
            files = {"before": before, **files}
        return row | latencies(route, files, subject.example, timed)


def latencies(route: Route, files: Mapping[str, Path], example: Any, timed: Timed) -> dict[str, Any]:
    """``latency_before`` and ``latency_after``, in turns."""
    flat = FlatInputs.of(example)
    sessions = {which: route.open(file, timed.threads, flat) for which, file in files.items()}
    found = measure_sessions(sessions, example, runs=timed.runs, threads=timed.threads)
    return {f"latency_{which}": asdict(latency) for which, latency in found.items()}


def written(route: Route, path: Path) -> list[str]:
    """Names of the files that belong together."""
    beside = [path.with_name(f"{path.name}.data"), *([path.with_suffix(".bin")] if route.suffix == ".xml" else [])]
    return [path.name, *(file.name for file in beside if file.exists())]


def export_rows(subject: Exported, formats: Sequence[str], out: Path, timed: Timed, stem: str = "small") -> list[dict[str, Any]]:
    """A row for every format: what was written and measured, or ``refused`` with the reason, and then no file of it is left."""
    rows: list[dict[str, Any]] = []
    for format in formats:
        path = out / f"{stem}{route_of(format).suffix}"
        try:
            rows.append(export_row(subject, format, path, timed, checks=subject.images))
        except ExportError as error:
            rows.append({"format": format, "refused": str(error)})
    return rows
