"""CP factors: the layer that they amount to, what they cost and keep, and that a budget chooses them where they do better."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import EvidenceError
from prunus.reconstruction import factorize
from prunus.reconstruction.factors import macs_of, merged, product, run_row
from prunus.reconstruction.polyadic import TRIAL_ROUNDS, _polyadic, cp_factors, cp_macs, cp_shares
from prunus.reconstruction.ranks import Candidate
from prunus.surgery.replaced import LayerShape
from prunus.types import Budget
from refitting import data, error, settled


def shape(**changes: object) -> LayerShape:
    given = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "bias": True, **changes}
    return LayerShape("conv2d", 6, 8, **given)  # type: ignore[arg-type]


def randn(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(rank: int) -> Tensor:
    """A kernel (8, 6, 3, 3) that is a sum of so many parts."""
    return torch.einsum("or,ir,rhw->oihw", randn(8, rank), randn(6, rank, seed=1), randn(rank, 3, 3, seed=2))


def test_a_kernel_of_few_parts_is_found() -> None:
    weight = parts(2)
    row = cp_factors(shape(), weight, 2)
    assert float((product(row) - weight).norm() / weight.norm()) < 1e-3
    assert float((product(cp_factors(shape(), weight, 1)) - weight).norm() / weight.norm()) > 0.1
    assert [(part.inputs, part.outputs, part.groups, part.bias) for part, _ in row] == [
        (6, 2, 1, False),
        (2, 2, 2, False),
        (2, 8, 1, True),
    ]
    norms = torch.stack([weight.flatten(1).norm(dim=1) for _, weight in row[:2]])
    torch.testing.assert_close(norms[0], norms[1])  # no factor is much larger than the others: float32 is enough


@pytest.mark.parametrize(
    "layer",
    [shape(), shape(stride=(2, 2)), shape(stride=(2, 1), padding=(0, 2), dilation=(2, 1)), shape(kernel_size=(5, 3))],
    ids=["plain", "strided", "dilated", "5x3"],
)
def test_the_row_is_one_layer_with_the_product_of_its_factors(layer: LayerShape) -> None:
    weight, bias, x = randn(8, 6, *layer.kernel_size), randn(8, seed=1), randn(2, 6, 11, 12, seed=2)
    row = cp_factors(layer, weight, 5)
    expected = F.conv2d(x, product(row), bias, layer.stride, layer.padding, layer.dilation)
    torch.testing.assert_close(run_row(row, x, bias), expected)
    assert merged(row) == row  # a depthwise layer isn't merged away
    assert macs_of([part for part, _ in row], (11, 12)) == 5 * cp_macs(layer, (11, 12))


def test_by_hand_what_a_part_costs() -> None:
    """4 x 4 positions in, 2 x 2 out: 6 inputs at each of 16, and 9 weights and 8 outputs at each of 4."""
    assert cp_macs(shape(stride=(2, 2)), (4, 4)) == 6 * 16 + (9 + 8) * 4


def test_shares_rise_to_one_with_the_rank() -> None:
    weight, inputs = parts(3) + 0.01 * randn(8, 6, 3, 3, seed=5), randn(4000, 54, seed=6) @ randn(54, 54, seed=7)
    ranks, kept = cp_shares(shape(), weight, inputs.T @ inputs, (8, 8))
    assert ranks.tolist() == list(range(1, 15))  # three quarters of 432 weights, 23 for each part
    assert bool((np.diff(kept) >= -1e-12).all()) and kept[0] < 0.9 < 0.99 < kept[-1] <= 1
    none = cp_shares(shape(), torch.zeros(8, 6, 3, 3), inputs.T @ inputs, (8, 8))
    assert none[1].tolist() == pytest.approx([0.0] * len(none[0]))


def test_a_share_is_what_least_squares_on_the_parts_explains() -> None:
    """The last factor refitted to the responses of 4,000 patches by NumPy, at a rank that is tried out."""
    weight, inputs = randn(8, 6, 3, 3), randn(4000, 54, seed=6) @ randn(54, 54, seed=7)
    ranks, kept = cp_shares(shape(), weight, inputs.T @ inputs, (8, 8))
    _, columns, windows = _polyadic(weight, 9, TRIAL_ROUNDS, 0)
    features = (inputs @ torch.einsum("ir,kr->ikr", columns, windows).reshape(54, 9)).numpy()
    responses = (inputs @ weight.flatten(1).T).numpy()
    found, *_ = np.linalg.lstsq(features, responses, rcond=None)
    lost = np.square(features @ found - responses).sum() / np.square(responses).sum()
    assert ranks[8] == 9 and kept[8] == pytest.approx(1 - lost, abs=1e-6)


def test_choices_of_a_layer_hold_cp_ranks_at_their_cost() -> None:
    ranks, kept = np.array([1, 2]), np.array([0.5, 0.75])
    cost, lost, options = Candidate(shape(), (8, 8), None, None, (ranks, kept)).options()
    assert [option.cp for option in options] == [None, 1, 2]
    assert cost.tolist() == [432 * 64, 23 * 64, 46 * 64]
    assert lost.tolist() == pytest.approx([0, math.log(2), math.log(4 / 3)])


class Parts(nn.Module):
    """A layer whose kernel is a sum of few parts, and one of full rank."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 3)
        with torch.no_grad():
            self.two.weight.copy_(parts(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))


def test_of_all_ways_the_budget_takes_the_one_that_keeps_most() -> None:
    torch.manual_seed(0)
    batches = data(2, 30)
    full = settled(Parts(), batches)
    found = factorize(full, batches, Budget(macs=0.4), cp=True, points=40)
    others = factorize(full, batches, Budget(macs=0.4), points=40)
    assert [part.groups for part in found.rows["two"]][1] > 1 and found.macs <= 0.4 * found.macs_before
    assert error(found.model, full, batches[0]) < 0.5 * error(others.model, full, batches[0])


def test_without_tensorly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorly", None)
    batches = data()
    with pytest.raises(EvidenceError, match=r"CP factors are computed by tensorly: pip install 'prunus\[all\]'"):
        factorize(Parts().double(), batches, Budget(macs=0.4), cp=True)
