"""OpenVINO's intermediate representation, made of the ONNX file: a graph (.xml) and its weights (.bin) beside it."""

from __future__ import annotations

from pathlib import Path

from prunus.export.onnx import ONNX, write_onnx
from prunus.export.sessions import imported, open_session
from prunus.export.signature import FlatInputs, FlatNetwork
from prunus.export.write import Route


def write_ir(network: FlatNetwork, inputs: FlatInputs, draft: Path, *, dynamic: bool) -> None:
    """Weights in float32: OpenVINO's own default, float16, would fail the comparison."""
    openvino = imported("openvino", "openvino")
    graph = draft.with_suffix(".onnx")
    write_onnx(network, inputs, graph, dynamic=dynamic)
    model = openvino.Core().read_model(graph)
    openvino.save_model(model, draft, compress_to_fp16=False)
    del model  # it reads its weights from the file that goes now
    for piece in draft.parent.glob(f"{graph.name}*"):
        piece.unlink()


OPENVINO = Route(
    "openvino",
    ".xml",
    "OpenVINO IR for Intel's processors, graph (.xml) and weights (.bin), from the ONNX graph",
    write_ir,
    lambda path, threads, _: open_session(path, threads, "openvino"),
    (*ONNX.packages, "openvino"),
    "openvino",
)
