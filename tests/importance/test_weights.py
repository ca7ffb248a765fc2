"""l1, l2, bn_scale and random against sums written out by hand on the raw tensors, in every layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import NothingPruned, PrunusWarning
from prunus.importance.weights import summed_distances
from prunus.types import PruningPlan
from small_nets import build, images

ORDERS = {"l1": 1, "l2": 2}
pytestmark = pytest.mark.filterwarnings("ignore:criterion bn_scale. .* gammas:prunus.PrunusWarning")


def norms(filters: list[Tensor], order: int) -> Tensor:
    """Norm of every filter, each given with its channel first."""
    return torch.tensor([float(sum(abs(v) ** order for v in f.flatten().tolist())) ** (1 / order) for f in filters])


def scores(model: nn.Module, criterion: str) -> dict[str, Tensor]:
    return dict(prunus.score(model, prunus.trace(model, images()), criterion).by_group)


def test_hand_computed_filters() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, (1, 2), bias=True), nn.Flatten(), nn.Linear(2 * 8 * 7, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[[3.0, -4.0]]], [[[-1.0, 0.5]]]]))
        model[0].bias.copy_(torch.tensor([100.0, 0.0]))  # biases are no part of the norm
    assert scores(model, "l1")["0"].tolist() == [7.0, 1.5]
    assert scores(model, "l2")["0"].tolist() == pytest.approx([5.0, 1.25**0.5])


@pytest.mark.parametrize("criterion", ORDERS)
def test_plain_layers(criterion: str) -> None:
    model = build("Plain")
    found = scores(model, criterion)
    for name in ("one", "two", "three"):
        torch.testing.assert_close(
            found[f"{name}.0"].float(), norms(list(model.get_submodule(name)[0].weight), ORDERS[criterion])
        )


@pytest.mark.parametrize("criterion", ORDERS)
def test_a_group_with_several_writers_is_their_mean(criterion: str) -> None:
    model = build("Residual")
    writers = [model.stem[0].weight, model.outer[0][0].weight, model.outer[1][0].weight]
    expected = sum(norms(list(w), ORDERS[criterion]) for w in writers) / 3
    torch.testing.assert_close(scores(model, criterion)["stem.0"].float(), expected)


@pytest.mark.parametrize("criterion", ORDERS)
def test_a_flattened_channel_is_scored_by_its_filter_alone(criterion: str) -> None:
    model = build("Flattened")
    found = scores(model, criterion)
    torch.testing.assert_close(found["conv"].float(), norms(list(model.conv.weight), ORDERS[criterion]))
    torch.testing.assert_close(found["hidden"].float(), norms(list(model.hidden.weight), ORDERS[criterion]))


@pytest.mark.parametrize("criterion", ORDERS)
def test_transposed_and_grouped_layouts(criterion: str) -> None:
    """Four convolution groups share their slots: channel c owns filters c, c + 4, c + 8 and c + 12."""
    model = build("Layouts")
    found = scores(model, criterion)
    transposed, grouped = model.transposed.weight.movedim(1, 0), model.grouped.weight
    for name, weight in (("transposed", transposed), ("grouped", grouped)):
        expected = norms([torch.stack([weight[c + 4 * g] for g in range(4)]) for c in range(4)], ORDERS[criterion])
        torch.testing.assert_close(found[name].float(), expected)


def test_bn_scale_is_the_absolute_gamma() -> None:
    model = build("Plain")
    with torch.no_grad():
        model.one[1].weight.copy_(torch.linspace(-1, 1, 16))
        model.one[1].bias.fill_(50)
    torch.testing.assert_close(scores(model, "bn_scale")["one.0"].float(), torch.linspace(-1, 1, 16).abs())


def test_bn_scale_takes_the_mean_over_all_norms_of_a_group() -> None:
    model = build("Residual")
    gammas = [model.stem[1].weight, model.outer[0][1].weight, model.outer[1][1].weight]
    torch.testing.assert_close(scores(model, "bn_scale")["stem.0"].float(), sum(g.abs() for g in gammas) / 3)


def test_bn_scale_ignores_depthwise_weights() -> None:
    """A depthwise kernel scales the group too; only norm layers count."""
    model = build("Dense")
    expected = (model.two[1].weight.abs() + model.depthwise[1].weight[12:24].abs()) / 2
    torch.testing.assert_close(scores(model, "bn_scale")["two.0"].float(), expected)


def test_bn_scale_without_norms_can_score_nothing() -> None:
    model = build("Flattened")
    with pytest.raises(NothingPruned, match="criterion bn_scale can score none of the 2 groups"):
        scores(model, "bn_scale")


def test_bn_scale_warns_of_groups_without_norm() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2)
    )
    with pytest.warns(PrunusWarning, match="bn_scale says nothing about 1 of 2 groups, kept whole: 3"):
        assert set(scores(model, "bn_scale")) == {"0"}


def test_random_differs_between_groups_and_seeds_and_is_uniform() -> None:
    model = build("Plain")
    graph = prunus.trace(model, images())
    first, again, other = (prunus.score(model, graph, "random", seed=s).by_group for s in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["two.0"], first["three.0"])
    assert not torch.equal(first["two.0"], other["two.0"])
    values = torch.cat(list(first.values()))
    assert 0 <= float(values.min()) < 0.1 < 0.9 < float(values.max()) < 1


def test_half_precision_does_not_tie_what_differs() -> None:
    model = build("Plain", torch.bfloat16)
    graph = prunus.trace(model, images(dtype=torch.bfloat16))
    expected = model.two[0].weight.detach().double().abs().flatten(1).sum(1)
    torch.testing.assert_close(prunus.score(model, graph, "l1").by_group["two.0"], expected, rtol=1e-6, atol=0)


# -- greedy counting


def chain(*filters: list[list[float]]) -> nn.Module:
    """Linear layers with these weights, from two inputs, and a classifier."""
    layers: list[nn.Module] = []
    for rows in filters:
        layers.append(nn.Linear(len(rows[0]), len(rows), bias=False))
        layers[-1].weight.data = torch.tensor(rows)
    return nn.Sequential(*layers, nn.Linear(len(filters[-1]), 2))


def test_greedy_and_independent_counting() -> None:
    """METHODS E1: filters A = (5, 1), B = (0, 2) over two inputs, the first removed: independent drops B, greedy drops A."""
    model = chain([[0.1, 0.2], [3.0, 4.0]], [[5.0, 1.0], [0.0, 2.0]])
    graph = prunus.trace(model, torch.ones(1, 2))
    plan = PruningPlan({"0": torch.tensor([False, True])}, graph.cost())
    for criterion in ("l1", "max_response"):
        assert prunus.score(model, graph, criterion).by_group["1"].tolist() == [6, 2]
        assert prunus.score(model, graph, criterion, greedy=True, removed=plan).by_group["1"].tolist() == [1, 2]
    assert prunus.score(model, graph, "l2", greedy=True, removed=plan).by_group["1"].tolist() == [1, 2]
    assert model[1].weight.tolist() == [[5, 1], [0, 2]]


def test_greedy_by_a_share_goes_front_to_back() -> None:
    """Half of each layer counts as removed: input 0 of the second layer, then, by greedy scores (1, 2), input 0 of the third."""
    model = chain([[0.1, 0.2], [3.0, 4.0]], [[5.0, 1.0], [0.0, 2.0]], [[7.0, 0.5], [0.0, 1.0]])
    graph = prunus.trace(model, torch.ones(1, 2))
    assert prunus.score(model, graph, "l1", greedy=0.5).by_group["2"].tolist() == [0.5, 1]
    assert prunus.score(model, graph, "l1", greedy=0.4).by_group["2"].tolist() == [7.5, 1]


def test_greedy_counting_of_flattened_channels() -> None:
    model = build("Flattened")
    graph = prunus.trace(model, images())
    plan = PruningPlan({"conv": torch.arange(12) != 3}, graph.cost())
    rest = [c for c in range(48) if not 12 <= c < 16]
    found = prunus.score(model, graph, "l1", greedy=True, removed=plan).by_group["hidden"]
    torch.testing.assert_close(found.float(), model.hidden.weight.detach()[:, rest].abs().sum(1))


def test_greedy_needs_a_plan_and_a_plan_needs_greedy() -> None:
    model = build("Plain")
    graph = prunus.trace(model, images())
    with pytest.raises(
        prunus.EvidenceError, match=r"removed=plan is for greedy=True: give both, or greedy=0\.3 for the lowest 30 %"
    ):
        prunus.score(model, graph, "l1", greedy=True)
    with pytest.raises(prunus.EvidenceError, match="removed=plan is for greedy=True: give both"):
        prunus.score(model, graph, "l1", removed=PruningPlan({}, graph.cost()))


# -- geometric median


def line(*points: float) -> tuple[nn.Module, prunus.ChannelGraph]:
    """A layer whose filters are these numbers."""
    model = nn.Sequential(nn.Linear(1, len(points), bias=False), nn.ReLU(), nn.Linear(len(points), 2))
    model[0].weight.data = torch.tensor(points, dtype=torch.float32).unsqueeze(1)
    return model, prunus.trace(model, torch.ones(1, 1))


def lowest(scores: Tensor, count: int) -> list[int]:
    return sorted(scores.argsort(stable=True)[:count].tolist())


def test_geometric_median_by_hand() -> None:
    """METHODS E2: 40 % of the filters {0, 1, 2, 4, 10} are {1, 2}, while the norm takes {0, 1}."""
    found = prunus.score(*line(0, 1, 2, 4, 10), "fpgm").by_group["0"]
    assert found.tolist() == [17, 14, 13, 15, 33]
    assert lowest(found, 2) == [1, 2]
    assert lowest(prunus.score(*line(0, 1, 2, 4, 10), "l2").by_group["0"], 2) == [0, 1]


def test_geometric_median_mixed_with_the_norm_by_hand() -> None:
    """METHODS E2: of {0, 1, 2, 4, 7, 12} the norm drops 0, then the distances among the others are (21, 18, 16, 19, 34)."""
    found = prunus.score(*line(0, 1, 2, 4, 7, 12), "fpgm", norm_share=1 / 6).by_group["0"]
    assert found.tolist() == [0, 21, 18, 16, 19, 34]
    assert lowest(found, 2) == [0, 3]
    three = prunus.score(*line(1, 1.5, 2, 4, 7, 12), "fpgm", norm_share=0.5).by_group["0"]  # those by norm keep their order
    assert 0 < three[0] < three[1] < three[2] < three[3:].min()


def test_geometric_median_picks_copies() -> None:
    """METHODS E2.8: a filter of median norm is copied into half of the layer; the lowest six are all copies."""
    model = nn.Sequential(nn.Linear(9, 16, bias=False), nn.ReLU(), nn.Linear(16, 2))
    weight = torch.randn(16, 9)
    weight[8:] = weight[weight[:8].norm(dim=1).argsort()[4]]
    model[0].weight.data = weight
    graph = prunus.trace(model, torch.ones(1, 9))
    copied = {c for c in range(16) if torch.equal(weight[c], weight[8])}
    assert set(lowest(prunus.score(model, graph, "fpgm").by_group["0"], 6)) <= copied
    assert not set(lowest(prunus.score(model, graph, "l2").by_group["0"], 6)) <= copied


@pytest.mark.parametrize("count", [64, 65, 700])
def test_distances_in_blocks_are_exact(count: int) -> None:
    rows = torch.randn(count, 20) + 100  # what all have in common costs no digits
    expected = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    torch.testing.assert_close(summed_distances(rows).double(), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(summed_distances(rows.double()), expected, rtol=1e-10, atol=0)


# -- baselines


def test_max_response_is_l1() -> None:
    model = build("Residual")
    one, two = scores(model, "l1"), scores(model, "max_response")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_first_k_keeps_the_first() -> None:
    found = scores(build("Plain"), "first_k")["one.0"]
    assert found.tolist() == [(16 - c) / 16 for c in range(16)]


def test_next_layer_weight_by_hand() -> None:
    """Columns of the reading layer: |1| + |-3| and |2| + |0.5|; of several readers the mean."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    model[2].weight.data = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])
    assert prunus.score(model, prunus.trace(model, torch.ones(1, 1)), "next_layer_weight").by_group["0"].tolist() == [4, 2.5]
    several = build("Residual")
    readers = [several.inner[0][0].weight, several.inner[1][0].weight, several.classifier.weight]
    expected = sum(norms([w[:, c] for c in range(16)], 1) for w in readers) / 3
    torch.testing.assert_close(scores(several, "next_layer_weight")["stem.0"].float(), expected)


