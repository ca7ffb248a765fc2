"""Every format the same way: a draft is written, opened by the runtime, compared with PyTorch, and only then named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from prunus.errors import ExportError
from prunus.export import compare as comparing
from prunus.export.compare import Comparison, ExportCheck, FixedBatch, Mismatch, compare, first_line
from prunus.export.drafts import draft_of, publish
from prunus.export.sessions import Session, imported
from prunus.export.signature import FlatInputs, FlatNetwork


class Write(Protocol):
    """Writes the network as it runs on the example inputs, with a batch axis that may vary or not."""

    def __call__(self, network: FlatNetwork, inputs: FlatInputs, draft: Path, *, dynamic: bool) -> None: ...


@dataclass(frozen=True)
class Route:
    """A format: how it is written, and what opens it.

    ``fixed_because`` says why the batch size can't vary in it; ``packages`` are those of ``extra`` that it needs.
    """

    name: str
    suffix: str
    summary: str
    write: Write
    open: Callable[[Path, int, FlatInputs], Session]
    packages: tuple[str, ...] = ()
    extra: str = ""
    fixed_because: str | None = None

    def require(self) -> None:
        """Raise `ExportError` where a package is missing."""
        for package in self.packages:
            imported(package, self.extra)


def write_checked(
    route: Route, model: nn.Module, example_inputs: Any, path: Path | str, check_inputs: Iterable[Any] | None
) -> ExportCheck:
    """Write ``model`` in eval mode along a route; see `export` in `prunus.export.routes`."""
    route.require()
    path = Path(path)
    inputs = FlatInputs.of(example_inputs)
    network = FlatNetwork(model, inputs)
    checks = list(check_inputs) if isinstance(check_inputs, Iterator) else check_inputs or ()  # they may be needed twice
    try:
        with draft_of(path) as draft:
            found, notes = _write_and_compare(route, network, inputs, checks, draft)
            size = publish(draft, path)
    except OSError as error:
        raise ExportError(f"{path} can't be written: {error}") from error
    tolerance, rows = comparing.TOLERANCE, found.rows
    return ExportCheck(path, route.name, found.max_error, tolerance, found.agreement, True, size, tuple(notes), rows)


def _write_and_compare(
    route: Route, network: FlatNetwork, inputs: FlatInputs, checks: Iterable[Any], draft: Path
) -> tuple[Comparison, list[str]]:
    """Try a dynamic batch, then a fixed one; return how the one that agrees compares, and notes."""
    reason = route.fixed_because
    if reason is None:
        # A batch of one would be taken for a constant, so a dynamic export starts from two rows.
        rows = max(inputs.batch, 2)
        try:
            _write(route, network, inputs.at_batch(rows), draft, dynamic=True)
            session = route.open(draft, 1, inputs)
            return _compare(network, session, [inputs, inputs.at_batch(rows + 1)], map(FlatInputs.of, checks)), []
        except (ExportError, Mismatch) as failure:
            reason = f"with a dynamic one {first_line(failure)}"
    notes = [f"the batch size is fixed at {inputs.batch}: {reason}"]
    fitting = FixedBatch(inputs, checks)
    _empty(draft)
    try:
        _write(route, network, inputs, draft, dynamic=False)
        found = _compare(network, route.open(draft, 1, inputs), [inputs], fitting)
    except Mismatch as mismatch:
        raise ExportError(
            f"the {route.name} file of {type(network.network).__name__} was not kept: {mismatch}. Try another format, or export "
            "parts of the network to find the operation that differs"
        ) from None
    return found, [*notes, *fitting.notes()]


def _compare(network: FlatNetwork, session: Session, examples: list[FlatInputs], checks: Iterable[FlatInputs]) -> Comparison:
    """Errors on everything; agreement on the check inputs, or on the examples where there are none."""
    first, found = compare(network, session, examples), compare(network, session, checks)
    found.max_error = max(first.max_error, found.max_error)
    return found if found.rows else Comparison(found.max_error, first.equal, first.rows)


def _write(route: Route, network: FlatNetwork, inputs: FlatInputs, draft: Path, *, dynamic: bool) -> None:
    network.inputs = inputs
    name = type(network.network).__name__
    try:
        network.output_names()
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{name} can't be run on the example inputs with batch {inputs.batch}: {first_line(error)}") from error
    try:
        with torch.no_grad():
            route.write(network, inputs, draft, dynamic=dynamic)
    except (OSError, MemoryError, ExportError):
        raise
    except Exception as error:  # the exporters raise whatever the network's operations raise
        raise ExportError(f"{name} can't be exported as {route.name}: {first_line(error)}") from error


def _empty(draft: Path) -> None:
    for piece in draft.parent.iterdir():
        piece.unlink()
