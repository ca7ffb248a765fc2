"""l1, l2, bn_scale and random against sums written out by hand on the raw tensors, in every layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import NothingPruned, PrunusWarning
from small_nets import build, images

ORDERS = {"l1": 1, "l2": 2}


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
