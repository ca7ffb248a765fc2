"""The formats that networks are exported to, one row each, and `export`, which writes any of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from prunus.errors import UnknownName
from prunus.export.compare import ExportCheck
from prunus.export.executorch import EXECUTORCH
from prunus.export.onnx import ONNX
from prunus.export.openvino import OPENVINO
from prunus.export.program import PROGRAM
from prunus.export.write import Route, write_checked

ROUTES: dict[str, Route] = {route.name: route for route in (ONNX, PROGRAM, OPENVINO, EXECUTORCH)}
"""Every format by its name."""


def export(
    model: nn.Module,
    example_inputs: Any,
    path: Path | str,
    format: str = "onnx",
    *,
    check_inputs: Iterable[Any] | None = None,
) -> ExportCheck:
    """Write ``model`` in eval mode to ``path`` in one of `ROUTES`, and compare what the file gives with what PyTorch gives.

    The file is written as a draft, opened in its runtime and run on the example inputs, on the same at another batch size, and on
    every item of ``check_inputs`` (read again where the batch turns out to be fixed, and then in pieces). It gets its name if no
    output differs by more than 1e-4 of the largest. The batch axis varies where the format and the network let it; else it is
    that of ``example_inputs``, and ``notes`` say so. ``model`` is copied and never changed; an existing file survives failures.

    Raises:
        UnknownName: no such format.
        ExportError: a package of the format isn't installed, the network can't be exported or written, or the file differs.
    """
    return write_checked(route_of(format), model, example_inputs, path, check_inputs)


def route_of(format: str) -> Route:
    """The row of a format; `UnknownName` for another name."""
    if format not in ROUTES:
        raise UnknownName.among("export format", format, ROUTES)
    return ROUTES[format]
