"""The end of a run: the small network as files, measured beside the full one and shown on images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus.config import Recipe
from prunus.export import export_onnx, measure_latency, measure_onnx_latency
from prunus.pipeline.called import Called
from prunus.pipeline.samples import show_samples
from prunus.sources import DataBundle
from prunus.types import ForwardFn


def deliver(
    recipe: Recipe,
    base: nn.Module,
    small: nn.Module,
    data: DataBundle,
    examples: Tensor,
    forward_fn: ForwardFn | None,
    onnx_before: Path,
    onnx_after: Path,
) -> dict[str, Any]:
    """Latency of both networks, exports checked against PyTorch, and pictures with both answers."""
    settings, one = recipe.export, examples[:1]
    base, small = base.eval(), small.eval()
    samples = show_samples(base, small, data, forward_fn=forward_fn)
    base, small = (Called(model, forward_fn) if forward_fn else model for model in (base, small))
    latency = measure_latency({"before": base, "after": small}, one, runs=settings.latency_runs, threads=settings.threads)
    exports: list[dict[str, Any]] = []
    if settings.onnx:
        check = export_onnx(small, one, onnx_after, check_inputs=[examples])
        export_onnx(base, one, onnx_before)
        times = measure_onnx_latency(
            {"before": onnx_before, "after": onnx_after}, one, runs=settings.latency_runs, threads=settings.threads
        )
        row = {name: value for name, value in asdict(check).items() if name != "path"}
        measured = {f"latency_{which}": asdict(time) for which, time in times.items()}
        exports.append({**row, "file": check.path.name, **measured})
    return {"latency": {name: asdict(value) for name, value in latency.items()}, "exports": exports, "samples": samples}
