"""Hand-computed cases of the methods' literature that belong to no single criterion's file."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.importance.evidence import DataRun
from prunus.importance.lasso import entries
from prunus.importance.oracle_batches import Ablation
from prunus.importance.oracle_damage import damages_of
from prunus.types import PruningPlan

DOUBLE = torch.float64


# -- METHODS A5.7: the search of AOFP on exact expectations


ENERGIES = (0.0, 0.004, 0.5, 0.496)
THRESHOLD = 0.01


class Energies(nn.Module):
    """Four orthogonal channels, each adding its energy to the next layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.next = nn.Linear(1, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.double()
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor(ENERGIES, dtype=DOUBLE).sqrt().unsqueeze(1))
            self.next.weight.copy_(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.next(self.hidden(x))


def expected_damage(model: nn.Module, among: list[int]) -> dict[int, float]:
    """T[f]: mean damage of all sets of half of ``among`` that hold f."""
    sets = list(combinations(among, len(among) // 2))
    masks = torch.zeros(len(sets), 4, dtype=torch.bool)
    for row, chosen in enumerate(sets):
        masks[row, list(chosen)] = True
    data = [(torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, 4, dtype=DOUBLE))]
    loss = nn.functional.mse_loss
    ablation = Ablation(model, prunus.trace(model, data[0][0]), DataRun(data, lambda output, batch: loss(output, batch[1])))
    with ablation() as batches:
        damages = damages_of(ablation, next(batches), "hidden", masks)
    return {f: float(damages[masks[:, f]].mean()) for f in among}


def test_the_search_of_aofp_by_its_damages() -> None:
    """(.3333, .3360, .6667, .6640) -> {0, 1}; (0, .004) -> prune 0; {1, 2, 3} -> prune 1; {2, 3} fails for ever."""
    model = Energies()
    alive, among = [0, 1, 2, 3], [0, 1, 2, 3]
    trace: list[tuple[float, ...]] = []
    for _ in range(6):
        damage = expected_damage(model, among)
        trace.append(tuple(damage.values()))
        lowest = sorted(among, key=lambda f: damage[f])[: len(among) // 2]
        if max(damage[f] for f in lowest) < THRESHOLD:
            with torch.no_grad():
                model.hidden.weight[lowest] = 0  # the base mask: what is pruned adds to nothing any more
            alive = [f for f in alive if f not in lowest]
            among = alive
        else:
            among = lowest if len(lowest) > 1 else alive
    assert alive == [2, 3]
    alone = (0.5 / 0.996, 0.496 / 0.996)
    expected = [(0.3333, 0.3360, 0.6667, 0.6640), (0, 0.004), (0.004, 0.5, 0.496), alone, alone, alone]
    assert [len(row) for row in trace] == [4, 2, 3, 2, 2, 2]
    for found, row in zip(trace, expected, strict=True):
        assert found == pytest.approx(row, abs=5e-5)


# -- METHODS C.7: norms of different layers say nothing about each other


def two_paths(first: float, second: float) -> nn.Module:
    """Two equal channels: each is W1 times the input, and W2 reads it."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(first)
        model[1].weight.fill_(second)
    return model


def test_rescaled_layers_are_one_function_with_other_norms() -> None:
    """(W1, W2) = (1, 4) has the penalty 5 a channel; (2, 2) is the same product with penalty 4: l1 differs, taylor doesn't."""
    batch = (torch.ones(1, 1), torch.zeros(1, 1))
    found: list[tuple[Any, ...]] = []
    for model in (two_paths(1, 4), two_paths(2, 2)):
        graph = prunus.trace(model, batch[0])
        penalty = sum(float(p.detach().abs().sum()) for p in model.parameters()) / 2
        norm = prunus.score(model, graph, "l1").by_group["0"].tolist()
        gate = prunus.score(model, graph, "taylor", [batch], lambda output, _: output.sum()).by_group["0"].tolist()
        found.append((penalty, norm, gate, float(model(batch[0]).detach())))
    assert found == [(5, [1, 1], [16, 16], 8), (4, [2, 2], [16, 16], 8)]


# -- METHODS D.7: Lasso chooses, least squares puts right


def test_what_the_lasso_shrinks_least_squares_restores() -> None:
    """z1 = (1, 0), z2 = (0, 1), y = (3, 1): at a penalty of .5 channel 2 is out and b1 = 2; least squares gives it 3."""
    from sklearn.linear_model import Lasso

    z, y = torch.eye(2, dtype=DOUBLE), torch.tensor([3.0, 1.0], dtype=DOUBLE)
    for penalty, expected in ((0.25, [2.5, 0.5]), (0.5, [2.0, 0.0])):
        fitted = Lasso(alpha=penalty, fit_intercept=False, tol=1e-12).fit(z.numpy(), y.numpy()).coef_
        assert fitted.tolist() == pytest.approx(expected)
    kept = entries(z.T @ z, z.T @ y, 2) > 0.5 + 1e-9
    assert kept.tolist() == [True, False]
    assert torch.linalg.lstsq(z[:, kept], y.unsqueeze(1)).solution.flatten().tolist() == pytest.approx([3])


def test_a_duplicate_is_explained_by_the_one_that_stays() -> None:
    z = torch.tensor([[1.0, 1, 0], [0, 0, 1], [2, 2, 1]], dtype=DOUBLE)
    y = z.sum(1)
    kept = entries(z.T @ z, z.T @ y, 3) > 0
    assert int(kept.sum()) == 2 and bool(kept[2])
    refitted = torch.linalg.lstsq(z[:, kept], y.unsqueeze(1))
    assert float((z[:, kept] @ refitted.solution - y.unsqueeze(1)).abs().max()) == pytest.approx(0, abs=1e-12)


# -- METHODS A3, E4: what a removal by scores leaves


def test_filters_one_and_three_of_five_go_and_the_others_stay_in_order() -> None:
    """T1: indices don't shift while removing. T2: with maps of 2 x 2, channel 0 owns columns 0 to 3 of the next layer."""
    model = nn.Sequential(nn.Conv2d(1, 5, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2, bias=False))
    filters = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    with torch.no_grad():
        model[0].weight.copy_(filters[:, None, None, None])
        model[3].weight.copy_(torch.arange(20.0) // 4 + torch.zeros(2, 20))  # every column holds its channel's number
    result = prunus.prune(model, torch.ones(2, 1, 2, 2), prunus.Budget(channels=0.6), "l1")
    assert result.model[0].weight.flatten().tolist() == [5, 4, 3]
    assert result.model[3].weight.tolist() == [[0.0] * 4 + [2.0] * 4 + [4.0] * 4] * 2


def test_apoz_prunes_the_second_map() -> None:
    """E4: maps (0, 0, 1, 2) and (0, 3, 0, 0) have .5 and .75 of zeros, and the one with more goes."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2)[:, :, None, None])
    maps = torch.tensor([[[0.0, 0], [1, 2]], [[0, 3], [0, 0]]]).unsqueeze(0)
    graph = prunus.trace(model, maps)
    scores = prunus.score(model, graph, "apoz", [maps])
    assert scores.by_group["0"].tolist() == pytest.approx([1 - 0.5, 1 - 0.75])
    plan: PruningPlan = prunus.allocate(graph, scores, prunus.Budget(channels=0.5))
    assert plan.keep["0"].tolist() == [True, False]
