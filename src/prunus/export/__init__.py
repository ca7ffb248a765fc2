"""Files for other runtimes, each compared with the PyTorch network before it gets its name, and side-by-side timing."""

from __future__ import annotations

from prunus.export.compare import ExportCheck
from prunus.export.onnx import export_onnx
from prunus.export.routes import ROUTES, export, route_of
from prunus.export.runtimes import Latency, measure_file_latency, measure_latency, measure_onnx_latency

__all__ = [
    "ROUTES",
    "ExportCheck",
    "Latency",
    "export",
    "export_onnx",
    "measure_file_latency",
    "measure_latency",
    "measure_onnx_latency",
    "route_of",
]
