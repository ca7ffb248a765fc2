"""INT8 after training: weights and activations of an ONNX file in eight bits, with ranges measured on images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prunus.errors import ExportError
from prunus.export.compare import first_line
from prunus.export.drafts import draft_of, publish, quiet
from prunus.export.onnx import ONNX
from prunus.export.sessions import imported, open_session
from prunus.export.signature import FlatInputs


def quantize(file: Path, path: Path | str, calibration: Iterable[Any]) -> int:
    """Write the INT8 version of an ONNX ``file`` that `export_onnx` wrote, and return its bytes.

    Static quantisation in onnxruntime's QDQ form (Jacob et al., CVPR 2018, section 2: r = S (q - Z)): weights are signed, one
    scale to an output channel; activations unsigned, one scale to a tensor, from the smallest and largest value on the inputs of
    ``calibration``. Departure: weights use seven bits, for processors without VNNI add pairs of products in 16 bits, which
    eight would overflow. The outputs differ from the float file's: judge it on images before it is used.

    Raises:
        ExportError: no calibration inputs, the export extra isn't installed, the graph can't be quantised or gives values
            that aren't finite; a file that was there before is intact.
    """
    ONNX.require()
    inputs = [FlatInputs.of(item) for item in calibration]
    if not inputs:
        raise ExportError("INT8 needs images to measure the range of every activation on, and none were given: name data")
    names, path = open_session(file).inputs, Path(path)
    try:
        with draft_of(path) as draft:
            _quantize(file, draft, names, inputs)
            _check(draft, inputs[0])
            return publish(draft, path)
    except OSError as error:
        raise ExportError(f"{path} can't be written: {error}") from error


def _quantize(file: Path, draft: Path, names: Sequence[str], inputs: Sequence[FlatInputs]) -> None:
    tools = imported("onnxruntime.quantization", "export")
    prepare = imported("onnxruntime.quantization.shape_inference", "export").quant_pre_process
    prepared = draft.with_name("prepared.onnx")
    try:
        with quiet():
            prepare(str(file), str(prepared), skip_symbolic_shape=True)
            tools.quantize_static(
                str(prepared),
                str(draft),
                _Reader(names, inputs),
                quant_format=tools.QuantFormat.QDQ,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
    except OSError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ExportError(f"{file} can't be quantised to INT8: {first_line(error)}") from error
    prepared.unlink()


def _check(draft: Path, inputs: FlatInputs) -> None:
    session = open_session(draft)
    for name, output in zip(session.outputs, session(inputs), strict=True):
        if output.is_floating_point() and not output.isfinite().all():
            raise ExportError(f"the INT8 file was not kept: its output {name!r} has values that aren't finite")


class _Reader:
    """What onnxruntime takes calibration inputs from."""

    def __init__(self, names: Sequence[str], inputs: Sequence[FlatInputs]) -> None:
        self.names, self.inputs = names, inputs
        self.rewind()

    def rewind(self) -> None:
        """Start again."""
        self._rest: Iterator[FlatInputs] = iter(self.inputs)

    def get_next(self) -> dict[str, Any] | None:
        """The next inputs by name; None in the end."""
        item = next(self._rest, None)
        return None if item is None else {n: t.numpy() for n, t in zip(self.names, item.tensors, strict=True)}
