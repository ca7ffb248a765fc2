"""What `train` does to the weights, and what it refuses."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunus.config import OptimizerConfig
from prunus.errors import TrainingError
from prunus.training import evaluate, train
from prunus.training_hooks import SparsityProgress

SGD = OptimizerConfig(epochs=2, lr=0.1, warmup_epochs=0)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_learns(network, loader):
    model = network()
    log = train(model, loader, OptimizerConfig(epochs=8, lr=0.1), seed=0, evaluation_loader=loader)
    assert evaluate(model, loader).accuracy > 0.85
    assert log.epochs[-1].accuracy == evaluate(model, loader).accuracy
    assert log.epochs[-1].loss < 0.7 * log.epochs[0].loss
    assert [e.epoch for e in log.epochs] == list(range(1, 9))
    assert all(e.images_per_second == pytest.approx(90 / e.seconds) for e in log.epochs)


def test_one_sgd_step_is_torchs(network, points):
    """Against a step by hand: Nesterov momentum, decay on matrices only."""
    model, hand = network()[0], network()[0]
    batch = tuple(t[:20] for t in points.tensors)
    train(model, [batch], OptimizerConfig(epochs=1, lr=0.1, warmup_epochs=0, weight_decay=0.2), seed=0)
    nn.functional.cross_entropy(hand(batch[0]), batch[1]).backward()
    gradient = hand.weight.grad + 0.2 * hand.weight.detach()
    torch.testing.assert_close(model.weight, hand.weight - 0.1 * (gradient + 0.9 * gradient))
    torch.testing.assert_close(model.bias, hand.bias - 0.1 * 1.9 * hand.bias.grad)


def test_same_seed_same_bits_another_seed_other_bits(network, loader):
    results = []
    for seed in (3, 3, 4):
        random.seed(len(results))
        np.random.seed(len(results))
        model = network()
        torch.manual_seed(len(results))
        train(model, loader, SGD, seed=seed)
        results.append(weights(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_every_epoch_shuffles_and_drops_out_anew(network, loader):
    seen = []
    model = network()
    model[3].register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].detach(), output == 0)))
    train(model, loader, SGD.model_copy(update={"lr": 1e-12}), seed=0)
    first, second = seen[0], seen[6]  # the first step of each of the two epochs
    assert not torch.allclose(first[0], second[0], atol=1e-4)
    both = (first[0] > 0) & (second[0] > 0)
    assert not torch.equal(first[1][both], second[1][both])


def test_a_loaders_own_generator_and_persistent_workers_are_seeded(network, points):
    """The loader's state is carried on from call to call; the weights must not know."""

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return len(points)

        def __getitem__(self, index):
            x, y = points[index]
            return x + 0.1 * torch.randn(4) + random.random() + float(np.random.rand()), y

    workers = {"num_workers": 1, "persistent_workers": True}
    loader = DataLoader(Noisy(), batch_size=30, shuffle=True, generator=torch.Generator(), **workers)
    results = []
    for _ in range(2):
        model = network()
        train(model, loader, SGD, seed=0)
        results.append(weights(model))
    assert same(*results)
    loader.generator.manual_seed(5)
    first, second = network(), network()
    train(first, loader, SGD.model_copy(update={"epochs": 1, "lr": 1e-9}), seed=0)
    train(second, loader, SGD.model_copy(update={"epochs": 1, "lr": 1e-9}), seed=1)
    assert not torch.equal(first[1].running_mean, second[1].running_mean)  # other noise


def test_modes_random_state_and_requires_grad_are_left_as_found(network, loader):
    model = network()
    model.eval()
    model[3].train()
    model[0].weight.requires_grad_(False)
    model[4].bias.grad = torch.full((3,), 1e6)  # stale: must not enter the first step
    frozen = model[0].weight.clone()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    keys = set(vars(model))
    train(model, loader, SGD, seed=0, evaluation_loader=loader)
    assert [m.training for m in model] == [False, False, False, True, False]
    assert not model.training
    assert torch.equal(model[0].weight, frozen)
    assert model[4].bias.abs().max() < 100
    assert all(p.grad is None for p in model.parameters())
    assert set(vars(model)) == keys
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_zero_epochs_do_nothing_and_say_so(network, loader):
    model = network()
    before = weights(model)
    log = train(model, loader, OptimizerConfig(epochs=0), seed=5, description="warm start")
    assert (log.epochs, log.seed, log.note) == ((), 5, "warm start: epochs = 0, nothing was trained")
    assert same(before, weights(model))


