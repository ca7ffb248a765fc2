"""ResRep: a 1 x 1 convolution behind each normed convolution learns which channels can go, and is merged into it at the end."""

from __future__ import annotations

import torch
from torch import Tensor

VANISHED = 1e-5
"""A compactor's row with a smaller Euclidean norm is dropped."""


def resrep_gradient(compactor: Tensor, gradient: Tensor, mask: Tensor, strength: float = 1e-4) -> Tensor:
    """Gradient of a compactor Q (D, D) with the task's gradient reset on masked rows: (D, D).

        grad[j] = mask[j] * dL/dQ[j] + strength * Q[j] / norm(Q[j])

    Ding et al., ResRep, ICCV 2021. ``mask`` (D,): 0 where the task may no longer keep the row alive. All rows are
    penalised; one that is exactly zero has no direction and is left alone (the authors' code divides by zero there).
    """
    norms = compactor.norm(dim=1, keepdim=True)
    direction = torch.where(
        norms > 0, compactor / norms.clamp_min(torch.finfo(compactor.dtype).tiny), torch.zeros_like(compactor)
    )
    return mask[:, None].to(gradient) * gradient + strength * direction


def merge_compactor(
    kernel: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, compactor: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution, norm and compactor as one convolution: its kernel (kept, C, h, w), bias (kept,), and the rows kept (int64).

        K^[d] = K[d] * scale[d] / sqrt(variance[d] + eps),   b^ = shift - mean * scale / sqrt(variance + eps)
        K'[j] = sum over d of Q[j, d] K^[d],   b' = Q b^

    Ding et al., ResRep, ICCV 2021. Rows of Q with a norm below `VANISHED` go, but the longest row always stays. Exact for
    the kept rows; whatever reads the channels must lose those of the others.
    """
    factor = scale / (variance + eps).sqrt()
    norms = compactor.norm(dim=1)
    kept = (norms >= VANISHED).nonzero()[:, 0]
    if not len(kept):
        kept = norms.argmax().reshape(1)
    rows = compactor[kept]
    merged = torch.einsum("jd,dchw->jchw", rows, kernel * factor[:, None, None, None])
    return merged, rows @ (shift - mean * factor), kept
