"""Checkpoints within an epoch: a run that goes on at a step ends with the bits of the undisturbed one."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from prunus.config import OptimizerConfig
from prunus.errors import TrainingError
from prunus.training import train

RUN = OptimizerConfig(epochs=3, lr=0.05)


class Stop(Exception):
    pass


class Noisy(Dataset):
    """Augmented with draws from all three generators of the process."""

    def __init__(self, points):
        self.points = points

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        x, y = self.points[index]
        return x + 0.1 * torch.randn(4) + random.random() + float(np.random.rand()), y


def stopping_at(step):
    calls = []

    def forward_fn(model, inputs):
        calls.append(1)
        if len(calls) > step:
            raise Stop
        return model(inputs)

    return forward_fn


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("step", "every"), [(2, 1), (8, 3), (11, 1), (13, 4), (17, 2)])
def test_a_run_cut_at_a_step_goes_on_to_the_same_bits(network, points, tmp_path, step, every, workers):
    """Six steps an epoch; the network drops out and the images are augmented in the process that trains, or in another."""
    if workers and step != 8:
        pytest.skip("one cut is enough with workers")
    loader = DataLoader(Noisy(points), batch_size=16, shuffle=True, num_workers=workers)
    path = tmp_path / "run.ckpt"
    whole, cut = network(), network()
    log = train(whole, loader, RUN, seed=4, checkpoint=tmp_path / "whole.ckpt", checkpoint_steps=5)
    with pytest.raises(Stop):
        train(cut, loader, RUN, seed=4, checkpoint=path, checkpoint_steps=every, forward_fn=stopping_at(step))
    calls = []

    def counted(model, inputs):
        calls.append(1)
        return model(inputs)

    resumed = network()
    again = train(resumed, loader, RUN, seed=4, checkpoint=path, checkpoint_steps=every, resume=True, forward_fn=counted)
    done = max(step % 6 // every * every, 0) + step // 6 * 6
    assert len(calls) == 18 - done
    assert all(torch.equal(a, resumed.state_dict()[n]) for n, a in whole.state_dict().items())
    assert [(e.epoch, e.loss, e.lr) for e in log.epochs] == [(e.epoch, e.loss, e.lr) for e in again.epochs]
    behind = f"behind its step {done % 6}" if done % 6 else f"continued with epoch {step // 6 + 1}"
    assert again.resumed_from == step // 6 and again.note.endswith(behind)


def test_a_failure_names_the_step_of_the_last_checkpoint(network, points, tmp_path):
    batches, calls = [tuple(t[i * 30 : i * 30 + 30] for t in points.tensors) for i in range(3)], []

    def loss_fn(output, batch):
        calls.append(1)
        return output.sum() * (float("nan") if len(calls) == 3 else 0.0)

    path = tmp_path / "run.ckpt"
    with pytest.raises(TrainingError, match=rf"step 3 of 3; the last good checkpoint is {path} \(epoch 1, step 2\)"):
        train(network(), batches, RUN, seed=0, checkpoint=path, checkpoint_steps=2, loss_fn=loss_fn)


def test_steps_of_checkpoints_are_checked(network, loader, tmp_path):
    for settings in ({"checkpoint_steps": 3}, {"checkpoint_steps": 0, "checkpoint": tmp_path / "run.ckpt"}):
        with pytest.raises(TrainingError, match=r"checkpoint_steps = \d needs checkpoint=PATH and a number of steps above zero"):
            train(network(), loader, RUN, seed=0, **settings)


@pytest.mark.parametrize("step", [2, 8, 13])
def test_sparse_gradients_go_on_with_the_same_draws(tmp_path, step):
    """Counts and thresholds, too: what is reported of the epoch is of all its steps."""
    x, y = torch.randn(30, 2, 5, 5, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    batches = [(x[i : i + 5], y[i : i + 5]) for i in range(0, 30, 5)]

    def build():
        torch.manual_seed(0)
        parts = torch.nn.Conv2d(2, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 3), torch.nn.ReLU()
        return torch.nn.Sequential(*parts, torch.nn.Flatten(), torch.nn.Linear(4, 3))

    settings = RUN.model_copy(update={"sparse_gradients": 0.8})
    whole, resumed, path = build(), build(), tmp_path / "run.ckpt"
    log = train(whole, batches, settings, seed=4)
    with pytest.raises(Stop):
        train(build(), batches, settings, seed=4, checkpoint=path, checkpoint_steps=1, forward_fn=stopping_at(step))
    again = train(resumed, batches, settings, seed=4, checkpoint=path, resume=True)
    assert all(torch.equal(a, resumed.state_dict()[n]) for n, a in whole.state_dict().items())
    assert [e.sparse_gradients for e in log.epochs] == [e.sparse_gradients for e in again.epochs]
