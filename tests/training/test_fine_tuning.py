"""Averages, mixup, rates by layer, early stopping, the best epoch: by hand, and resumed to the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunus.config import OptimizerConfig, RecoverConfig
from prunus.errors import TrainingError
from prunus.training import evaluate, train
from prunus.training.averaging import Average
from prunus.training.mixup import Mixed
from prunus.training.optimizers import build_optimizer, layer_scales


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = Average(model, 0.25)
    values = []
    for weight in (2.0, 3.0, 4.0):
        nn.init.constant_(model.weight, weight)
        average.update()
        values.append(average.values["weight"].item())
    # d = min(1/4, (1 + t) / (10 + t)) = 2/11, 1/4, 1/4
    first = 2 / 11 * 1 + 9 / 11 * 2
    second = 0.25 * first + 0.75 * 3
    assert values == pytest.approx([first, second, 0.25 * second + 0.75 * 4], rel=1e-6)
    with average.swapped_in():
        assert model.weight.item() == pytest.approx(values[-1])
    assert model.weight.item() == 4.0
    average.into_model()
    assert model.weight.item() == pytest.approx(values[-1])


def test_statistics_are_averaged_and_counters_are_not():
    model = nn.BatchNorm1d(1)
    average = Average(model, 0.5)
    model.train()(torch.tensor([[1.0], [3.0]]))
    average.update()
    assert average.values["num_batches_tracked"].item() == 1
    assert average.values["running_mean"].item() == pytest.approx(0.2 * 9 / 11)


def test_training_ends_with_the_average(network, points):
    """Two SGD steps by hand; what is kept is the average of the weights behind each, and the start."""
    model, hand = network()[0], network()[0]
    batch = tuple(t[:20] for t in points.tensors)
    settings = OptimizerConfig(epochs=2, lr=0.1, momentum=0, weight_decay=0, warmup_epochs=0, schedule="constant", ema=0.9)
    log = train(model, [batch], settings, seed=0, evaluation_loader=[batch])
    average = hand.weight.detach().clone()
    for step in (1, 2):
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(hand(batch[0]), batch[1]), hand.weight, retain_graph=False)
        (bias,) = torch.autograd.grad(nn.functional.cross_entropy(hand(batch[0]), batch[1]), hand.bias)
        with torch.no_grad():
            hand.weight -= 0.1 * gradient
            hand.bias -= 0.1 * bias
        decay = (1 + step) / (10 + step)
        average = decay * average + (1 - decay) * hand.weight.detach()
    torch.testing.assert_close(model.weight.detach(), average)
    assert log.epochs[-1].accuracy == evaluate(model, [batch]).accuracy


ALL = OptimizerConfig(epochs=5, lr=0.2, ema=0.9, mixup=0.3, first_layer_lr=0.5, patience=4, keep="best", label_smoothing=0.1)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_everything_at_once_resumes_to_the_same_bits(network, loader, tmp_path, after):
    whole = network()
    straight = train(whole, loader, ALL, seed=5, evaluation_loader=loader)

    def kill(log):
        if log.epoch == after:
            raise Killed

    again, file = network(), tmp_path / "c.safetensors"
    with pytest.raises(Killed):
        train(again, loader, ALL, seed=5, evaluation_loader=loader, checkpoint=file, on_epoch=kill)
    fresh = network()
    log = train(fresh, loader, ALL, seed=5, evaluation_loader=loader, checkpoint=file, resume=True)
    assert log.resumed_from == after
    assert same(whole.state_dict(), fresh.state_dict())
    assert [e.loss for e in log.epochs] == [e.loss for e in straight.epochs]
    assert [e.accuracy for e in log.epochs] == [e.accuracy for e in straight.epochs]
    last = network()
    train(last, loader, ALL, seed=5, evaluation_loader=loader, checkpoint=file, resume=True)
    assert same(whole.state_dict(), last.state_dict()), "a finished run gives the weights that it kept"


def test_training_stops_early_and_keeps_the_last_or_the_best(network, loader):
    """A metric that is best in epoch 2 of evaluations."""
    scores = iter([0.5, 0.9, 0.7, 0.9, 0.1, 0.1])
    current = [0.0]

    def metric(output, batch):
        return torch.full((len(batch[1]),), current[0])

    class Scored:
        def __iter__(self):
            current[0] = next(scores)
            return iter(loader)

        def __len__(self):
            return len(loader)

    seen = {}
    model = network()

    def remember(log):
        seen[log.epoch] = {name: t.clone() for name, t in model.state_dict().items()}

    settings = OptimizerConfig(epochs=6, lr=0.1, patience=2, keep="best")
    log = train(model, loader, settings, seed=0, evaluation_loader=Scored(), metric=metric, on_epoch=remember)
    assert [e.accuracy for e in log.epochs] == pytest.approx([0.5, 0.9, 0.7, 0.9])
    assert log.note == "stopped early after epoch 4 of 6" and log.best.epoch == 2 and log.best_kept
    assert same(model.state_dict(), seen[2]) and not same(seen[2], seen[4])
    scores = iter([0.5, 0.9, 0.7, 0.9])
    model = network()
    log = train(
        model, loader, settings.model_copy(update={"keep": "last"}), seed=0, evaluation_loader=Scored(), metric=metric,
        on_epoch=remember,
    )  # fmt: skip
    assert same(model.state_dict(), seen[4]) and not log.best_kept


def test_mixed_batches_by_hand():
    torch.manual_seed(0)
    np.random.seed(0)
    inputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 1, 1])
    mixed = Mixed((inputs, targets), 0.5)
    assert 0 < mixed.weight < 1
    torch.manual_seed(0)
    np.random.seed(0)
    weight, other = np.random.beta(0.5, 0.5), torch.randperm(3)
    assert mixed.weight == weight and not torch.equal(other, torch.arange(3))
    torch.testing.assert_close(mixed.inputs, weight * inputs + (1 - weight) * inputs[other])
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])

    def loss_of(batch):
        return nn.functional.cross_entropy(logits, batch[1])

    expected = weight * nn.functional.cross_entropy(logits, targets) + (1 - weight) * nn.functional.cross_entropy(
        logits, targets[other]
    )
    torch.testing.assert_close(mixed.loss(loss_of), expected)
    with pytest.raises(TrainingError, match="mixup mixes tensors"):
        Mixed(([inputs], targets), 0.5)


def test_mixup_is_what_training_minimises(network, loader):
    plain, mixed = network(), network()
    train(plain, loader, OptimizerConfig(epochs=1, lr=0.1), seed=0)
    train(mixed, loader, OptimizerConfig(epochs=1, lr=0.1, mixup=0.5), seed=0)
    assert not same(plain.state_dict(), mixed.state_dict())


def test_rates_by_layer():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.Linear(2, 2))
    scales = layer_scales(list(model.parameters()), 0.25)
    assert scales == [0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    groups = build_optimizer(model, OptimizerConfig(first_layer_lr=0.25, weight_decay=0.1)).param_groups
    assert [(len(g["params"]), g["weight_decay"], g.get("lr_scale", 1.0)) for g in groups] == [
        (1, 0.1, 0.25),
        (3, 0.0, 0.25),
        (1, 0.1, 0.5),
        (1, 0.0, 0.5),
        (1, 0.1, 1.0),
        (1, 0.0, 1.0),
    ]
    assert len(build_optimizer(model, OptimizerConfig()).param_groups) == 2


def test_the_first_layer_moves_by_its_share(network, points):
    batch = tuple(t[:20] for t in points.tensors)
    moved = []
    for first in (1.0, 0.1):
        model = nn.Sequential(*network())
        model[3].p = 0.0
        before = [model[0].weight.detach().clone(), model[4].weight.detach().clone()]
        settings = OptimizerConfig(epochs=1, lr=0.1, warmup_epochs=0, momentum=0, weight_decay=0, first_layer_lr=first)
        train(model, [batch], settings, seed=0)
        moved.append([model[0].weight.detach() - before[0], model[4].weight.detach() - before[1]])
    torch.testing.assert_close(moved[1][0], 0.1 * moved[0][0], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(moved[1][1], moved[0][1])


def test_what_needs_validation_images_says_so(network, loader):
    for change in ({"patience": 2}, {"keep": "best"}):
        with pytest.raises(TrainingError, match="judge epochs by validation images: give an evaluation_loader"):
            train(network(), loader, OptimizerConfig(epochs=1, **change), seed=0)


def test_presets_are_defaults():
    quick, standard, long = (RecoverConfig(preset=name) for name in ("quick", "standard", "long"))
    assert quick.epochs < standard.epochs < long.epochs
    for preset in (quick, standard, long):
        assert preset.schedule == "cosine" and preset.warmup_epochs > 0 and preset.ema > 0 and preset.weight_decay > 0
    assert standard.first_layer_lr < 1
    own = RecoverConfig(preset="quick", epochs=7)
    assert own.epochs == 7 and own.ema == quick.ema
    assert RecoverConfig.model_validate(own.model_dump()) == own
    assert RecoverConfig().ema == 0 and RecoverConfig().epochs == 10
