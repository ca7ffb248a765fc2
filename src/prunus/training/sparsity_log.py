"""How far a sparsity method has come, as plain values for the log of an epoch."""

from __future__ import annotations

from typing import Any

import torch

from prunus.training_hooks import SparsityProgress

BINS = 40


def describe(progress: SparsityProgress) -> dict[str, Any]:
    """``macs``, ``widths`` and a histogram of all channels' strengths: ``counts`` (BINS,) between ``edges`` (BINS + 1,)."""
    values = torch.cat([v.reshape(-1).double() for v in progress.strengths.values()]) if progress.strengths else torch.zeros(0)
    top = max(float(values.max()), 1e-12) if len(values) else 1.0
    counts = torch.histc(values, bins=BINS, min=0.0, max=top)
    return {
        "macs": progress.macs,
        "widths": dict(progress.widths),
        "histogram": {"edges": torch.linspace(0, top, BINS + 1).tolist(), "counts": [int(n) for n in counts.tolist()]},
    }