def test_label_smoothing_and_clipping_act(network, points):
    batch = [tuple(t[:30] for t in points.tensors)]
    one = OptimizerConfig(epochs=1, lr=0.1, warmup_epochs=0, weight_decay=0, momentum=0)
    steps = {}
    for name, change in {"plain": {}, "smooth": {"label_smoothing": 0.3}, "clipped": {"clip_norm": 1e-3}}.items():
        model = network()[0]
        start = weights(model)
        log = train(model, batch, one.model_copy(update=change), seed=0)
        moved = torch.cat([(start[n] - t).flatten() for n, t in weights(model).items()])
        steps[name] = log.epochs[0].loss, moved.norm().item()
    hand = nn.functional.cross_entropy(network()[0](batch[0][0]), batch[0][1], label_smoothing=0.3)
    assert steps["smooth"][0] == pytest.approx(hand.item(), rel=1e-6)
    assert steps["clipped"][1] == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert steps["plain"][1] > 10 * steps["clipped"][1]


def test_auxiliary_outputs_count_three_tenths_in_training_only(points):
    x, y = points.tensors

    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.main, self.side = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, inputs):
            return (self.main(inputs), self.side(inputs), None) if self.training else self.main(inputs)

    model = Auxiliary()
    main, side = (nn.functional.cross_entropy(layer(x), y).item() for layer in (model.main, model.side))
    assert evaluate(model, [(x, y)]).loss == pytest.approx(main, rel=1e-6)
    log = train(model, [(x, y)], SGD.model_copy(update={"epochs": 1}), seed=0)
    assert log.epochs[0].loss == pytest.approx(main + 0.3 * side, rel=1e-6)


def test_the_users_loss_metric_and_forward_are_used(network, loader):
    model = network()
    seen = {"loss": 0, "metric": 0, "forward": 0}

    def forward_fn(net, inputs):
        seen["forward"] += 1
        return {"logits": net(inputs)}

    def loss_fn(output, batch):
        seen["loss"] += 1
        return output["logits"].square().mean()

    def metric(output, batch):
        seen["metric"] += 1
        return (batch[1] == 0).float()

    log = train(model, loader, SGD, seed=0, evaluation_loader=loader, loss_fn=loss_fn, metric=metric, forward_fn=forward_fn)
    assert seen == {"loss": 24, "metric": 12, "forward": 24}  # 6 batches, 2 epochs, training and evaluation
    assert log.epochs[-1].accuracy == pytest.approx(1 / 3)
    assert log.epochs[1].loss < log.epochs[0].loss


def test_a_batch_of_another_form_goes_to_forward_fn(points):
    x, y = points.tensors
    layer = nn.Linear(4, 3)
    batches = [{"image": x, "label": y}]
    log = train(
        layer,
        batches,
        SGD,
        seed=0,
        forward_fn=lambda net, batch: net(batch["image"]),
        loss_fn=lambda output, batch: nn.functional.cross_entropy(output, batch["label"]),
    )
    assert log.epochs[0].loss > log.epochs[1].loss
    with pytest.raises(TrainingError, match=r"need batches \(inputs, targets\) with a tensor of targets"):
        evaluate(layer, batches, forward_fn=lambda net, batch: net(batch["image"]))


class Recorder:
    """A sparsity method that pulls the first matrix to zero and writes down when it is called."""

    def __init__(self, parameter):
        self.parameter, self.calls = parameter, []

    def parameter_options(self):
        return {}

    def begin(self, steps, steps_per_epoch):
        self.calls.append(f"begin {steps} {steps_per_epoch}")

    def before_step(self, step, lr):
        self.calls.append(f"step {step} at {lr:g}")

    def end_epoch(self, loss):
        self.calls.append("end of epoch")

    def progress(self):
        return SparsityProgress(7, {"0": 1}, {"0": torch.tensor([0.0, 1.0])})

    def penalty(self):
        self.calls.append("penalty")
        return 3.0 * self.parameter.square().sum()

    def after_backward(self):
        self.calls.append("after_backward" if self.parameter.grad is not None else "no gradient")

    def after_step(self):
        self.calls.append("after_step")
        with torch.no_grad():
            self.parameter[0] = 0.0

    def state_dict(self):
        return {"calls": list(self.calls)}

    def load_state_dict(self, state):
        self.calls = list(state["calls"])


