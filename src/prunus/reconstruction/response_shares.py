"""How much of a layer's response is kept by channels, spatial factors or other features: shares of its energy, all comparable."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunus.reconstruction.factors import spatial_matrix

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_RIDGE = 1e-9
"""Of the equations of what features explain: channels that are silent on the data make them singular."""


def channel_shares(covariance: Tensor) -> Floats:
    """What 1, 2, ... principal axes keep of a response with this covariance (outputs, outputs)."""
    energies = torch.linalg.eigvalsh(covariance.double()).flip(0).clamp_min(0).cpu().numpy()
    return np.minimum(np.cumsum(energies) / max(float(energies.sum()), 1e-300), 1.0)


def spatial_shares(weight: Tensor, patches: Tensor) -> Floats:
    """What spatial factors of rank 1, 2, ... keep of the response where the second is fitted to it.

    ``patches``: covariance of what the layer reads (inputs * height * width, the same). A rank more appends a column of the
    kernel's width to what the second layer reads, so that one Cholesky factor serves all ranks.
    """
    inputs, height, width = weight.shape[1:]
    kernel = weight.detach().double()
    axes = torch.linalg.svd(spatial_matrix(kernel), full_matrices=False)[0].T.reshape(-1, inputs, height)
    read = torch.einsum("kih,wv->kwihv", axes, torch.eye(width, dtype=axes.dtype, device=axes.device))
    explained = _explained(read.reshape(len(axes) * width, -1), kernel.flatten(1), patches)
    return np.minimum(np.cumsum(explained.reshape(len(axes), width).sum(1)), 1.0)


def fitted_share(read: Tensor, weight: Tensor, patches: Tensor) -> float:
    """What a layer on ``read @ patch`` (features, patch) keeps of the response of ``weight`` where it is fitted to it."""
    return min(float(_explained(read, weight.detach().double().flatten(1), patches).sum()), 1.0)


def _explained(read: Tensor, weight: Tensor, patches: Tensor) -> Floats:
    """Share of the response's energy that each feature adds to those before it, by least squares."""
    total = float(((weight @ patches) * weight).sum())
    if total <= 0:
        return np.zeros(len(read))  # nothing can be fitted to a silent layer: it stays as long as others can go
    inner = read @ patches @ read.T
    inner.diagonal().add_(_RIDGE * inner.diagonal().mean().clamp_min(1e-300))
    found = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), read @ patches @ weight.T, upper=False)
    return ((found**2).sum(1) / total).cpu().numpy()
