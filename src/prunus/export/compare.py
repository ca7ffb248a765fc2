"""How an exported file compares with the PyTorch network: outputs of both on the same inputs, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.errors import ExportError
from prunus.export.sessions import Session
from prunus.export.signature import FlatInputs, FlatNetwork

TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportCheck:
    """How an exported file compares with the PyTorch network.

    ``max_error`` is the largest difference between outputs, relative to the largest magnitude in that output; ``agreement`` the
    share of rows of a first output (rows, classes) with the same arg max, None for other outputs, and ``rows`` their number: of
    the check inputs where there are any, else of the example inputs. ``file_bytes`` includes external data. ``notes`` say
    what the user should know (a fixed batch size, inputs that weren't checked).
    """

    path: Path
    format: str
    max_error: float
    tolerance: float
    agreement: float | None
    passed: bool
    file_bytes: int
    notes: tuple[str, ...] = ()
    rows: int = 0


class Mismatch(Exception):
    """The file's outputs differ; a fixed-batch export may still agree."""


@dataclass
class Comparison:
    """The largest relative error so far, and of how many rows the arg max is the same."""

    max_error: float = 0.0
    equal: int = 0
    rows: int = 0

    @property
    def agreement(self) -> float | None:
        """Share of rows with the same arg max; None where no output was of the form (rows, classes)."""
        return self.equal / self.rows if self.rows else None


def compare(network: FlatNetwork, session: Session, cases: Iterable[FlatInputs]) -> Comparison:
    """Run both on all cases. `Mismatch` if an error is above the tolerance."""
    found = Comparison()
    for case in cases:
        expected, outputs = reference(network, case), session(case)
        for name, wanted, output in zip(session.outputs, expected, outputs, strict=True):
            error = relative_error(wanted, output)
            if not error <= TOLERANCE:
                raise Mismatch(
                    f"its output {name!r} differs from PyTorch's by {error:.3g} of the largest value at batch {case.batch}, "
                    f"and {TOLERANCE:g} is allowed"
                )
            found.max_error = max(found.max_error, error)
        if is_classifier(expected[0]):
            found.equal += int((expected[0].argmax(1) == outputs[0].argmax(1)).sum())
            found.rows += len(expected[0])
    return found


def reference(network: FlatNetwork, case: FlatInputs) -> tuple[Tensor, ...]:
    """The PyTorch network's outputs. `ExportError` if it can't run."""
    network.inputs = case
    try:
        with torch.no_grad():
            return network(*case.tensors)
    except Exception as error:  # whatever the network's operations raise
        name, shapes = type(network.network).__name__, [tuple(t.shape) for t in case.tensors]
        raise ExportError(f"{name} itself can't run on inputs of shapes {shapes}: {first_line(error)}") from error


def relative_error(expected: Tensor, output: Tensor) -> float:
    """Infinite where the shapes differ or PyTorch's own output is not finite: then nothing is shown."""
    if expected.shape != output.shape:
        return math.inf
    if expected.numel() == 0:
        return 0.0
    wanted, found = expected.double(), output.double()
    scale = wanted.abs().max().item()
    error = (wanted - found).abs().max().item() / (scale or 1.0)
    return error if math.isfinite(error) else math.inf


def is_classifier(output: Tensor) -> bool:
    """Whether an output is (rows, classes)."""
    return output.ndim == 2 and output.shape[1] > 1 and output.is_floating_point()


class FixedBatch:
    """Check inputs for a file whose batch size is that of ``like``: larger ones in pieces; how many don't fit is counted."""

    def __init__(self, like: FlatInputs, checks: Iterable[Any]) -> None:
        self.like, self.checks = like, checks
        self.seen = self.left_out = 0

    def __iter__(self) -> Iterator[FlatInputs]:
        for item in self.checks:
            case = FlatInputs.of(item)
            self.seen += 1
            pieces = self._pieces(case)
            self.left_out += not pieces
            yield from pieces

    def _pieces(self, case: FlatInputs) -> list[FlatInputs]:
        rows, whole = self.like.batch, [t.shape for t in self.like.tensors]
        if [t.shape for t in case.tensors] == whole:
            return [case]
        if len(case.tensors) != len(whole) or rows == 0 or case.batch % rows or not all((*case.batched, *self.like.batched)):
            return []
        pieces = [case.with_tensors([t[i : i + rows] for t in case.tensors]) for i in range(0, case.batch, rows)]
        return pieces if [t.shape for t in pieces[0].tensors] == whole else []

    def notes(self) -> list[str]:
        """What wasn't compared, once all have been."""
        if not self.left_out:
            return []
        return [f"{self.left_out} of {self.seen} check inputs have another shape and could not be compared"]


def first_line(error: BaseException) -> str:
    """What went wrong without the exporter's advice: the innermost cause's first line."""
    while error.__cause__ is not None and not isinstance(error, ExportError):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