def test_sparsity_hooks_are_called_in_order_and_the_penalty_is_part_of_the_loss(network, points):
    model, hand = network()[0], network()[0]
    batch = tuple(t[:20] for t in points.tensors)
    method = Recorder(model.weight)
    settings = OptimizerConfig(epochs=1, lr=0.1, warmup_epochs=0, weight_decay=0, momentum=0)
    log = train(model, [batch], settings, seed=0, method=method)
    loss = nn.functional.cross_entropy(hand(batch[0]), batch[1]) + 3.0 * hand.weight.square().sum()
    loss.backward()
    assert method.calls == ["begin 1 1", "step 0 at 0.1", "penalty", "after_backward", "after_step", "end of epoch"]
    assert log.epochs[0].sparsity["macs"] == 7 and log.epochs[0].sparsity["widths"] == {"0": 1}
    assert [log.epochs[0].sparsity["histogram"]["counts"][i] for i in (0, 1, -1)] == [1, 0, 1]
    assert log.epochs[0].loss == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(model.weight[1:], (hand.weight - 0.1 * hand.weight.grad)[1:])
    assert model.weight[0].abs().max() == 0


def test_sparsity_state_is_in_the_checkpoint(network, loader, tmp_path):
    path = tmp_path / "run.ckpt"
    model = network()
    train(model, loader, SGD, seed=0, method=Recorder(model[0].weight), checkpoint=path)
    resumed = network()
    method = Recorder(resumed[0].weight)
    train(resumed, loader, SGD, seed=0, method=method, checkpoint=path, resume=True)
    assert len(method.calls) == 1 + 12 * 4 + 2  # of the whole run, once: it was over
    with pytest.raises(TrainingError, match='sparsity_method was "Recorder", is null'):
        train(network(), loader, SGD, seed=0, checkpoint=path, resume=True)


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_a_non_finite_loss_names_epoch_step_and_checkpoint(network, points, tmp_path, with_checkpoint):
    calls = SimpleNamespace(n=0)

    def loss_fn(output, batch):
        calls.n += 1
        return nn.functional.cross_entropy(output, batch[1]) * (float("nan") if calls.n == 9 else 1.0)

    path = tmp_path / "run.ckpt"
    loader = DataLoader(points, batch_size=16)
    with pytest.raises(TrainingError) as caught:
        train(network(), loader, SGD, seed=0, loss_fn=loss_fn, checkpoint=path if with_checkpoint else None)
    message = str(caught.value)
    assert message.startswith("the loss became nan in epoch 2 of 2, step 3 of 6; ")
    assert (f"last good checkpoint is {path} (epoch 1)" if with_checkpoint else "no checkpoint was written") in message
    assert "Lower lr (now 0.1)" in message


def test_bad_input_is_refused(network, loader, points):
    x, y = points.tensors
    empty = DataLoader(points, batch_size=128, drop_last=True)
    cases = [
        ({"loader": []}, "the training loader yields nothing"),
        ({"loader": empty}, "smaller than one batch"),
        ({"loader": (batch for batch in [(x, y)])}, "has no len"),
        ({"resume": True}, "resume needs the path of a checkpoint"),
        ({"loss_fn": lambda o, b: o}, r"must return the batch's mean, a tensor with one value, not \(16, 3\)"),
        ({"settings": OptimizerConfig(label_smoothing=0.1), "loss_fn": lambda o, b: o.mean()}, "can't act on your own loss_fn"),
        ({"loader": [x]}, "need batches"),
        ({"forward_fn": lambda m, i: {"out": m(i)}}, "can't read the network's output of type dict"),
        ({"mixed_precision": "fp16"}, "mixed_precision = 'fp16' can't be had here"),
    ]
    for change, text in cases:
        arguments = {"loader": loader, "settings": SGD} | change
        with pytest.raises(TrainingError, match=text):
            train(network(), arguments.pop("loader"), arguments.pop("settings"), seed=0, **arguments)
    frozen = network().requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter of the network requires a gradient"):
        train(frozen, loader, SGD, seed=0)


def test_float64_networks_train_in_float64(network, points):
    model = network().double()
    x, y = points.tensors
    train(model, [(x.double(), y)], SGD, seed=0)
    assert {t.dtype for t in model.parameters()} == {torch.float64}


def test_a_tensor_data_set_of_images_trains_with_adamw():
    images = TensorDataset(torch.randn(24, 1, 8, 8), torch.arange(24) % 2)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    config = OptimizerConfig(epochs=6, lr=0.02, optimizer="adamw", warmup_epochs=0.5)
    log = train(model, DataLoader(images, batch_size=8, shuffle=True), config, seed=0)
    assert log.epochs[-1].loss < 0.5 * log.epochs[0].loss
