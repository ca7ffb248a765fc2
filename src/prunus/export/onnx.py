"""ONNX: written by torch's exporter, reloaded in onnxruntime, compared with the PyTorch network, and only then named."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ExportError
from prunus.export.runtimes import open_session, run_session
from prunus.export.signature import FlatInputs, FlatNetwork

TOLERANCE = 1e-4
# Protobuf refuses messages of 2 GiB; the margin is for the graph around the weights.
LARGEST_SINGLE_FILE = 2_000_000_000


@dataclass(frozen=True)
class ExportCheck:
    """How an exported file compares with the PyTorch network.

    ``max_error`` is the largest difference between outputs, relative to the largest magnitude in that output; ``agreement`` the
    share of rows of a first output (rows, classes) with the same arg max, None for other outputs; ``file_bytes`` includes
    external data. ``notes`` say what the user should know (a fixed batch size, inputs that weren't checked).
    """

    path: Path
    format: str
    max_error: float
    tolerance: float
    agreement: float | None
    passed: bool
    file_bytes: int
    notes: tuple[str, ...] = ()


class _Mismatch(Exception):
    """The file's outputs differ; a fixed-batch export may still agree."""


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: Path | str,
    *,
    check_inputs: Sequence[Any] | None = None,
    opset: int | None = None,
) -> ExportCheck:
    """Write ``model`` in eval mode as one ONNX file with a dynamic batch axis, and check it in onnxruntime.

    The check runs the example inputs, the same at another batch size, and every item of ``check_inputs``. A network that fixes
    its batch is exported with the batch of ``example_inputs``, and ``notes`` say so. ``model`` is copied and never changed; an
    existing file survives any failure. Above 2 GB the weights go to a second file, ``path`` + ``.data``.

    Raises:
        ExportError: the export extra isn't installed, the network can't be exported or written, or the file's outputs differ
            from PyTorch's by more than 1e-4 of the largest output (the file then doesn't get its name).
    """
    require_onnx()
    path = Path(path)
    inputs = FlatInputs.of(example_inputs)
    network = FlatNetwork(model, inputs)
    checks = [FlatInputs.of(item) for item in check_inputs or ()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.name
            max_error, agreement, notes = _write_and_compare(network, inputs, checks, draft, opset)
            size = _publish(draft, path)
    except OSError as error:
        raise ExportError(f"{path} can't be written: {error}") from error
    return ExportCheck(path, "onnx", max_error, TOLERANCE, agreement, True, size, tuple(notes))


def _write_and_compare(
    network: FlatNetwork, inputs: FlatInputs, checks: list[FlatInputs], draft: Path, opset: int | None
) -> tuple[float, float | None, list[str]]:
    """Try a dynamic batch, then a fixed one; return the error, the agreement and the notes of the one that agrees."""
    # A batch of one would be taken for a constant, so a dynamic export starts from two rows.
    rows = max(inputs.batch, 2)
    try:
        _write(network, inputs.at_batch(rows), draft, opset, dynamic=True)
        error, agreement = _compare(network, [inputs, inputs.at_batch(rows + 1), *checks], draft)
        return error, agreement, []
    except (ExportError, _Mismatch) as dynamic_failure:
        reason = _first_line(dynamic_failure)
    usable = [c for c in checks if [t.shape for t in c.tensors] == [t.shape for t in inputs.tensors]]
    notes = [f"the batch size is fixed at {inputs.batch}: with a dynamic one {reason}"]
    if len(usable) < len(checks):
        notes.append(f"{len(checks) - len(usable)} of {len(checks)} check inputs have another shape and could not be compared")
    try:
        _write(network, inputs, draft, opset, dynamic=False)
        error, agreement = _compare(network, [inputs, *usable], draft)
    except _Mismatch as mismatch:
        raise ExportError(
            f"the ONNX file of {type(network.network).__name__} was not kept: {mismatch}. Try another opset, or export parts of "
            "the network to find the operation that differs"
        ) from None
    return error, agreement, notes


def _write(network: FlatNetwork, inputs: FlatInputs, draft: Path, opset: int | None, *, dynamic: bool) -> None:
    network.inputs = inputs
    name = type(network.network).__name__
    try:
        output_names = network.output_names()
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{name} can't be run on the example inputs with batch {inputs.batch}: {_first_line(error)}") from error
    batch = torch.export.Dim("batch")
    axes = tuple({0: batch} if batched else {} for batched in inputs.batched)
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                network,
                inputs.tensors,
                input_names=list(inputs.names),
                output_names=output_names,
                dynamic_shapes=(axes,) if dynamic else None,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            _clean(program)
            program.save(draft, external_data=_weight_bytes(network) > LARGEST_SINGLE_FILE)
    except OSError:
        raise
    except Exception as error:  # the exporter raises whatever the network's operations raise
        raise ExportError(f"{name} can't be exported to ONNX: {_first_line(error)}") from error


def _clean(program: Any) -> None:
    """Give the weights the names they have in the user's network, and drop stack traces: they tell paths of this machine."""
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    for value in list(program.model.graph.initializers.values()):
        if value.name.startswith("network."):
            value.name = value.name.removeprefix("network.")


def _compare(network: FlatNetwork, cases: Sequence[FlatInputs], file: Path) -> tuple[float, float | None]:
    """Largest relative error and arg-max agreement over all cases. `_Mismatch` if the error is above the tolerance."""
    session = open_session(file)
    worst, equal, rows = 0.0, 0, 0
    for case in cases:
        expected = _reference(network, case)
        found = run_session(session, case)
        for name, reference, output in zip([o.name for o in session.get_outputs()], expected, found, strict=True):
            error = _relative_error(reference, output)
            if not error <= TOLERANCE:
                raise _Mismatch(
                    f"its output {name!r} differs from PyTorch's by {error:.3g} of the largest value at batch {case.batch}, "
                    f"and {TOLERANCE:g} is allowed"
                )
            worst = max(worst, error)
        if _is_classifier(expected[0]):
            equal += int((expected[0].argmax(1) == found[0].argmax(1)).sum())
            rows += len(expected[0])
    return worst, equal / rows if rows else None


def _reference(network: FlatNetwork, case: FlatInputs) -> tuple[Tensor, ...]:
    network.inputs = case
    try:
        with torch.no_grad():
            return network(*case.tensors)
    except Exception as error:  # whatever the network's operations raise
        name, shapes = type(network.network).__name__, [tuple(t.shape) for t in case.tensors]
        raise ExportError(f"{name} itself can't run on inputs of shapes {shapes}: {_first_line(error)}") from error


def _relative_error(reference: Tensor, output: Tensor) -> float:
    """Infinite where the shapes differ or PyTorch's own output is not finite: then nothing is shown."""
    if reference.shape != output.shape:
        return math.inf
    if reference.numel() == 0:
        return 0.0
    expected, found = reference.double(), output.double()
    scale = expected.abs().max().item()
    error = (expected - found).abs().max().item() / (scale or 1.0)
    return error if math.isfinite(error) else math.inf


def _is_classifier(output: Tensor) -> bool:
    return output.ndim == 2 and output.shape[1] > 1 and output.is_floating_point()


def _publish(draft: Path, path: Path) -> int:
    """Move the finished file under its final name, external data first; return the bytes of both."""
    pieces = sorted(draft.parent.iterdir(), key=lambda piece: piece == draft)
    size = 0
    for piece in pieces:
        size += piece.stat().st_size
        with piece.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(piece, path.with_name(piece.name))
    return size


def _weight_bytes(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])


def _first_line(error: BaseException) -> str:
    """What went wrong without the exporter's advice: the innermost cause's first line."""
    while error.__cause__ is not None and not isinstance(error, ExportError):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Hold back progress lines, log records and third-party warnings of the exporter; exceptions pass."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def require_onnx() -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                __import__(module)
        except ImportError as error:
            raise ExportError(f"{module} can't be imported ({error}): install it with `pip install 'prunus[export]'`") from error
