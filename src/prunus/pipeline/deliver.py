"""The end of a run: the small network as files, measured beside the full one and shown on images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus.config import Recipe
from prunus.export import measure_latency, route_of
from prunus.pipeline.called import Called
from prunus.pipeline.exports import Exported, Timed, export_row
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
    before: Path,
    after: Path,
) -> dict[str, Any]:
    """Latency of both networks, exports checked against PyTorch, and pictures with both answers.

    Files are named as ``before`` and ``after``, with the suffixes of their formats.
    """
    settings, one = recipe.export, examples[:1]
    base, small = base.eval(), small.eval()
    samples = show_samples(base, small, data, forward_fn=forward_fn)
    base, small = (Called(model, forward_fn) if forward_fn else model for model in (base, small))
    latency = measure_latency({"before": base, "after": small}, one, runs=settings.latency_runs, threads=settings.threads)
    subject, timed = Exported(small, base, one), Timed(settings.latency_runs, settings.threads)
    exports = [
        export_row(subject, name, after.with_suffix(suffix), timed, checks=[examples], full_path=before.with_suffix(suffix))
        for name, suffix in export_formats(recipe).items()
    ]
    return {"latency": {name: asdict(value) for name, value in latency.items()}, "exports": exports, "samples": samples}


def export_formats(recipe: Recipe) -> dict[str, str]:
    """The formats that a recipe asks for, with the suffixes of their files."""
    names = [*(["onnx"] if recipe.export.onnx else []), *(recipe.export.formats or ())]
    return {name: route_of(name).suffix for name in names}
