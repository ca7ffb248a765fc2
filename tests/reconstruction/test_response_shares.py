"""What channels and spatial factors keep of a layer's response, against least squares by NumPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from prunus.reconstruction.factors import product, spatial_factors
from prunus.reconstruction.response_shares import channel_shares, fitted_share, spatial_shares
from prunus.surgery.replaced import LayerShape


def randn(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def patches(positions: int = 3000) -> Tensor:
    """Six channels of 3 x 3, correlated."""
    return randn(positions, 54, seed=1) @ randn(54, 54, seed=2)


def test_channels_keep_the_largest_eigenvalues() -> None:
    assert channel_shares(torch.diag(torch.tensor([1.0, 6, 3]))).tolist() == pytest.approx([0.6, 0.9, 1.0])


@pytest.mark.parametrize("rank", [1, 4, 11])
def test_spatial_factors_keep_what_a_refitted_second_factor_explains(rank: int) -> None:
    weight, seen = randn(8, 6, 3, 3), patches()
    kept = spatial_shares(weight, seen.T @ seen)
    shape = LayerShape("conv2d", 6, 8, (3, 3), (1, 1), (0, 0), (1, 1))
    (_, first), _ = spatial_factors(shape, weight, rank)
    columns = [(seen.reshape(-1, 6, 3, 3)[:, :, :, w].flatten(1) @ first.flatten(1).T).numpy() for w in range(3)]
    responses = (seen @ weight.flatten(1).T).numpy()
    found, *_ = np.linalg.lstsq(np.hstack(columns), responses, rcond=None)
    lost = np.square(np.hstack(columns) @ found - responses).sum() / np.square(responses).sum()
    assert kept[rank - 1] == pytest.approx(1 - lost, abs=1e-6)


def test_of_white_patches_spatial_factors_keep_at_least_the_kernels_energy() -> None:
    """A patch of uncorrelated values: the response's energy is the kernel's, and the refit can only add to it."""
    weight = randn(8, 6, 3, 3)
    kept = spatial_shares(weight, torch.eye(54, dtype=torch.float64))
    shape = LayerShape("conv2d", 6, 8, (3, 3), (1, 1), (1, 1), (1, 1))
    for rank in (1, 5, 17):
        nearest = product(spatial_factors(shape, weight, rank))
        assert kept[rank - 1] == pytest.approx(1 - float((nearest - weight).square().sum() / weight.square().sum()), abs=1e-6)


def test_a_rank_that_the_kernel_has_is_enough_and_full_rank_keeps_all() -> None:
    weight = torch.einsum("riy,orx->oiyx", randn(2, 6, 3), randn(8, 2, 3, seed=1))
    kept = spatial_shares(weight, patches().T @ patches())
    assert kept[0] < 0.99 and kept[1:].tolist() == pytest.approx([1.0] * (len(kept) - 1), abs=1e-6)
    assert bool((np.diff(kept) >= -1e-9).all())


def test_channels_that_are_silent_on_the_data_are_no_matter() -> None:
    """Two of six input channels never say anything: the equations are singular, the shares the same as without them."""
    seen = patches().reshape(-1, 6, 9)
    seen[:, 4:] = 0
    weight = randn(8, 6, 3, 3)
    flat = seen.flatten(1)
    kept, alone = spatial_shares(weight, flat.T @ flat), seen[:, :4].flatten(1)
    assert np.isfinite(kept).all() and kept[-1] == pytest.approx(1.0, abs=1e-6)
    assert fitted_share(torch.eye(36, dtype=torch.float64), weight[:, :4], alone.T @ alone) == pytest.approx(1.0, abs=1e-6)


def test_nothing_is_kept_of_a_silent_layer() -> None:
    """So that it is the last to be factorised: there is nothing to fit factors to."""
    silent, none = torch.zeros(8, 6, 3, 3, dtype=torch.float64), torch.zeros(54, 54, dtype=torch.float64)
    assert fitted_share(randn(4, 54), silent, patches().T @ patches()) == 0
    assert fitted_share(randn(4, 54), randn(8, 6, 3, 3), none) == 0
    assert spatial_shares(silent, patches().T @ patches()).tolist() == [0.0] * 18
    assert channel_shares(torch.zeros(3, 3)).tolist() == [0.0] * 3
