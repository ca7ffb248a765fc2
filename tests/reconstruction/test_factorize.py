"""Factors against singular values and hand-made cases; factorised networks: budget, product, loading, pruning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import ArtifactError, BudgetNotMet, InvalidBudget, NothingPruned, UnknownName
from prunus.reconstruction import factorize, reconstruct, three_c
from prunus.reconstruction.behind_relu import ReluProblem, nearest_behind_relu, refine
from prunus.reconstruction.factors import (
    channel_factors,
    merged,
    product,
    reduced_rank,
    relu_reduced_rank,
    run_row,
    spatial_factors,
)
from prunus.reconstruction.normal_equations import Solution
from prunus.reconstruction.ranks import Candidate, Ranks, choose_ranks
from prunus.reconstruction.response_shares import Floats
from prunus.surgery.replaced import LayerShape
from prunus.types import Budget
from refitting import data, error, settled


def shape(**changes: object) -> LayerShape:
    given = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "bias": True, **changes}
    return LayerShape("conv2d", 6, 8, **given)  # type: ignore[arg-type]


def randn(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SHAPES = [
    shape(),
    shape(stride=(2, 2)),
    shape(stride=(2, 1), padding=(0, 2), dilation=(2, 1)),
    shape(kernel_size=(5, 3), padding=(2, 1)),
]


@pytest.mark.parametrize("layer", SHAPES, ids=["plain", "strided", "dilated", "5x3"])
def test_spatial_factors_of_full_rank_are_the_layer(layer: LayerShape) -> None:
    weight, bias, x = randn(8, 6, *layer.kernel_size), randn(8, seed=1), randn(2, 6, 11, 12, seed=2)
    row = spatial_factors(layer, weight, min(6 * layer.kernel_size[0], 8 * layer.kernel_size[1]))
    expected = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
    torch.testing.assert_close(run_row(row, x, bias), expected)
    torch.testing.assert_close(product(row), weight)
    assert [part.kernel_size for part, _ in row] == [(layer.kernel_size[0], 1), (1, layer.kernel_size[1])]
    assert [part.bias for part, _ in row] == [False, True]


def test_spatial_factors_are_the_nearest_of_their_rank() -> None:
    weight = randn(8, 6, 3, 3)
    row = spatial_factors(shape(), weight, 4)
    singular = np.linalg.svd(weight.permute(1, 2, 0, 3).reshape(18, 24).numpy(), compute_uv=False)
    assert float((product(row) - weight).square().sum()) == pytest.approx(float((singular[4:] ** 2).sum()))


def test_a_kernel_that_is_a_product_is_found_exactly() -> None:
    column, line = randn(2, 6, 3, 1), randn(8, 2, 1, 3, seed=1)
    weight = torch.einsum("riy,orx->oiyx", column[..., 0], line[:, :, 0])
    torch.testing.assert_close(product(spatial_factors(shape(), weight, 2)), weight)


def test_principal_axes_of_responses_by_hand() -> None:
    """Responses (a, 2a) and a little of (2, -1): the axis is (1, 2) / sqrt 5, and the map projects on it."""
    a, b = torch.tensor([[1.0, -1, 2, -2], [0.1, 0.1, -0.1, -0.1]], dtype=torch.float64)
    y = torch.stack([a + 2 * b, 2 * a - b], 1)
    basis, reading = reduced_rank(y.T @ y, y.T @ y, 1, ridge=0.0)
    torch.testing.assert_close(basis @ reading, torch.tensor([[0.2, 0.4], [0.4, 0.8]], dtype=torch.float64), atol=1e-9, rtol=0)


def test_reduced_rank_is_least_squares_at_full_rank_and_undoes_an_error() -> None:
    x, mixing = randn(200, 4), randn(4, 4, seed=1)
    y = x @ mixing + 0.1 * randn(200, 4, seed=2)
    basis, reading = reduced_rank(x.T @ x, x.T @ y, 4, ridge=0.0)
    expected, *_ = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)
    np.testing.assert_allclose((basis @ reading).numpy().T, expected, atol=1e-9)
    rank_two = mixing[:, :2] @ randn(2, 4, seed=3)  # asymmetric: x is wrong by an invertible map, y has rank two
    wanted = x @ rank_two
    wrong = x @ randn(4, 4, seed=4)
    basis, reading = reduced_rank(wrong.T @ wrong, wrong.T @ wanted, 2, ridge=0.0)
    torch.testing.assert_close(wrong @ reading.T @ basis.T, wanted, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(
    ("given", "wanted", "expected"), [(3.0, 1.0, 2.0), (-1.0, 0.0, -1.0), (-4.0, 1.0, -4.0), (-0.1, 2.0, 0.95)]
)
def test_the_auxiliary_number_by_hand(given: float, wanted: float, expected: float) -> None:
    """Penalty one: (wanted - relu z)^2 + (z - given)^2. Open: the mean of both; closed: as given, if that costs less."""
    found = nearest_behind_relu(torch.tensor(given), torch.tensor(wanted), 1.0)
    assert found.item() == pytest.approx(expected)
    around = torch.linspace(-6, 6, 12001)
    costs = (wanted - around.clamp_min(0)) ** 2 + (around - given) ** 2
    assert float((wanted - found.clamp_min(0)) ** 2 + (found - given) ** 2) <= float(costs.min()) + 1e-5


def test_behind_the_relu_a_low_rank_does_better_than_in_front_of_it() -> None:
    y = randn(400, 6) @ randn(6, 6, seed=1) - 1.0
    basis, reading, shift = relu_reduced_rank(y, y, 2)
    centred = y - y.mean(0)
    plain, read = reduced_rank(centred.T @ centred, centred.T @ centred, 2)
    linear = (centred @ read.T @ plain.T + y.mean(0)).clamp_min(0)
    behind = (y @ reading.T @ basis.T + shift).clamp_min(0)
    wanted = y.clamp_min(0)
    assert float((behind - wanted).square().sum()) < 0.9 * float((linear - wanted).square().sum())


def test_a_refit_behind_the_relu_does_better_there() -> None:
    x = randn(500, 1, 4)
    wanted = (x @ randn(4, 3, seed=1) + 0.7 * randn(500, 1, 3, seed=2) - 1.0).clamp_min(0)
    target = wanted - 3.0 * (wanted == 0)  # what the layer gave where the ReLU is shut is far below, and doesn't matter
    ones = torch.ones(1, 3, dtype=torch.float64)
    augmented = np.hstack([x[:, 0].numpy(), np.ones((500, 1))])
    found, *_ = np.linalg.lstsq(augmented, target[:, 0].numpy(), rcond=None)
    start = Solution(torch.from_numpy(found[:-1].T).unsqueeze(0), torch.from_numpy(found[-1:]), 0.0)
    problem = ReluProblem(x, wanted, torch.zeros_like(wanted), ones)
    assert problem.error(refine(problem, start, None)) < 0.8 * problem.error(start)


def test_channel_factors_are_the_layer_behind_the_map() -> None:
    weight, x, basis, reading = randn(8, 6, 3, 3), randn(2, 6, 7, 7, seed=1), randn(8, 3, seed=2), randn(3, 8, seed=3)
    row = channel_factors(shape(), weight, basis, reading)
    expected = torch.einsum("or,rp,bpyx->boyx", basis, reading, F.conv2d(x, weight, padding=1))
    torch.testing.assert_close(run_row(row, x), expected)
    assert [part.outputs for part, _ in row] == [3, 8] and row[1][0].kernel_size == (1, 1)


@pytest.mark.parametrize(("rank", "layers"), [(2, 3), (7, 2)])
def test_neighbours_merge_where_that_saves(rank: int, layers: int) -> None:
    """A 1x3 layer of 5 inputs and ``rank`` outputs costs 15 rank, the pointwise one 8 rank, both in one 120."""
    row = spatial_factors(shape(), randn(8, 6, 3, 3), 5)
    row = [row[0], *channel_factors(*row[1], randn(8, rank, seed=1), randn(rank, 8, seed=2))]
    joined = merged(row)
    assert len(joined) == layers
    torch.testing.assert_close(product(joined), product(row))
    assert sum(part.num_weights for part, _ in joined) == min(sum(part.num_weights for part, _ in row), 18 * 5 + 120)


def test_ranks_keep_the_most_energy_that_the_budget_allows() -> None:
    """Against every pair of ranks of two small layers."""

    def shares(*energies: float) -> Floats:
        return np.cumsum(energies) / sum(energies)

    layers = [
        Candidate(LayerShape("conv2d", 4, 6, (3, 3), (1, 1), (1, 1), (1, 1)), (5, 5), None, shares(8.0, 4, 2, 1, 0.5, 0.1)),
        Candidate(LayerShape("conv2d", 6, 4, (3, 3), (1, 1), (1, 1), (1, 1)), (5, 5), None, shares(5.0, 5, 1, 0.1)),
    ]
    full = sum(layer.macs for layer in layers)
    for share in (0.8, 0.6, 0.45):
        chosen = choose_ranks(layers, share * full)
        assert chosen is not None
        tables = [layer.options() for layer in layers]
        picked = [table[2].index(ranks) for table, ranks in zip(tables, chosen, strict=True)]
        cost = sum(table[0][i] for table, i in zip(tables, picked, strict=True))
        lost = sum(table[1][i] for table, i in zip(tables, picked, strict=True))
        assert cost <= share * full
        for i in range(len(tables[0][0])):
            for j in range(len(tables[1][0])):
                if tables[0][0][i] + tables[1][0][j] <= cost:  # nothing that costs no more loses less
                    assert tables[0][1][i] + tables[1][1][j] >= lost - 1e-12
    assert choose_ranks(layers, 0.01 * full) is None
    assert choose_ranks(layers, full) == [Ranks(None, None)] * 2


class Vgg(nn.Module):
    """Three 3x3 layers, one with batch norm and no bias, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 12, 3, padding=1)
        self.two = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.three = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.two(torch.relu(self.one(x)))))
        return self.head(torch.relu(self.three(x)).mean((2, 3)))


