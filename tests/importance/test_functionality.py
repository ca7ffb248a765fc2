"""Scores inside clusters of preferred patterns: hand figures, and METHODS' network of four filters and their copies."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import EvidenceError, UnknownName
from prunus.graph.group_view import GroupView
from prunus.importance.evidence import DataRun, Evidence
from prunus.importance.functionality import (
    coordinates,
    functionality,
    pattern_clusters,
    preference_clusters,
    preferences,
    response_profiles,
    scores_in_clusters,
)
from prunus.importance.functionality_patterns import preferred_patterns
from small_nets import batches, build, images

DOUBLE = torch.float64


# -- the score


def test_scores_by_hand() -> None:
    """A cluster of three (contributions 3, 1, 2), and two channels alone."""
    found = scores_in_clusters(torch.tensor([3.0, 5, 1, 2, 4]), torch.tensor([0, 1, 0, 0, 2]))
    assert found.dtype == DOUBLE
    shares, contributions = [1, 1, 1 / 3, 2 / 3, 1], [0.6, 1, 0.2, 0.4, 0.8]
    assert found.tolist() == pytest.approx([s + 1e-9 * c for s, c in zip(shares, contributions, strict=True)], abs=1e-14)


def test_of_equal_contributions_the_first_goes_first() -> None:
    assert scores_in_clusters(torch.zeros(4), torch.tensor([0, 1, 1, 0])).tolist() == [0.5, 0.5, 1, 1]


@pytest.mark.parametrize("ratio", [0.2, 0.25, 0.5, 0.6, 0.75, 0.9])
def test_any_pruning_ratio_takes_the_lowest_share_of_each_cluster(ratio: float) -> None:
    """METHODS E5 (4): the floor(r * m) lowest of every cluster of m, never a singleton."""
    generator = torch.Generator().manual_seed(2)
    clusters = torch.tensor([0] * 5 + [1] * 4 + [2] * 1 + [3] * 9)[torch.randperm(19, generator=generator)]
    contributions = torch.rand(19, generator=generator)
    removed = scores_in_clusters(contributions, clusters) <= ratio + 2e-9
    for cluster, size in enumerate((5, 4, 1, 9)):
        inside = clusters == cluster
        expected = int(ratio * size + 1e-9)
        assert int(removed[inside].sum()) == expected
        if expected:
            assert contributions[inside & removed].max() < contributions[inside & ~removed].min()


def test_the_strongest_and_the_lonely_outrank_whatever_is_redundant() -> None:
    clusters = torch.tensor([0] * 500 + [1])
    contributions = torch.cat([torch.linspace(1, 2, 500), torch.tensor([1e-6])])  # alone, and of hardly any contribution
    scores = scores_in_clusters(contributions, clusters)
    assert scores.argsort()[-2:].tolist() == [500, 499]
    assert float(scores[500] - scores[498]) > 1e-3


# -- clusters


def blobs(sizes: tuple[int, ...], spread: float = 0.05) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(len(sizes), 12).repeat_interleave(torch.tensor(sizes), dim=0)
    lengths = 1 + 9 * torch.rand(len(centres), 1, generator=generator)  # directions count, lengths don't
    return (centres + spread * torch.randn(centres.shape, generator=generator)) * lengths


def test_silhouettes_find_the_number_of_clusters() -> None:
    found = pattern_clusters(blobs((3, 5, 2, 4)).reshape(14, 3, 2, 2))
    assert found.tolist() == [0] * 3 + [1] * 5 + [2] * 2 + [3] * 4


def test_a_given_number_of_clusters() -> None:
    assert len(pattern_clusters(blobs((3, 5, 2, 4)), 2).unique()) == 2
    assert pattern_clusters(blobs((3, 5)), 1).tolist() == [0] * 8
    assert sorted(pattern_clusters(blobs((3, 2), 0.5), 99).tolist()) == [0, 1, 2, 3, 4]


def test_opposite_patterns_are_not_alike() -> None:
    pattern = torch.tensor([[1.0, 2, 3]])
    assert pattern_clusters(torch.cat([pattern, -pattern, 2 * pattern, -3 * pattern])).tolist() == [0, 1, 0, 1]


def test_without_structure_every_pattern_is_its_own() -> None:
    assert pattern_clusters(torch.eye(6)).tolist() == [0, 1, 2, 3, 4, 5]
    assert pattern_clusters(torch.eye(2)).tolist() == [0, 1]


def test_all_alike_is_one_cluster() -> None:
    assert pattern_clusters(torch.ones(5, 7) * torch.arange(1, 6).unsqueeze(1)).tolist() == [0] * 5
    assert pattern_clusters(torch.ones(1, 7)).tolist() == [0]


def test_silent_channels_are_a_cluster_beside_the_others() -> None:
    patterns = blobs((3, 4, 3))
    patterns[[0, 5]] = 0
    assert pattern_clusters(patterns).tolist() == [0, 1, 1, 2, 2, 0, 2, 3, 3, 3]
    assert pattern_clusters(torch.zeros(3, 4)).tolist() == [0, 0, 0]


def test_clusters_follow_permuted_channels() -> None:
    patterns = torch.randn(20, 6, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    before, after = pattern_clusters(patterns)[order], pattern_clusters(patterns[order])
    assert len(set(zip(before.tolist(), after.tolist(), strict=True))) == len(before.unique()) == len(after.unique()) > 1


def test_coordinates_keep_all_angles_and_lengths() -> None:
    patterns = torch.randn(5, 3, 8, 8, dtype=DOUBLE)
    found = coordinates(patterns)
    assert found.shape == (5, 5)
    torch.testing.assert_close(found @ found.T, patterns.flatten(1) @ patterns.flatten(1).T)
    assert torch.equal(coordinates(patterns[:, 0, 0, :4]), patterns[:, 0, 0, :4])


# -- the criterion


class Copies(nn.Module):
    """Four edges and spots, each twice; what reads them differs, so that the copies contribute differently."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 6, 3, padding=1)
        self.classifier = nn.Linear(6, 10)
        across = torch.tensor([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]])
        spot = torch.full((3, 3), -0.25)
        spot[1, 1] = 2
        with torch.no_grad():
            filters = torch.stack([across, across.T, spot, -across])
            self.one.weight.copy_(torch.cat([filters, filters]).unsqueeze(1))
            self.one.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))


