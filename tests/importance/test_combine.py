"""Putting scores together: over members, over a layer, over criteria, over steps; against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import EvidenceError, UnknownName
from prunus.importance import aggregate, kept, layer_adaptive, moving_average, normalise, weighted_sum
from prunus.types import PruningPlan, Scores
from small_nets import batches, build, images


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# -- functions


@pytest.mark.parametrize(("how", "expected"), [("mean", [2, 2]), ("sum", [4, 4]), ("max", [3, 4]), ("l2", [10**0.5, 4])])
def test_aggregation_over_members(how: str, expected: list[float]) -> None:
    found = aggregate([values(1, 4), values(3, 0)], how)
    assert found is not None
    assert found.tolist() == pytest.approx(expected)


def test_no_member_gives_no_score() -> None:
    assert aggregate([], "mean") is None
    with pytest.raises(UnknownName, match="unknown aggregation over members 'median': did you mean mean"):
        aggregate([values(1)], "median")


@pytest.mark.parametrize(
    ("how", "expected"),
    [("none", [3, -4, 3]), ("mean", [0.9, -1.2, 0.9]), ("max", [0.75, -1, 0.75]), ("rank", [2.5 / 3, 1 / 3, 2.5 / 3])],
)
def test_normalisation(how: str, expected: list[float]) -> None:
    assert normalise(values(3, -4, 3), how).tolist() == pytest.approx(expected)


def test_published_normalisation() -> None:
    """METHODS A2.7: layers of [3, 4] and [.3, .4] come to the same [.6, .8]."""
    assert normalise(values(3, 4), "l2").tolist() == pytest.approx([0.6, 0.8])
    assert normalise(values(0.3, 0.4), "l2").tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("how", ["mean", "max", "l2"])
def test_scores_of_zero_stay_zero(how: str) -> None:
    assert normalise(values(0, 0), how).tolist() == [0, 0]
    assert layer_adaptive(values(0, 0)).tolist() == [0, 0]


def test_unknown_normalisation() -> None:
    with pytest.raises(UnknownName, match="unknown normalisation 'l3': did you mean l2"):
        normalise(values(1), "l3")


def test_layer_adaptive_by_hand() -> None:
    """Squares 1, 4, 4, 9: each over the sum of those not smaller, 18, 17, 17, 9; the order of the channels doesn't matter."""
    assert layer_adaptive(values(1, 2, 2, 3)).tolist() == pytest.approx([1 / 18, 4 / 17, 4 / 17, 1])
    assert layer_adaptive(values(3, 2, 1, 2)).tolist() == pytest.approx([1, 4 / 17, 1 / 18, 4 / 17])
    assert torch.equal(layer_adaptive(values(1, 2, 3)), layer_adaptive(values(10, 20, 30)))


def scores_of(criterion: str, comparable: bool = False, **by_group: Tensor) -> Scores:
    return Scores(by_group, criterion, comparable)


def test_weighted_sum_by_hand() -> None:
    """Means are 2 and 20: 1/2 + 3 * 30/20 = 5 and 3/2 + 3 * 10/20 = 3. A group that one term lacks is left out."""
    one, two = scores_of("one", a=values(1, 3), b=values(1)), scores_of("two", a=values(30, 10))
    found = weighted_sum([(one, 1), (two, 3)])
    assert {name: v.tolist() for name, v in found.by_group.items()} == {"a": [5, 3]}
    assert found.criterion == "1*one + 3*two"
    assert found.comparable
    plain = weighted_sum([(one, 1), (two, 3)], "none")
    assert plain.by_group["a"].tolist() == [91, 33]
    assert not plain.comparable


def test_sums_that_make_no_sense() -> None:
    with pytest.raises(EvidenceError, match="a weighted sum needs scores of one criterion at least"):
        weighted_sum([])
    with pytest.raises(EvidenceError, match="scores of group `a` are for 2 and 3 channels: score one network"):
        weighted_sum([(scores_of("one", a=values(1, 2)), 1), (scores_of("two", a=values(1, 2, 3)), 1)])


def test_moving_average_over_a_removal() -> None:
    """Previous (1, 2, 3) loses its middle channel: 0.9 * (1, 3) + 0.1 * (11, 13) = (2, 4); a new group keeps its score."""
    plan = PruningPlan({"a": torch.tensor([True, False, True])}, prunus.Cost(0, 0, 0))
    left = kept(scores_of("taylor", True, a=values(1, 2, 3)), plan)
    found = moving_average(scores_of("taylor", True, a=values(11, 13), b=values(5)), left)
    assert found.by_group["a"].tolist() == pytest.approx([2, 4])
    assert found.by_group["b"].tolist() == [5]
    assert found.comparable


def test_moving_averages_that_make_no_sense() -> None:
    new, old = scores_of("taylor", a=values(1, 2)), scores_of("taylor", a=values(1, 2, 3))
    with pytest.raises(EvidenceError, match=r"group `a` are for 3 and 2 channels: .* take kept\(scores, plan\) after a removal"):
        moving_average(new, old)
    with pytest.raises(EvidenceError, match="scores of taylor can't go on from scores of l1"):
        moving_average(new, scores_of("l1", a=values(1, 2)))
    with pytest.raises(EvidenceError, match="momentum=1 must be at least 0 and below 1"):
        moving_average(new, new, 1)


