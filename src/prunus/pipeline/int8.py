"""INT8 after pruning: the quantised file with an accuracy line of its own, beside the float network's."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.errors import ExportError
from prunus.export import export_onnx, measure_file_latency
from prunus.export.compare import is_classifier
from prunus.export.quantize import quantize
from prunus.export.sessions import Session, open_session
from prunus.export.signature import FlatInputs
from prunus.pipeline.exports import Exported, Timed


@dataclass
class Judged:
    """Answers of a float network and of its quantised file on test images.

    ``accuracy`` and ``accuracy_float`` are top-1, ``agreement`` the share of images with the same class (None: the output isn't
    (rows, classes)); ``error`` is the root of the mean squared difference of the outputs over that of the float outputs.
    """

    images: int = 0
    accuracy: float | None = None
    accuracy_float: float | None = None
    agreement: float | None = None
    error: float = 0.0


def int8_row(subject: Exported, path: Path, calibration: Sequence[Tensor], timed: Timed) -> dict[str, Any]:
    """Quantise the small network, judge the file on the test images, and time it beside the float file (``latency_before``).

    Raises:
        ExportError: no calibration images or no test images, or the network can't be exported or quantised.
    """
    if not calibration or not subject.batches:
        raise ExportError(
            "INT8 needs training images to measure the range of every activation on, and test images to be judged on: name them "
            "with --data"
        )
    with tempfile.TemporaryDirectory(prefix="prunus-export-") as folder:
        plain = export_onnx(subject.small, subject.example, Path(folder) / "float.onnx")
        rows = FlatInputs.of(subject.example).batch if plain.notes else None  # a note says that the batch is fixed
        size = quantize(plain.path, path, [piece for batch in calibration for piece in _pieces(batch, rows)])
        batches = [pair for pair in subject.batches for pair in zip(*(_pieces(t, rows) for t in pair), strict=True)]
        judged = judge(subject.small, open_session(path), batches)
        files = {"before": plain.path, "after": path}
        times = measure_file_latency(files, subject.example, "onnxruntime", runs=timed.runs, threads=timed.threads)
    return {
        "format": "int8",
        "file": path.name,
        "files": [path.name],
        "file_bytes": size,
        "file_bytes_before": plain.file_bytes,
        "calibration_images": sum(len(batch) for batch in calibration),
        **asdict(judged),
        **{f"latency_{which}": asdict(latency) for which, latency in times.items()},
    }


def _pieces(batch: Tensor, rows: int | None) -> list[Tensor]:
    """A batch as it is, or in pieces of so many rows where the file fixes its batch; what is left over goes."""
    return [batch] if rows is None else [piece for piece in batch.split(rows) if len(piece) == rows]


def _first(output: Any) -> Tensor:
    return next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))


@torch.no_grad()
def judge(network: nn.Module, session: Session, batches: Sequence[tuple[Tensor, Tensor]]) -> Judged:
    """The network in eval mode and the file on the same test images; of several outputs the first."""
    found, right, right_float, equal, classified = Judged(), 0, 0, 0, True
    difference = scale = 0.0
    network = network.eval()
    for images, labels in batches:
        output, wanted = session(FlatInputs.of(images))[0], _first(network(images))
        difference += (output.double() - wanted.double()).square().sum().item()
        scale += wanted.double().square().sum().item()
        found.images += len(images)
        classified = classified and is_classifier(wanted) and labels.ndim == 1
        if classified:
            answer, expected = output.argmax(1), wanted.argmax(1)
            right += int((answer == labels).sum())
            right_float += int((expected == labels).sum())
            equal += int((answer == expected).sum())
    found.error = (difference / scale) ** 0.5 if scale else 0.0
    if classified:
        found.accuracy, found.accuracy_float = right / found.images, right_float / found.images
        found.agreement = equal / found.images
    return found