@pytest.mark.parametrize("by", ["responses", "images"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_four_filters_and_their_copies(seed: int, by: str) -> None:
    """METHODS E5: 4 clusters, and half the channels removed is exactly one of each pair: the one that contributes less."""
    torch.manual_seed(seed)
    model, data = Copies().eval(), batches(2)
    graph = prunus.trace(model, images())
    found = preferences(model, graph, DataRun(data, seed=seed))["one"]
    assert preference_clusters(found, by=by, seed=seed).tolist() == [0, 1, 2, 3] * 2
    scores = prunus.score(model, graph, "functionality", data, seed=seed, by=by)
    plan = prunus.allocate(graph.freeze({"two": "this test is about the first layer"}), scores, prunus.Budget(channels=0.5))
    keep = plan.keep["one"]
    assert (keep[:4] ^ keep[4:]).tolist() == [True] * 4
    contributions = prunus.score(model, graph, "gradient_mean", data).by_group["one"]
    assert keep[:4].tolist() == (contributions[:4] > contributions[4:]).tolist()


def test_the_score_is_made_of_patterns_and_gradient_means() -> None:
    model, data = build("Plain"), batches(2)
    graph = prunus.trace(model, images())
    found = {by: prunus.score(model, graph, "functionality", data, seed=5, by=by).by_group for by in ("responses", "images")}
    contributions = prunus.score(model, graph, "gradient_mean", data).by_group
    patterns = preferred_patterns(model, graph, data[0][0], seed=5)
    for name, values in found["images"].items():
        expected = scores_in_clusters(contributions[name], pattern_clusters(patterns[name], seed=5))
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
    x = data[0][0]
    with torch.no_grad():  # what the second layer reads
        maps = F.max_pool2d(model.one(x.mean() + x.std(correction=0) * patterns["one.0"]), 2)
    profiles = response_profiles(maps.mean((2, 3)), torch.ones(16, dtype=torch.bool))
    expected = scores_in_clusters(contributions["one.0"], pattern_clusters(profiles, seed=5))
    torch.testing.assert_close(found["responses"]["one.0"], expected, rtol=0, atol=1e-12)
    assert not torch.allclose(found["responses"]["one.0"], found["images"]["one.0"])


def test_profiles_by_hand() -> None:
    """Columns are centred and scaled over the patterns of the first three channels; the fourth sleeps, the third is steady."""
    responses = torch.tensor([[4.0, 1, 7, 0], [1, 1, 7, 0], [1, 4, 7, 0], [9, 9, 7, 0]])
    found = response_profiles(responses, torch.tensor([True, True, True, False]))
    high, low = 2**0.5, -(0.5**0.5)
    expected = torch.tensor([[high, low, 0, 0], [low, low, 0, 0], [low, high, 0, 0], [0, 0, 0, 0]], dtype=DOUBLE)
    torch.testing.assert_close(found, expected)
    assert response_profiles(responses, torch.zeros(4, dtype=torch.bool)).tolist() == [[0] * 4] * 4


def test_patterns_that_excite_all_alike_are_one_cluster_beside_the_silent() -> None:
    responses = torch.tensor([[3.0, 2, 0]]).expand(3, 3) * torch.tensor([[1], [1 + 1e-7], [1]])
    found = response_profiles(responses, torch.tensor([True, True, False]))
    assert pattern_clusters(found).tolist() == [0, 0, 1]


def test_the_option_clusters() -> None:
    model, data = build("Plain"), batches(1)
    graph = prunus.trace(model, images())
    one = prunus.score(model, graph, "functionality", data, clusters=1).by_group["one.0"]
    contributions = prunus.score(model, graph, "gradient_mean", data).by_group["one.0"]
    assert one.argsort().tolist() == contributions.argsort().tolist()
    assert one.sort().values.tolist() == pytest.approx([(n + 1) / 16 for n in range(16)], abs=2e-9)
    auto = prunus.score(model, graph, "functionality", data, clusters="".join(["au", "to"])).by_group["one.0"]
    assert torch.equal(auto, prunus.score(model, graph, "functionality", data).by_group["one.0"])
    options = prunus.CRITERIA["functionality"].options
    assert {name: options[name] for name in ("clusters", "by")} == {
        "clusters": "auto, or a whole number from 1 up",
        "by": "responses, images",
    }
    for wrong in (0, 2.5, "many", True, [1]):
        with pytest.raises(UnknownName, match=r"functionality\.clusters=.* is not auto, or a whole number from 1 up"):
            prunus.score(model, graph, "functionality", data, clusters=wrong)


def test_groups_without_evidence_have_no_score() -> None:
    model = build("Plain")
    group = prunus.trace(model, images()).prunable[0]
    assert functionality(GroupView(group, {}), Evidence()) is None


def test_evidence_is_small() -> None:
    """Patterns of 64 numbers are kept in as many coordinates as there are channels, behind contribution and responses."""
    model = build("Plain")
    graph = prunus.trace(model, images())
    run = DataRun(batches(1))
    assert {n: tuple(v.shape) for n, v in preferences(model, graph, run).items()} == {
        "one.0": (16, 1 + 16 + 16),
        "two.0": (32, 1 + 32 + 32),
        "three.0": (32, 1 + 32 + 32),
    }


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sklearn", "sklearn.cluster", "sklearn.metrics"):
        monkeypatch.setitem(sys.modules, module, None)
    for clusters in ("auto", 3):
        with pytest.raises(EvidenceError, match=r"needs scikit-learn: pip install 'prunus\[all\]'"):
            pattern_clusters(blobs((3, 3)), clusters)


def test_inputs_that_are_no_images() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 12)
            self.hidden, self.out = nn.Linear(12, 14), nn.Linear(14, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.hidden(self.words(x).mean(1))))

    model, words = Words().eval(), torch.randint(0, 9, (4, 5))
    graph = prunus.trace(model, words)
    with pytest.raises(EvidenceError, match=r"floating-point input \(images, channels, \.\.\.\).* is \(4, 5\) of torch.int64"):
        prunus.score(model, graph, "functionality", [(words, torch.zeros(4, dtype=torch.int64))])
