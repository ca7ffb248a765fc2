"""Batch-norm statistics against figures by hand; nothing else moves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.errors import EvidenceError
from prunus.reconstruction.statistics import recalibrate


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.01), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    )
    for name in ("running_mean", "running_var"):
        for layer in (net[1], net[5]):
            getattr(layer, name).uniform_(0.5, 2.0)
    return net


def batches(n=3, size=5):
    generator = torch.Generator().manual_seed(2)
    return [(3.0 + 2.0 * torch.randn(size, 2, 6, 6, generator=generator), torch.zeros(size)) for _ in range(n)]


def state(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_mean_and_unbiased_variance_of_one_layer_by_hand():
    net, data = network(), batches()
    assert recalibrate(net, data) == 15
    with torch.no_grad():
        planes = [net[0](x).transpose(0, 1).flatten(1) for x, _ in data]
    torch.testing.assert_close(net[1].running_mean, torch.stack([p.mean(1) for p in planes]).mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([p.var(1, unbiased=True) for p in planes]).mean(0))
    assert net[1].num_batches_tracked.item() == 3


def test_dropout_stays_off_in_front_of_the_second_layer():
    net = network()
    (x, y), *_ = batches(1)
    recalibrate(net, [(x, y)])
    with torch.no_grad():
        normed = nn.functional.batch_norm(net[0](x), None, None, net[1].weight, net[1].bias, training=True)
        planes = net[4](normed.relu()).transpose(0, 1).flatten(1)
    torch.testing.assert_close(net[5].running_mean, planes.mean(1))
    torch.testing.assert_close(net[5].running_var, planes.var(1))


def test_nothing_else_changes_and_the_result_is_deterministic():
    first, second = network(), network()
    first[3].eval()
    first[5].eval()
    first[0].weight.grad = torch.ones_like(first[0].weight)
    before = state(first)
    rng = torch.get_rng_state()
    recalibrate(first, batches())
    recalibrate(second, batches())
    moved = {name for name, tensor in state(first).items() if not torch.equal(tensor, before[name])}
    assert moved == {f"{i}.{s}" for i in (1, 5) for s in ("running_mean", "running_var", "num_batches_tracked")}
    assert all(torch.equal(t, second.state_dict()[n]) for n, t in first.state_dict().items())
    assert [m.training for m in first] == [True, True, True, False, True, False]
    assert (first[1].momentum, first[5].momentum) == (0.01, 0.1)
    assert torch.equal(first[0].weight.grad, torch.ones_like(first[0].weight))
    assert torch.equal(torch.get_rng_state(), rng)


def test_max_batches_inputs_alone_and_forward_fn():
    by_limit, by_hand, by_forward = network(), network(), network()
    assert recalibrate(by_limit, batches(), max_batches=2) == 10
    assert recalibrate(by_hand, [x for x, _ in batches()[:2]]) == 10
    seen = recalibrate(by_forward, [{"image": x} for x, _ in batches()[:2]], forward_fn=lambda net, batch: net(batch["image"]))
    assert seen == 10
    for other in (by_hand, by_forward):
        assert all(torch.equal(t, other.state_dict()[n]) for n, t in by_limit.state_dict().items())
    before = state(by_limit)
    assert recalibrate(by_limit, batches(), max_batches=0) == 0
    assert all(torch.equal(t, before[n]) for n, t in by_limit.state_dict().items())


def test_no_more_batches_are_drawn_than_needed():
    drawn = []

    def source():
        for batch in batches():
            drawn.append(1)
            yield batch

    recalibrate(network(), source(), max_batches=2)
    assert len(drawn) == 2
    assert recalibrate(nn.Conv2d(2, 3, 1), source()) == 0
    assert recalibrate(nn.BatchNorm2d(2, track_running_stats=False), source()) == 0
    assert len(drawn) == 2


def test_a_layer_that_no_batch_reaches_keeps_its_statistics():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.side = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
            self.side.running_mean.fill_(5.0)

        def forward(self, x):
            return (self.main(x), self.side(x)) if self.training else self.main(x)

    net = Auxiliary()
    recalibrate(net, batches())
    assert net.side.running_mean.tolist() == [5.0, 5.0]
    assert net.main.running_mean.mean().item() == pytest.approx(3.0, abs=0.3)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "the batches for batch-norm statistics yield nothing"),
        ([(torch.full((2, 2, 6, 6), float("nan")), torch.zeros(2))], "the running_mean of 1 isn't finite: .* put back"),
        ([*batches(1), (torch.zeros(1, 2, 3, 3), torch.zeros(1))], "batch 1 is too small to have a variance"),
        (["text"], "a batch is a str"),
    ],
)
def test_bad_batches_are_refused_and_the_old_statistics_stay(data, text):
    net = network()
    before = state(net)
    with pytest.raises(EvidenceError, match=text):
        recalibrate(net, data)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert (net[1].momentum, net[1].training) == (0.01, True)


def test_a_negative_limit_is_refused():
    with pytest.raises(EvidenceError, match="max_batches = -1"):
        recalibrate(network(), batches(), max_batches=-1)


def test_reconstruction_does_not_import_training():
    file = Path(__file__).parents[2] / "src" / "prunus" / "reconstruction" / "statistics.py"
    modules = {n.module for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)}
    assert {m for m in modules if m.startswith("prunus")} == {"prunus.errors", "prunus.types"}
