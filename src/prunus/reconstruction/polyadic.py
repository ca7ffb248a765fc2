"""CP factors of a convolution: a pointwise layer, a depthwise one, a pointwise one; and how much each rank keeps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from prunus.errors import EvidenceError
from prunus.reconstruction.factors import Row, output_extent, pointwise
from prunus.reconstruction.response_shares import Floats, Ints, fitted_share
from prunus.surgery.replaced import LayerShape

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Shares of a layer's multiply-adds at whose ranks it is tried out; one is a rank, too."""
TRIAL_ROUNDS, ROUNDS = 15, 100
"""Rounds of alternating least squares for a trial, and for the factors that are used."""
_RIDGE = 1e-9
"""Of the alternating least squares, for a kernel of norm one: there may be more parts than a kernel can tell apart."""


def cp_factors(shape: LayerShape, weight: Tensor, rank: int, seed: int = 0) -> Row:
    """A pointwise convolution to ``rank`` channels, a depthwise one of the layer's kernel, and a pointwise one to its outputs.

    Canonical polyadic decomposition of the kernel as (outputs, inputs, kernel positions), as Lebedev et al., "Speeding-up
    Convolutional Neural Networks Using Fine-tuned CP-Decomposition", ICLR 2015, without factors of the kernel's own axes;
    alternating least squares by tensorly, from a random start. Stride, padding and dilation stay with the kernel.

    Raises:
        EvidenceError: tensorly isn't installed.
    """
    rows, columns, windows = _polyadic(weight, rank, ROUNDS, seed)
    ones = (1,) * len(shape.kernel_size)
    first = LayerShape(shape.kind, shape.inputs, rank, ones, ones, (0,) * len(ones), ones)
    middle = replace(shape, inputs=rank, outputs=rank, bias=False, groups=rank)
    return [
        (first, columns.T.reshape(rank, shape.inputs, *ones)),
        (middle, windows.T.reshape(rank, 1, *shape.kernel_size)),
        (pointwise(shape, rank), rows.reshape(shape.outputs, rank, *ones)),
    ]


def cp_macs(shape: LayerShape, extent: tuple[int, ...]) -> float:
    """Multiply-adds of one part for one input of this extent."""
    places = math.prod(output_extent(shape, extent))
    return float(shape.inputs * math.prod(extent) + (math.prod(shape.kernel_size) + shape.outputs) * places)


def cp_shares(shape: LayerShape, weight: Tensor, patches: Tensor, extent: tuple[int, ...], seed: int = 0) -> tuple[Ints, Floats]:
    """Ranks, ascending, and the share of the response's energy that each keeps where the last factor is fitted to it.

    ``patches``: covariance of what the layer reads. Measured by short fits at `SHARES` of the layer's multiply-adds, in between a
    power law of what is lost.
    """
    macs = shape.num_weights * math.prod(output_extent(shape, extent)) / cp_macs(shape, extent)
    tried = np.unique([1, *(int(share * macs) for share in SHARES if share * macs >= 1)])
    if not bool(weight.any()):
        return tried, np.zeros(len(tried))

    def lost(rank: int) -> float:
        _, columns, windows = (factor.to(patches.device) for factor in _polyadic(weight, rank, TRIAL_ROUNDS, seed))
        return 1 - fitted_share(torch.einsum("ir,kr->rik", columns, windows).flatten(1), weight, patches)

    measured = np.minimum.accumulate(np.clip([lost(int(rank)) for rank in tried], 1e-12, 1.0))
    ranks = np.arange(1, tried[-1] + 1)
    return ranks, 1 - np.exp(np.interp(np.log(ranks), np.log(tried), np.log(measured)))


def _polyadic(weight: Tensor, rank: int, rounds: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (outputs, rank), (inputs, rank), (kernel positions, rank), float64, a part's norm shared evenly among them."""
    try:
        import tensorly
        from tensorly.decomposition import parafac
    except ImportError as error:
        raise EvidenceError("CP factors are computed by tensorly: pip install 'prunus[all]'") from error
    kernel = weight.detach().double().flatten(2).cpu()
    norm = float(kernel.norm()) or 1.0
    library, decompose = cast("Any", tensorly), cast("Any", parafac)  # untyped
    with library.backend_context("numpy", local_threadsafe=True):
        options = {"init": "random", "random_state": seed, "l2_reg": _RIDGE, "tol": 1e-7}
        found = decompose((kernel / norm).numpy(), rank, n_iter_max=rounds, **options)
    scales, factors = torch.from_numpy(found.weights), [torch.from_numpy(factor) for factor in found.factors]
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    even = (norm * scales.abs() * norms.prod(0)) ** (1 / 3) / norms.clamp_min(1e-300)
    rows, columns, windows = (factor * size for factor, size in zip(factors, even, strict=True))
    return rows * scales.sign(), columns, windows
