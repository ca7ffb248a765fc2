"""Selection by Lasso against METHODS' hand-computed case and scikit-learn on the rows themselves; the complete method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor, nn

import prunus
from prunus.errors import NothingPruned, UnknownName
from prunus.reconstruction import prune_channels, reconstruct
from prunus.reconstruction.lasso_selection import GramLasso, LassoProblem, alternate
from prunus.reconstruction.normal_equations import NormalEquations
from prunus.types import PruningPlan, Scores
from refitting import EVERY, Block, data, error, half, settled
from small_nets import NETS


@pytest.mark.parametrize(("penalty", "expected"), [(0.1, (2.8, 0.8)), (0.5, (2.0, 0.0)), (1.0, (1.0, 0.0))])
def test_the_hand_computed_case(penalty: float, expected: tuple[float, float]) -> None:
    """z1 = (1, 0), z2 = (0, 1), y = (3, 1): b = (3 - 2 penalty, 1 - 2 penalty), and a half drops channel 2."""
    found = GramLasso(torch.eye(2).double(), torch.tensor([3.0, 1.0]).double(), rows=2).solve(penalty)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def problem(groups: int = 1) -> tuple[NormalEquations, Tensor, Tensor, Tensor, np.ndarray, np.ndarray]:
    """Normal equations of a layer with 6 inputs of 4 kernel positions, and its rows written out."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x = randn(50, groups, 6, 4) + 0.5
    x[:, :, 4] = x[:, :, 1] + 0.3 * x[:, :, 4]
    weight, bias = randn(groups, 5, 6, 4), randn(groups, 5)
    y = torch.einsum("pgik,goik->pgo", x, weight) + bias + randn(50, groups, 5)
    equations = NormalEquations(groups, 24, 5)
    equations.add(x.flatten(2), y)
    z = torch.einsum("pgik,goik->pgoi", x, weight).reshape(-1, 6)
    return equations, weight, bias, torch.arange(6).unsqueeze(1), z.numpy(), (y - bias).reshape(-1).numpy()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("penalty", [0.05, 0.5, 2.0])
def test_coefficients_are_those_of_scikit_learn_on_all_rows(groups: int, penalty: float) -> None:
    equations, weight, bias, positions, z, y = problem(groups)
    ours = LassoProblem(6)
    ours.add(equations, weight, bias, positions)
    expected = Lasso(alpha=penalty, tol=1e-10, max_iter=100_000).fit(z, y)  # with an intercept
    np.testing.assert_allclose(GramLasso(*ours.centred(), ours.rows).solve(penalty).numpy(), expected.coef_, atol=1e-4)
    assert ours.rows == len(y)


@pytest.mark.parametrize("count", range(1, 7))
def test_as_many_channels_as_asked_stay_and_they_are_the_lassos(count: int) -> None:
    equations, weight, bias, positions, z, y = problem()
    ours = LassoProblem(6)
    ours.add(equations, weight, bias, positions)
    keep = ours.select(count)
    assert int(keep.sum()) == count
    for penalty in np.geomspace(1e-3, 100, 2000):
        coefficients = Lasso(alpha=penalty).fit(z, y).coef_
        if (coefficients != 0).sum() == count:
            assert keep.tolist() == (coefficients != 0).tolist()
            break
    else:
        assert count in (4, 5, 6)  # two may leave at once; all stay without a penalty only


def test_of_duplicates_one_is_kept_and_the_error_is_zero() -> None:
    full = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 1, 1)).double().eval()
    with torch.no_grad():
        full[0].weight.copy_(torch.tensor([1.0, 1.0, -1.0]).view(3, 1, 1, 1))
        full[0].bias.fill_(0.5)
        full[2].weight.copy_(torch.tensor([1.0, 2.0, 1.5]).view(1, 3, 1, 1))
    batches = data(channels=1)
    graph = prunus.trace(full, batches[0][:1])
    plan = PruningPlan({"0": torch.tensor([True, True, False])}, graph.cost())
    found = prune_channels(full, graph, plan, batches, ridge=0.0)
    assert found.plan.keep["0"].tolist() in ([True, False, True], [False, True, True])
    assert error(found.model, full, batches[0]) < 1e-20
    worse = prune_channels(full, graph, plan, batches, "first_k", ridge=0.0)
    assert worse.plan.keep["0"].tolist() == [True, True, False]
    assert error(worse.model, full, batches[0]) > 0.01