# -- as options of `score`


@pytest.fixture(scope="module")
def plain() -> tuple[nn.Module, prunus.ChannelGraph]:
    model = build("Plain")
    return model, prunus.trace(model, images())


@pytest.mark.parametrize("how", ["mean", "max", "l2", "rank"])
def test_normalisation_as_an_option(plain: tuple[nn.Module, prunus.ChannelGraph], how: str) -> None:
    raw = prunus.score(*plain, "l1")
    found = prunus.score(*plain, "l1", normalisation=how)
    assert all(torch.equal(found.by_group[name], normalise(v, how)) for name, v in raw.by_group.items())
    assert found.comparable
    assert not raw.comparable


def test_layer_adaptive_as_an_option_comes_before_the_normalisation(plain: tuple[nn.Module, prunus.ChannelGraph]) -> None:
    raw = prunus.score(*plain, "l1")
    found = prunus.score(*plain, "l1", layer_adaptive=True, normalisation="max")
    assert all(torch.equal(found.by_group[name], layer_adaptive(v)) for name, v in raw.by_group.items())
    assert found.comparable


def test_members_as_an_option() -> None:
    model = build("Residual")
    graph = prunus.trace(model, images())
    writers = [model.stem[0].weight, model.outer[0][0].weight, model.outer[1][0].weight]
    sums = torch.stack([w.detach().double().abs().flatten(1).sum(1) for w in writers])
    for how, expected in (("mean", sums.mean(0)), ("sum", sums.sum(0)), ("max", sums.amax(0)), ("l2", sums.norm(dim=0))):
        found = prunus.score(model, graph, "l1", members=how).by_group["stem.0"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_the_macs_penalty_by_hand() -> None:
    """A 3x3 layer from 1 to 4 maps of 6x6 and a linear one to 5 classes: a channel frees 36 * 9 + 36 * 5 = 504 multiply-adds."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    graph = prunus.trace(model, torch.randn(1, 1, 8, 8))
    raw = prunus.score(model, graph, "l1", normalisation="l2").by_group["0"]
    found = prunus.score(model, graph, "l1", normalisation="l2", macs_penalty=0.001).by_group["0"]
    torch.testing.assert_close(found, raw - 0.001 * 504e-6, rtol=1e-12, atol=0)
    assert not torch.equal(found, raw)


def test_a_sum_of_criteria_by_name(plain: tuple[nn.Module, prunus.ChannelGraph]) -> None:
    data = batches(2)
    terms = [(prunus.score(*plain, "l1"), 1.0), (prunus.score(*plain, "taylor", data), 0.5)]
    for how in ("mean", "rank"):
        expected = weighted_sum(terms, how)
        found = prunus.score(*plain, "l1 + 0.5*taylor", data, normalisation=how)
        for name, v in expected.by_group.items():
            torch.testing.assert_close(found.by_group[name], v, rtol=1e-12, atol=0)
    assert found.criterion == "l1 + 0.5*taylor"
    assert found.comparable
    assert not prunus.score(*plain, "l1 + 0.5*taylor", data, normalisation="none").comparable


def test_every_term_of_a_sum_sees_all_of_data_that_can_be_read_once(plain: tuple[nn.Module, prunus.ChannelGraph]) -> None:
    model, graph = plain
    data = batches(2)
    expected = prunus.score(model, graph, "taylor + activation_mean", data)
    found = prunus.score(model, graph, "taylor + activation_mean", iter(data))
    for name in expected.by_group:
        assert torch.equal(found.by_group[name], expected.by_group[name])


def test_options_of_a_sum_go_to_the_terms_that_have_them(plain: tuple[nn.Module, prunus.ChannelGraph]) -> None:
    data = batches(2)
    terms = [(prunus.score(*plain, "l1"), 1.0), (prunus.score(*plain, "taylor", data, per_example=True), 1.0)]
    found = prunus.score(*plain, "l1+taylor", data, per_example=True).by_group
    for name, v in weighted_sum(terms).by_group.items():
        torch.testing.assert_close(found[name], v, rtol=1e-12, atol=0)
    with pytest.raises(EvidenceError, match=r"criterion l1 \+ taylor needs data"):
        prunus.score(*plain, "l1+taylor")


def test_scores_remember_the_step_before(plain: tuple[nn.Module, prunus.ChannelGraph]) -> None:
    first, second = (prunus.score(*plain, "taylor", [batch]) for batch in batches(2))
    found = prunus.score(*plain, "taylor", [batches(2)[1]], previous=first, momentum=0.75)
    for name, v in found.by_group.items():
        torch.testing.assert_close(v, 0.75 * first.by_group[name] + 0.25 * second.by_group[name], rtol=1e-12, atol=0)
