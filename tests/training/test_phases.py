"""Parts of a network that are frozen, runs of so many steps, constant rates, and memory formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunus.config import OptimizerConfig
from prunus.training import evaluate, fastest, measure_training_speed, memory_format, train
from prunus.training.optimizers import learning_rate
from prunus.training.speed import TrainingSpeed

SGD = OptimizerConfig(epochs=2, lr=0.1, warmup_epochs=0)


def test_a_frozen_part_learns_nothing_not_even_statistics(network, loader):
    model = network()
    for part in model[:2]:
        part.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[tuple[bool, bool]] = []
    model[1].register_forward_hook(lambda module, *_: seen.append((module.training, model[3].training)))
    train(model, loader, SGD, seed=0)
    after = model.state_dict()
    assert set(seen) == {(False, True)}, "batch norm must run as in evaluation, dropout behind it as in training"
    assert all(torch.equal(before[n], after[n]) for n in before if n[0] in "01")
    assert not torch.equal(before["4.weight"], after["4.weight"])


def test_a_part_that_is_only_partly_frozen_trains(network, loader):
    model = network()
    model[1].weight.requires_grad_(False)
    train(model, loader, SGD, seed=0)
    assert int(model[1].num_batches_tracked) == 12


def test_batch_norm_can_be_frozen_for_a_phase(network, loader):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, loader, SGD.model_copy(update={"freeze_batch_norm": True}), seed=0)
    after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n[0] == "1")
    assert not torch.equal(before["0.weight"], after["0.weight"]) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("steps", "epochs"), [(4, 1), (6, 1), (9, 2)])
def test_steps_instead_of_epochs(network, loader, steps, epochs):
    model, settings = network(), SGD.model_copy(update={"steps": steps})
    log = train(model, loader, settings, seed=0)
    assert int(model[1].num_batches_tracked) == steps and [e.epoch for e in log.epochs] == list(range(1, epochs + 1))
    assert log.epochs[-1].lr == learning_rate(steps - 1, steps, 0, 0.1)


def test_steps_resume_to_the_same_bits(network, loader, tmp_path: Path):
    settings = SGD.model_copy(update={"steps": 9})
    whole, cut = network(), network()
    train(whole, loader, settings, seed=3)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cut, loader, settings, seed=3, checkpoint=tmp_path / "c", on_epoch=stop)
    cut = network()
    log = train(cut, loader, settings, seed=3, checkpoint=tmp_path / "c", resume=True)
    assert log.resumed_from == 1
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), cut.state_dict().values(), strict=True))


def test_a_constant_rate_stays_at_its_peak(network, loader):
    settings = OptimizerConfig(epochs=2, lr=0.1, warmup_epochs=0.5, schedule="constant")
    assert [e.lr for e in train(network(), loader, settings, seed=0).epochs] == [0.1, 0.1]
    assert [learning_rate(s, 8, 2, 0.1, "constant") for s in (0, 1, 2, 7)] == [0.05, 0.1, 0.1, 0.1]


def conv_net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def images() -> DataLoader:
    generator = torch.Generator().manual_seed(2)
    return DataLoader(TensorDataset(torch.randn(24, 3, 8, 8, generator=generator), torch.arange(24) % 2), batch_size=8)


def test_channels_last_trains_the_same_network_and_leaves_the_plain_format(tmp_path: Path):
    plain, last = conv_net(), conv_net()
    seen: list[bool] = []
    last[0].register_forward_hook(lambda m, i, out: seen.append(out.is_contiguous(memory_format=torch.channels_last)))
    train(plain, images(), SGD, seed=0)
    train(last, images(), SGD, seed=0, channels_last=True, checkpoint=tmp_path / "c")
    assert seen == [True] * 6 and last[0].weight.is_contiguous()
    torch.testing.assert_close(last.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-6)
    with memory_format(last, True):
        assert evaluate(last, images()).loss == pytest.approx(evaluate(plain, images()).loss, rel=1e-4)
    assert last[0].weight.is_contiguous()


def test_channels_last_resumes_to_the_same_bits(tmp_path: Path):
    whole, cut = conv_net(), conv_net()
    train(whole, images(), SGD, seed=0, channels_last=True)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cut, images(), SGD, seed=0, channels_last=True, checkpoint=tmp_path / "c", on_epoch=stop)
    again = conv_net()
    train(again, images(), SGD, seed=0, channels_last=True, checkpoint=tmp_path / "c", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_speed_is_measured_without_a_trace():
    model, batch = conv_net(), next(iter(images()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    speeds = measure_training_speed(model, batch, threads=(1, 2), channels_last=(False, True), steps=2)
    assert [(s.threads, s.channels_last) for s in speeds] == [(1, False), (1, True), (2, False), (2, True)]
    assert all(s.images_per_second > 0 for s in speeds)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_the_fastest_setting_must_be_worth_it():
    slow, same, quick = TrainingSpeed(1, False, 98.0), TrainingSpeed(2, True, 100.0), TrainingSpeed(2, True, 110.0)
    assert fastest([same, slow]) == slow  # within 3 %: the simpler one
    assert fastest([slow, quick]) == quick