def test_alternating_finds_what_its_weights_hide() -> None:
    """Channel 0 has tiny weights, but with other ones it explains everything: only re-fitting shows that."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, 4, generator=g, dtype=torch.float64)
    y = 3 * x[:, :, :1]
    weight = torch.tensor([1e-3, 0.5, 0.4, 0.3], dtype=torch.float64).view(1, 1, 4, 1)
    equations = NormalEquations(1, 4, 1)
    equations.add(x, y)
    keep = alternate([(equations, weight, torch.zeros(1, 1), torch.arange(4).unsqueeze(1))], 4, 1)
    assert keep.tolist() == [True, False, False, False]


def _half_plan(graph: prunus.ChannelGraph) -> PruningPlan:
    return PruningPlan({g.name: torch.arange(g.num_channels) % 2 == 0 for g in graph.prunable}, graph.cost())


@pytest.mark.parametrize("name", ["Plain", "Residual", "Flattened", "Dense"])
@pytest.mark.parametrize("selection", ["lasso", "lasso_alternating", "max_response"])
def test_the_complete_method_keeps_the_plans_widths_and_loads(name: str, selection: str, tmp_path: object) -> None:
    torch.manual_seed(0)
    batches = data(2, 40, channels=1, size=8)
    full = settled(NETS[name](), batches)
    graph = prunus.trace(full, batches[0][:1])
    plan = _half_plan(graph)
    before = {n: p.clone() for n, p in full.state_dict().items()}
    found = prune_channels(full, graph, plan, batches, selection)
    assert found.plan.counts() == plan.counts()
    assert prunus.trace(found.model, batches[0][:1]).cost().macs == found.plan.predicted.macs
    assert all(torch.equal(before[n], p) for n, p in full.state_dict().items())
    file = f"{tmp_path}/small.prunus"
    prunus.save(found.model, found.record, file)
    with torch.no_grad():
        assert torch.equal(prunus.load(file, NETS[name]().double()).eval()(batches[0]), found.model(batches[0]))
    bare = prune_channels(full, graph, plan, batches, selection, refit=False)
    held = data(1, 64, 1, 8)[0].flip(3)
    assert error(found.model, full, held) < 0.5 * error(bare.model, full, held)


def test_without_refit_it_is_a_plain_removal() -> None:
    torch.manual_seed(0)
    batches = data()
    full = settled(Block(), batches)
    graph = prunus.trace(full, batches[0][:1])
    bare = prune_channels(full, graph, _half_plan(graph), batches, "max_response", refit=False)
    expected, _ = prunus.remove(full, graph, bare.plan)
    with torch.no_grad():
        assert torch.equal(bare.model(batches[0]), expected(batches[0]))
    norms = full.middle.weight.detach().abs().sum((1, 2, 3))
    assert set(bare.plan.keep["middle"].nonzero().squeeze(1).tolist()) == set(norms.topk(5).indices.tolist())


def test_scores_select_like_a_plan_and_reconstruction_of_all_layers_follows_it() -> None:
    """With the plan's own channels, the complete method is removal and reconstruction."""
    torch.manual_seed(0)
    batches = data()
    full = settled(Block(), batches)
    graph = prunus.trace(full, batches[0][:1])
    plan = _half_plan(graph)
    scores = Scores({name: keep.double() for name, keep in plan.keep.items()}, "mine")
    found = prune_channels(full, graph, plan, batches, scores, points=EVERY, ridge=0.0)
    small, record = half(full, batches[0])
    reconstruct(small, full, record, batches, points=EVERY, ridge=0.0)
    with torch.no_grad():
        torch.testing.assert_close(found.model(batches[0]), small(batches[0]), rtol=1e-6, atol=1e-8)


def test_refusals() -> None:
    full = Block().double().eval()
    batches = data()
    graph = prunus.trace(full, batches[0][:1])
    plan = _half_plan(graph)
    with pytest.raises(UnknownName, match=r"unknown selection .* 'laso': did you mean lasso"):
        prune_channels(full, graph, plan, batches, "laso")
    with pytest.raises(UnknownName, match=r"unknown selection .* 'taylor'"):
        prune_channels(full, graph, plan, batches, "taylor")
    whole = PruningPlan({g.name: torch.ones(g.num_channels, dtype=torch.bool) for g in graph.prunable}, graph.cost())
    with pytest.raises(NothingPruned, match="the plan removes no channel"):
        prune_channels(full, graph, whole, batches)
