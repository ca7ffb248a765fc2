"""Statistics of activations where a channel is read: by hand, over batches, and against what the modules hand on."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import EvidenceError, PrunusWarning
from prunus.importance.activations import ACTIVATION_KINDS, activation_statistics, histogram_entropy
from prunus.importance.evidence import DataRun
from small_nets import batches, build, images


class Maps(nn.Module):
    """Hands its two input maps through a ReLU to a convolution."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.one, self.act, self.two = nn.Conv2d(2, 2, 1, bias=False), activation, nn.Conv2d(2, 3, 1)
        with torch.no_grad():
            self.one.weight.copy_(torch.eye(2)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.act(self.one(x)))


MAPS = torch.tensor([[[0.0, 0], [1, 2]], [[0, 3], [0, 0]]]).unsqueeze(0)  # METHODS E4: [0,0,1,2] and [0,3,0,0]


def scores(criterion: str, data: list[Tensor], activation: nn.Module | None = None) -> list[float]:
    model = Maps(activation or nn.ReLU())
    graph = prunus.trace(model, data[0])
    return prunus.score(model, graph, criterion, data).by_group["one"].tolist()


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("apoz", [0.5, 0.25]),  # zeros .5 and .75: the second goes first
        ("activation_mean", [0.75, 0.75]),
        ("activation_std", [math.sqrt(5 / 4 - 9 / 16), math.sqrt(9 / 4 - 9 / 16)]),
        ("activation_max", [2.0, 3.0]),
        ("feature_map_rank", [1.0, 1.0]),
    ],
)
def test_by_hand(criterion: str, expected: list[float]) -> None:
    assert scores(criterion, [MAPS]) == pytest.approx(expected, rel=1e-12)


def test_sums_run_over_batches() -> None:
    """A second image of maps [[1, 0], [0, 1]] (rank 2) and zeros."""
    data = [MAPS, torch.stack([torch.eye(2), torch.zeros(2, 2)]).unsqueeze(0)]
    assert scores("apoz", data) == pytest.approx([0.5, 1 / 8])
    assert scores("activation_mean", data) == pytest.approx([5 / 8, 3 / 8])
    assert scores("feature_map_rank", data) == pytest.approx([1.5, 0.5])
    assert scores("activation_max", data) == pytest.approx([2, 3])


def test_entropy_by_hand() -> None:
    """METHODS E4: a constant gives 0, two equal bins ln 2."""
    found = histogram_entropy(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    assert found.tolist() == pytest.approx([0, math.log(2)], abs=1e-12)
    two = torch.stack([torch.ones(2, 2), torch.zeros(2, 2)]).unsqueeze(0)
    one = torch.ones(1, 2, 2, 2)
    assert scores("entropy", [two, one]) == pytest.approx([0, math.log(2)], abs=1e-12)


def test_entropy_is_of_image_means() -> None:
    """Maps that differ from place to place and not from image to image have no entropy."""
    assert scores("entropy", [MAPS, MAPS.flip(3)]) == pytest.approx([0, 0], abs=1e-12)


def test_apoz_says_where_there_is_no_relu() -> None:
    with pytest.warns(PrunusWarning, match=r"1 of 1 groups have none \(one\).*no ReLU right in front"):
        found = scores("apoz", [MAPS + 0.1], nn.LeakyReLU())
    assert found == [1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores("apoz", [MAPS])


def test_a_flattened_channel_has_many_places() -> None:
    """Channel c owns the columns [4c, 4c + 4) of the linear layer."""
    model, (batch,) = build("Flattened", torch.float64), batches(1, dtype=torch.float64)
    graph = prunus.trace(model, images(dtype=torch.float64))
    found = prunus.score(model, graph, "activation_std", [batch]).by_group["conv"]
    with torch.no_grad():
        read = F.adaptive_avg_pool2d(torch.relu(model.conv(batch[0])), 2)
    torch.testing.assert_close(found, read.transpose(0, 1).flatten(1).std(1, correction=0))


def test_every_reader_counts() -> None:
    """The stream of a residual network is read by two blocks and the classifier: 64 + 64 + 1 places of each image."""
    model, (batch,) = build("Residual", torch.float64), batches(1, dtype=torch.float64)
    graph = prunus.trace(model, images(dtype=torch.float64))
    with torch.no_grad():
        first = model.stem(batch[0])
        second = torch.relu(first + model.outer[0](model.inner[0](first)))
        third = torch.relu(second + model.outer[1](model.inner[1](second))).mean((2, 3))
    total = first.sum((0, 2, 3)) + second.sum((0, 2, 3)) + third.sum(0)
    found = prunus.score(model, graph, "activation_mean", [batch]).by_group["stem.0"]
    torch.testing.assert_close(found, total / (len(third) * (64 + 64 + 1)))


@pytest.mark.filterwarnings("ignore:APoZ counts:prunus.PrunusWarning")
def test_one_pass_serves_all_kinds() -> None:
    model, data = build("Dense"), batches(2)
    graph, passes = prunus.trace(model, images()), []
    model.register_forward_hook(lambda *_: passes.append(1))
    found = activation_statistics(list(ACTIVATION_KINDS), model, graph, DataRun(data))
    assert len(passes) == 2
    assert set(found) == set(ACTIVATION_KINDS)
    for kind in ("activation_mean", "entropy"):
        assert found[kind].keys() == activation_statistics([kind], model, graph, DataRun(data))[kind].keys()


def test_groups_without_maps_have_no_rank() -> None:
    model = build("Plain")
    graph = prunus.trace(model, images())
    with pytest.warns(PrunusWarning, match=r"feature_map_rank says nothing about 1 of 3 groups, kept whole: three\.0"):
        assert set(prunus.score(model, graph, "feature_map_rank", batches(1)).by_group) == {"one.0", "two.0"}


def test_bad_data() -> None:
    model = build("Plain")
    graph = prunus.trace(model, images())
    with pytest.raises(EvidenceError, match="the data loader yields nothing"):
        prunus.score(model, graph, "activation_mean", [])
    with pytest.raises(EvidenceError, match=r"activations of group `one\.0` aren't finite on a scoring batch"):
        prunus.score(model, graph, "activation_mean", [images(2) * float("inf")])
