"""The oracle and its relatives: by hand, against the plain loop, and on networks that can't be re-entered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import EvidenceError, PrunusWarning
from prunus.importance.ablation import loss_changes
from prunus.importance.evidence import DataRun
from prunus.importance.oracle_batches import Ablation
from prunus.importance.oracle_damage import damages_of, half_masks
from prunus.importance.oracle_particles import resampled
from prunus.importance.oracle_racing import Race, race
from prunus.importance.oracle_sample import Sample, inclusion
from small_nets import NETS, batches, build, conv_norm_relu, images

DOUBLE = torch.float64


class Toy(nn.Module):
    """y = the sum of ``values`` at an input of one, read through a weight of ones."""

    def __init__(self, values: tuple[float, ...], reader: Tensor | None = None) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, len(values), bias=False)
        reader = torch.ones(1, len(values)) if reader is None else reader
        self.sum = nn.Linear(len(values), len(reader), bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor(values).unsqueeze(1))
            self.sum.weight.copy_(reader)

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.hidden(x))


def squared(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return ((output - batch[1]) ** 2).mean()


def score(model: nn.Module, criterion: str, data: Any, loss_fn: Any = None, **options: Any) -> dict[str, Tensor]:
    graph = prunus.trace(model, data[0][0][:1])
    return dict(prunus.score(model, graph, criterion, data, loss_fn, **options).by_group)


ONE = [(torch.ones(1, 1), torch.ones(1, 1))]

# -- by hand


def test_published_toy() -> None:
    """METHODS A1.7: h = (1, -0.5, 0.1), target 1: changes (1.80, -0.15, 0.09); loss-oracle removes h2 first, abs-oracle h3."""
    model = Toy((1.0, -0.5, 0.1))
    signed = score(model, "oracle", ONE, squared, signed=True)["hidden"]
    assert signed.tolist() == pytest.approx([1.80, -0.15, 0.09], abs=1e-6)
    absolute = score(model, "oracle", ONE, squared)["hidden"]
    assert absolute.tolist() == pytest.approx([1.80, 0.15, 0.09], abs=1e-6)
    assert (int(signed.argmin()), int(absolute.argmin())) == (1, 2)


def test_the_absolute_value_is_taken_outside_of_the_mean() -> None:
    """Targets 1 and 0.2: the sum is 0.6; without h3 it is 0.5: (0.25 - 0.16) and (0.09 - 0.16) have the mean 0.01, not 0.08."""
    data = [*ONE, (torch.ones(1, 1), torch.full((1, 1), 0.2))]
    found = score(Toy((1.0, -0.5, 0.1)), "oracle", data, squared)["hidden"]
    assert float(found[2]) == pytest.approx(0.01, abs=1e-6)


def test_the_mean_is_over_examples_not_over_batches() -> None:
    """Three examples of target 1 (change 0.09) and one of 0.2 (change -0.07): (3 * 0.09 - 0.07) / 4 = 0.05."""
    data = [(torch.ones(3, 1), torch.ones(3, 1)), (torch.ones(1, 1), torch.full((1, 1), 0.2))]
    found = score(Toy((1.0, -0.5, 0.1)), "oracle", data, squared)["hidden"]
    assert float(found[2]) == pytest.approx(0.05, abs=1e-6)


def test_greedy_ranks_anew_after_every_removal() -> None:
    """By absolute change: h3 goes (0.09); the sum is 0.5, and without h2 it is 1: -0.25, without h1 -0.5: 2, so h2 goes, then h1.
    By signed change: h2 first (-0.15); the sum is 1.1: without h3 1.0: -0.01, without h1 0.1: 0.8."""
    model = Toy((1.0, -0.5, 0.1))
    assert score(model, "oracle", ONE, squared, greedy="absolute")["hidden"].tolist() == [2, 1, 0]
    assert score(model, "oracle", ONE, squared, greedy="signed")["hidden"].tolist() == [2, 0, 1]


def test_greedy_sees_what_is_gone() -> None:
    """Of two equal channels, the one that stays matters more once the other is gone."""
    found = score(Toy((1.0, 1.0, 3.0)), "oracle", [(torch.ones(1, 1), torch.full((1, 1), 4.5))], squared, greedy="absolute")
    # sum 5, error 0.5: changes 0, 0, 6; channel 0 goes: sum 4; then channel 1: sum 3, change 2; channel 2: sum 1, change 12
    assert found["hidden"].tolist() == [0, 1, 2]


def test_damage_of_halves_by_hand() -> None:
    """METHODS A5.7: energies (0, .004, .5, .496), all six halves: T = (.3333, .3360, .6667, .6640)."""
    energies = torch.tensor([0.0, 0.004, 0.5, 0.496], dtype=DOUBLE)
    model = Toy((1.0,) * 4, torch.eye(4)).double()
    with torch.no_grad():
        model.hidden.weight.copy_(energies.sqrt().unsqueeze(1))
    data = [(torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, 4, dtype=DOUBLE))]
    found = score(model, "aofp_damage", data, squared)["hidden"]
    assert found.tolist() == pytest.approx([0.3333, 0.3360, 0.6667, 0.6640], abs=5e-5)
    ablation = Ablation(model, prunus.trace(model, data[0][0]), DataRun(data, squared))
    with ablation() as found_batches:
        alone = torch.eye(4, dtype=torch.bool)[:2]  # the next step of the search: halves of {0, 1}
        damages = damages_of(ablation, next(found_batches), "hidden", alone)
    assert damages.tolist() == pytest.approx([0, 0.004], abs=1e-9)


def test_halves_are_all_or_random_ones_of_the_right_size() -> None:
    assert half_masks(4, 0).sum(0).tolist() == [3, 3, 3, 3]
    masks = half_masks(33, 0)
    assert masks.shape == (64, 33)
    assert masks.sum(1).tolist() == [16] * 64
    assert torch.equal(masks, half_masks(33, 0))
    assert not torch.equal(masks, half_masks(33, 1))


def test_damage_ends_at_the_next_layer() -> None:
    """Whatever lies behind the next layer's output plays no part in the damage to what that layer hands on."""
    model, (batch,) = build("Plain", DOUBLE), batches(1, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    run = DataRun([batch])
    mask = torch.arange(16) % 2 == 0
    ablation = Ablation(model, graph, run)
    with ablation() as found:
        damage = damages_of(ablation, next(found), "one.0", mask.unsqueeze(0))
    with torch.no_grad():
        read = F.max_pool2d(model.one(batch[0]), 2)
        before, after = (F.max_pool2d(model.two(x), 2) for x in (read, read * (~mask)[:, None, None]))
    assert float(damage) == pytest.approx(float((before - after).square().sum() / before.square().sum()), rel=1e-9)


# -- against the plain loop


def both(model: nn.Module, data: list[Any], x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    graph = prunus.trace(model, x)
    return loss_changes(model, graph, DataRun(data)), loss_changes(model, graph, DataRun(data), fast=False)


@pytest.mark.parametrize("name", NETS)
def test_equal_to_the_plain_loop(name: str) -> None:
    fast, slow = both(build(name, DOUBLE), batches(2, dtype=DOUBLE), images(dtype=DOUBLE))
    assert set(fast) == set(slow)
    for group in slow:
        assert float(slow[group].abs().max()) > 1e-3
        torch.testing.assert_close(fast[group], slow[group], rtol=1e-5, atol=1e-10)


class InPlace(nn.Module):
    """Activations in place on what a reading layer returned, and linear layers behind a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, groups=2)
        self.hidden, self.out = nn.Linear(8 * 36, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x), inplace=True)
        x = F.relu(self.two(x), inplace=True).reshape(x.shape[0], -1)
        return self.out(F.relu(self.hidden(x), inplace=True))


def test_activations_in_place() -> None:
    fast, slow = both(InPlace().double().eval(), batches(1, dtype=DOUBLE), images(dtype=DOUBLE))
    assert set(slow) == {"one", "two", "hidden"}
    for group in slow:
        torch.testing.assert_close(fast[group], slow[group], rtol=1e-5, atol=1e-10)


class FixedBatch(nn.Module):
    """Asks for a value while running: no two lanes could take different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = conv_norm_relu(1, 6), conv_norm_relu(6, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x))
        return self.out(x.mean((2, 3)) if float(x.detach().sum()) > -1e9 else x.amax((2, 3)))


class ChangedLater(nn.Module):
    """A layer reads a tensor that is changed in place afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        y = self.two(x)
        x.mul_(2)
        return self.out((x + y).mean((2, 3)))


@pytest.mark.parametrize(
    ("net", "reason"), [(FixedBatch, "data-dependent|item"), (ChangedLater, "changed in place after something else has read it")]
)
def test_networks_that_cannot_be_re_entered_go_through_the_plain_loop(net: type[nn.Module], reason: str) -> None:
    model, data, x = net().double().eval(), batches(1, dtype=DOUBLE), images(dtype=DOUBLE)
    graph = prunus.trace(model, x)
    with pytest.warns(PrunusWarning, match=f"the oracle ran the whole network for every channel.*because: .*({reason})"):
        fast = loss_changes(model, graph, DataRun(data))
    slow = loss_changes(model, graph, DataRun(data), fast=False)
    assert set(slow)
    for group in slow:
        torch.testing.assert_close(fast[group], slow[group], rtol=1e-12, atol=0)


def test_a_re_entry_that_differs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in the correction, the check against the plain loop sees it."""
    from prunus.importance import oracle_replay

    monkeypatch.setattr(oracle_replay, "_lane_by_lane", lambda x, like: x * 1.01)
    model, data = build("Plain", DOUBLE), batches(1, dtype=DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    with pytest.warns(PrunusWarning, match="the loss without channel .* of `one.0` came out differently"):
        fast = loss_changes(model, graph, DataRun(data))
    torch.testing.assert_close(fast, loss_changes(model, graph, DataRun(data), fast=False))


def test_a_loss_without_gradients_will_do() -> None:
    """The oracle measures; errors counted on the batch are as good as any loss."""
    data = batches(1, dtype=DOUBLE)
    wrong = score(build("Plain", DOUBLE), "oracle", data, lambda out, batch: (out.argmax(1) != batch[1]).double().mean())
    assert {round(float(v) * 6) for v in torch.cat(list(wrong.values()))} <= set(range(7))


def test_bad_data() -> None:
    model = build("Plain")
    graph = prunus.trace(model, images())
    for criterion in ("oracle", "aofp_damage", "particle_filter"):
        with pytest.raises(EvidenceError, match="the data loader yields nothing"):
            prunus.score(model, graph, criterion, [])
        with pytest.raises(EvidenceError, match="the loss is nan on a scoring batch"):
            prunus.score(model, graph, criterion, [(images(2) * float("nan"), torch.tensor([1, 2]))])


# -- the race


def test_a_race_decides_what_is_clear() -> None:
    """Two of six channels are clearly lowest by absolute value: the race is over at its first decision."""
    found = Race(6, 2)
    found.mean[:] = torch.tensor([0.1, -5.0, 4.0, -0.2, 3.0, 6.0], dtype=DOUBLE)
    found.error[:] = 0.01
    found.decide()
    assert not found.active.any()


def test_a_race_goes_on_where_intervals_overlap() -> None:
    """At 1.75 standard errors, 1.5 +- 0.3 and 1.6 +- 0.3 can't be told apart for the second place; 0 and 9 are decided."""
    found = Race(4, 2)
    found.mean[:] = torch.tensor([0.0, 1.5, 1.6, 9.0], dtype=DOUBLE)
    found.error[:] = 0.2
    found.decide()
    assert found.active.tolist() == [False, True, True, False]


def test_racing_finds_the_lowest_tenth_with_a_tenth_of_the_work() -> None:
    """80 channels, of which 8 hardly matter: all of them are found, at 10 times fewer channel evaluations."""
    model = build("Plain", DOUBLE)
    with torch.no_grad():
        model.two[0].weight[:, ::8] *= 1e-3  # 2 of 16
        model.three[0].weight[:, ::16] *= 1e-3  # 2 of 32
        model.classifier.weight[:, ::8] *= 1e-3  # 4 of 32
    data = [(x, model(x).argmax(1).detach()) for x, _ in batches(150, 8, DOUBLE)]
    graph = prunus.trace(model, images(dtype=DOUBLE))
    full = torch.cat(list(loss_changes(model, graph, DataRun(data)).values())).abs()
    result = race(model, graph, DataRun(data))
    raced = torch.cat(list(result.changes.values())).abs()
    assert set(raced.argsort()[:8].tolist()) == set(full.argsort()[:8].tolist())
    assert result.all_evaluations == 80 * 150
    assert 10 * result.evaluations <= 80 * 150
    assert result.undecided == 0


def test_a_race_over_all_minibatches_is_the_oracle() -> None:
    """Four minibatches of unequal size are all in the first sample: nothing is estimated."""
    model = build("Plain", DOUBLE)
    data = [*batches(3, 4, DOUBLE), *batches(1, 2, DOUBLE)]
    graph = prunus.trace(model, images(dtype=DOUBLE))
    full, raced = loss_changes(model, graph, DataRun(data)), race(model, graph, DataRun(data)).changes
    for name, values in full.items():
        torch.testing.assert_close(raced[name], values, rtol=1e-9, atol=1e-12)


def test_a_race_takes_a_loss_without_derivatives() -> None:
    """Errors counted on the batch can't be predicted by a slope: every minibatch is as likely as any other."""
    model = build("Plain", DOUBLE)
    data = [(x, model(x).argmax(1).detach()) for x, _ in batches(4, 4, DOUBLE)]
    graph = prunus.trace(model, images(dtype=DOUBLE))
    run = DataRun(data, lambda out, batch: (out.argmax(1) != batch[1]).double().mean())
    full, raced = loss_changes(model, graph, run), race(model, graph, run).changes
    for name, values in full.items():
        torch.testing.assert_close(raced[name], values, rtol=1e-9, atol=1e-12)


def test_a_race_that_ends_undecided_says_so() -> None:
    """Random labels: every change is nearly all noise."""
    model = build("Plain")
    with pytest.warns(PrunusWarning, match="the race for the 8 lowest of 80 channels ended at its budget with .* undecided"):
        prunus.score(model, prunus.trace(model, images()), "oracle", batches(20, 2), racing=True)


def test_a_sample_is_part_of_every_larger_one_and_prefers_what_matters() -> None:
    predicted = torch.ones(1, 1000, dtype=DOUBLE)
    predicted[:, :100] = 50.0
    sample = Sample(predicted, torch.ones(1000, dtype=DOUBLE), seed=0)
    first, more = sample.grow(50), sample.grow(80)
    assert len(first) == 50 and len(more) == 30 and len({*first, *more}) == 80
    assert sum(number < 100 for number in first) > 30  # five of fifty if all were alike
    chances = inclusion(sample.sizes, 200)
    assert float(chances.sum()) == pytest.approx(200)
    assert chances[:100].tolist() == [1.0] * 100  # more than certain is no more than certain


def test_means_from_samples_are_right_on_average_and_so_are_their_errors() -> None:
    """500 samples of 60 from 400 minibatches of unequal size, half of the change predicted: the mean of the estimates lies within
    three standard errors of the truth, and the spread of the estimates is what they claim."""
    generator = torch.Generator().manual_seed(1)
    size = torch.rand(400, generator=generator, dtype=DOUBLE) ** 4
    predicted = (size * torch.randn(400, generator=generator, dtype=DOUBLE))[None]
    values = predicted[0] * 1.5 + 0.5 * size * torch.randn(400, generator=generator, dtype=DOUBLE) + 0.02
    examples = torch.randint(1, 5, (400,), generator=generator).double()
    truth = float((values * examples).sum() / examples.sum())
    means: list[float] = []
    errors: list[float] = []
    for seed in range(500):
        sample = Sample(predicted, examples, seed)
        for number in sample.grow(60):
            sample.add(number, torch.tensor([0]), values[number : number + 1])
        mean, error = sample.estimate(torch.tensor([0]))
        means.append(float(mean))
        errors.append(float(error))
    found = torch.tensor(means)
    assert abs(float(found.mean()) - truth) < 3 * float(found.std()) / 500**0.5 + 0.1 * float(found.std())
    assert float(torch.tensor(errors).mean()) == pytest.approx(float(found.std()), rel=0.25)
    plain = torch.stack([values[torch.randperm(400, generator=generator)[:60]].mean() for _ in range(500)])
    assert float(found.std()) < 0.5 * float(plain.std())


# -- particles


def test_resampling_follows_the_weights() -> None:
    masks = torch.eye(4, 400).bool()
    masks[0] = True
    drawn = resampled(masks, torch.tensor([1.0, 0, 0, 0], dtype=DOUBLE), torch.Generator().manual_seed(0))
    assert 0.97 < float(drawn.double().mean()) < 1
    again = resampled(masks, torch.tensor([1.0, 0, 0, 0], dtype=DOUBLE), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_particles_without_what_matters_die_out() -> None:
    """One channel carries the answer, the others nothing: it is in nearly all particles, in more than any other."""
    data = [(torch.ones(1, 1), torch.full((1, 1), 5.0))] * 20
    found = score(Toy((5.0, 0.0, 0.0, 0.0)), "particle_filter", data, squared)["hidden"]
    assert float(found[0]) > 0.99
    assert float(found[0]) > float(found[1:].max())