def test_next_layer_weight_of_a_flattened_channel_counts_all_its_columns() -> None:
    model = build("Flattened")
    expected = model.hidden.weight.detach().abs().sum(0).reshape(12, 4).sum(1)
    torch.testing.assert_close(scores(model, "next_layer_weight")["conv"].float(), expected)


# -- assumptions


def test_norms_that_hardly_differ_are_told() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 2))
    flat = model[0].weight.data.flatten(1)
    model[0].weight.data = (flat / flat.abs().sum(1, keepdim=True) * torch.linspace(1, 1.02, 16)[:, None]).reshape(16, 1, 3, 3)
    graph = prunus.trace(model, images())
    text = "criterion l1: filters' norms hardly differ: in 1 of 1 groups their standard deviation is below 1 %.*in 1 the smallest"
    with pytest.warns(PrunusWarning, match=text):
        prunus.score(model, graph, "l1")
    prunus.score(model, graph, "fpgm")  # doesn't rest on norms: warnings are errors here


def sparse(near_zero: int) -> tuple[nn.Module, prunus.ChannelGraph]:
    model = nn.Sequential(nn.Conv2d(1, 200, 3), nn.BatchNorm2d(200), nn.ReLU(), nn.Flatten(), nn.Linear(200 * 36, 2))
    model[1].weight.data[:near_zero] = 0.01
    return model.eval(), prunus.trace(model, images())


@pytest.mark.filterwarnings("error")
def test_gammas_without_sparsity_training_are_told() -> None:
    text = r"criterion bn_scale: 0\.5% of 200 gammas are below a tenth of the large ones \(1\), so the network seems not to"
    with pytest.warns(PrunusWarning, match=text):
        prunus.score(*sparse(1), "bn_scale")
    prunus.score(*sparse(2), "bn_scale")
    prunus.score(*sparse(150), "bn_scale")  # most are near zero


def test_slimming_removes_exactly_what_was_asked() -> None:
    """METHODS E3: gammas .1 to 1.0, 70 %: the threshold rule of the released code keeps 2 of 10; an exact count keeps 3."""
    model = nn.Sequential(nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Flatten(), nn.Linear(360, 2)).eval()
    model[1].weight.data = torch.arange(1, 11) / 10
    graph = prunus.trace(model, images())
    found = prunus.score(model, graph, "bn_scale")
    gammas = found.by_group["0"]
    assert int((gammas > gammas.sort().values[int(10 * 0.7)]).sum()) == 2
    plan = prunus.allocate(graph, found, prunus.Budget(channels=0.3))
    assert plan.keep["0"].nonzero().flatten().tolist() == [7, 8, 9]