def vgg() -> tuple[nn.Module, list[Tensor]]:
    """Its kernels and responses are of low rank, but for a little, as those of trained networks are."""
    torch.manual_seed(0)
    batches = data(2, 30, 3, 8)
    full = Vgg()
    with torch.no_grad():
        for conv in (full.two, full.three):
            near = spatial_factors(shape(), conv.weight, 3)
            conv.weight.copy_(product(channel_factors(shape(), product(near), *_axes(conv.weight, 5))) + 0.1 * conv.weight)
    return settled(full, batches), batches


def _axes(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    basis = torch.linalg.svd(weight.double().flatten(1))[0][:, :rank]
    return basis, basis.T


WAYS = {
    "spatial": {"channels": False},
    "channels": {"spatial": False},
    "both": {},
    "cp": {"spatial": False, "channels": False, "cp": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("relu_aware", [False, True])
def test_a_factorised_network_meets_the_budget_and_loads(way: str, relu_aware: bool, tmp_path: Path) -> None:
    full, batches = vgg()
    before = {name: value.clone() for name, value in full.state_dict().items()}
    found = factorize(full, batches, Budget(macs=0.6), relu_aware=relu_aware, points=40, **WAYS[way])
    counted = prunus.trace(found.model, batches[0][:1]).cost().macs
    assert counted == found.macs <= 0.6 * found.macs_before
    assert found.rows and all(isinstance(found.model.get_submodule(layer), nn.Sequential) for layer in found.rows)
    kernels = {part.kernel_size for row in found.rows.values() for part in row}
    assert kernels <= {"spatial": {(3, 1), (1, 3)}, "channels": {(3, 3), (1, 1)}, "cp": {(3, 3), (1, 1)}}.get(
        way, {(3, 1), (1, 3), (3, 3), (1, 1)}
    )
    assert error(found.model, full, batches[0]) < 0.2
    prunus.save(found.model, found.record, tmp_path / "factorised.prunus")
    again = prunus.load(tmp_path / "factorised.prunus", Vgg().double()).eval()
    with torch.no_grad():
        assert torch.equal(again(batches[0]), found.model(batches[0]))
    assert all(torch.equal(before[name], value) for name, value in full.state_dict().items())


def test_a_mild_budget_costs_little() -> None:
    full, batches = vgg()
    with torch.no_grad():
        full.two.weight.copy_(product(spatial_factors(shape(), full.two.weight, 4)))  # of low rank
    found = factorize(full, batches, Budget(macs=0.85), channels=False, points=64)
    assert list(found.rows) == ["two"] and found.rows["two"][0].outputs >= 4
    assert error(found.model, full, batches[0]) < 1e-8


def test_what_can_not_be_factorised_is_named() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 12, 3, padding="same")
    )
    full = nn.Sequential(body, nn.ConvTranspose2d(12, 2, 2)).double()
    found = factorize(full, data(), Budget(macs=0.99))
    assert found.not_factorised == {
        "0.2": "it has 4 groups",
        "0.4": "its padding is 'same', mode zeros",
        "1": "it is a ConvTranspose2d",
    }
    with pytest.raises(BudgetNotMet, match="are in layers that can't be factorised, and ranks of one still cost too much"):
        factorize(full, data(), Budget(macs=0.1))
    with pytest.raises(NothingPruned, match="no layer can be factorised"):
        factorize(full, data(), Budget(macs=0.5), keep=["0.0"])
    with pytest.raises(UnknownName, match=r"unknown layer in keep '0\.9'"):
        factorize(full, data(), Budget(macs=0.5), keep=["0.9"])
    with pytest.raises(InvalidBudget, match="not of parameters"):
        factorize(full, data(), Budget(parameters=0.5))
    with pytest.raises(InvalidBudget, match=r"keep_channels = 1\.5"):
        three_c(full, data(), Budget(macs=0.5), keep_channels=1.5)


def test_three_c_meets_the_budget_and_loads(tmp_path: Path) -> None:
    full, batches = vgg()
    found = three_c(full, batches, Budget(macs=0.4), keep_channels=0.7, points=40)
    counted = prunus.trace(found.model, batches[0][:1]).cost().macs
    assert counted == found.macs <= 0.4 * found.macs_before
    assert found.plan is not None and found.plan.num_removed > 0
    prunus.save(found.model, found.record, tmp_path / "small.prunus")
    again = prunus.load(tmp_path / "small.prunus", Vgg().double()).eval()
    with torch.no_grad():
        assert torch.equal(again(batches[0]), found.model(batches[0]))
    with pytest.raises(ArtifactError, match="of another architecture"):
        prunus.load(tmp_path / "small.prunus", nn.Sequential(nn.Conv2d(3, 4, 1)))


def test_a_factorised_network_can_be_refitted_to_the_original() -> None:
    full, batches = vgg()
    found = factorize(full, batches, Budget(macs=0.5), points=40)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    before = error(found.model, full, batches[0])
    report = reconstruct(found.model, full, found.record, batches, points=40)
    assert error(found.model, full, batches[0]) < 0.7 * before
    inside = {f"{layer}.{i}.weight" for layer, row in found.rows.items() for i in range(len(row) - 1)}
    assert set(report.not_fitted) == inside
    assert all("inside a row of layers" in why for why in report.not_fitted.values())


def test_a_row_with_a_depthwise_layer_is_read_back_and_checked() -> None:
    full, batches = vgg()
    found = factorize(full, batches, Budget(macs=0.6), points=40, **WAYS["cp"])
    rank = next(iter(found.rows.values()))[1].groups
    text = found.record.to_json()
    assert rank > 1 and f'"groups": {rank}' in text
    for bad in ("0", "-1", "true", str(rank + 1)):
        with pytest.raises(ArtifactError, match="a layer of kind 'conv2d' is malformed"):
            prunus.SurgeryRecord.from_json(text.replace(f'"groups": {rank}', f'"groups": {bad}', 1))
    assert prunus.SurgeryRecord.from_json(text).to_json() == text
    plain = factorize(full, batches, Budget(macs=0.6), points=40).record.to_json()
    older = plain.replace(', "groups": 1', "")  # written before rows could have groups
    assert older != plain and prunus.SurgeryRecord.from_json(older).to_json() == plain


def test_a_damaged_record_is_refused() -> None:
    full, batches = vgg()
    text = factorize(full, batches, Budget(macs=0.6), points=40).record.to_json()
    for good, bad in (('"conv2d"', '"lstm"'), ('"outputs": ', '"outputs": -'), ('"bias": false', '"bias": 3')):
        assert good in text
        with pytest.raises(ArtifactError, match="this isn't a surgery record"):
            prunus.SurgeryRecord.from_json(text.replace(good, bad, 1))
    assert prunus.SurgeryRecord.from_json(text).to_json() == text
