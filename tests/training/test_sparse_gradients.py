"""Sparse activation gradients: the numbers of METHODS E6.7, where they are pruned, and the switch of the training loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunus.config import OptimizerConfig
from prunus.errors import TrainingError
from prunus.training import train
from prunus.training.sparse_gradients import SparseGradients, ThresholdForecast, prune_gradient, threshold_of_normal


def test_threshold_and_zeros_of_a_normal_law() -> None:
    """Nine tenths lie below 1.645 deviations; 54.0 % become zero (25.9 % at a half, 69.2 % at 99 %); the mean stays."""
    generator = torch.Generator().manual_seed(0)
    gradient = 0.37 * torch.randn(2_000_000, generator=generator)
    threshold = threshold_of_normal(gradient, 0.9)
    assert float(threshold) / 0.37 == pytest.approx(1.645, abs=2e-3)
    pruned = prune_gradient(gradient, threshold, generator)
    assert float((pruned == 0).float().mean()) == pytest.approx(0.540, abs=2e-3)
    assert abs(float(pruned.mean() - gradient.mean())) < 1e-3
    for share, zeros in ((0.5, 0.259), (0.99, 0.692)):
        again = prune_gradient(gradient, threshold_of_normal(gradient, share), generator)
        assert float((again == 0).float().mean()) == pytest.approx(zeros, abs=2e-3)


def test_small_gradients_keep_their_expectation() -> None:
    """0.3 below a threshold of one is one in three of ten cases; minus likewise; what reaches the threshold stays."""
    generator = torch.Generator().manual_seed(1)
    gradient = torch.tensor([0.3, -0.3, 1.0, -2.5]).repeat(100_000, 1)
    pruned = prune_gradient(gradient, 1.0, generator)
    assert set(pruned[:, 0].tolist()) == {0.0, 1.0} and set(pruned[:, 1].tolist()) == {0.0, -1.0}
    torch.testing.assert_close(pruned.mean(0), gradient[0], atol=6e-3, rtol=0)
    assert torch.equal(pruned[:, 2:], gradient[:, 2:])
    assert torch.equal(prune_gradient(gradient, 0.0), gradient)


def test_thresholds_are_forecast_from_the_last_ones() -> None:
    forecast = ThresholdForecast(3)
    for value in (1.0, 2.0):
        forecast.push(torch.tensor(value))
        assert forecast.threshold is None
    forecast.push(torch.tensor(6.0))
    assert forecast.threshold == 3.0
    forecast.push(torch.tensor(7.0))
    assert forecast.threshold == 5.0
    forecast.push(torch.tensor(float("inf")))  # an overflow in half precision: as the last one
    assert forecast.threshold == pytest.approx(20 / 3)


def test_half_precision_keeps_the_expectation() -> None:
    """A hundredth of the threshold is one in a hundred cases, though half precision draws multiples of 1/2048 only."""
    gradient = torch.full((400_000,), 2.0**-10, dtype=torch.float16)
    pruned = prune_gradient(gradient, torch.tensor(0.1), torch.Generator().manual_seed(0))
    assert float(pruned.double().mean()) == pytest.approx(2.0**-10, rel=0.02)


class TwoKinds(nn.Module):
    """A convolution in front of a batch norm, then one without."""

    def __init__(self) -> None:
        super().__init__()
        self.normed, self.norm = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.plain, self.head = nn.Conv2d(6, 5, 3, padding=1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.normed(x)))
        return self.head(torch.relu(self.plain(x)).mean((2, 3)))


def steps(model: nn.Module, sparse: SparseGradients, number: int) -> list[dict[str, Tensor]]:
    """Gradients of every step on the same batch, the weights unchanged."""
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(8, 1, 6, 6, generator=generator), torch.arange(8) % 3
    found: list[dict[str, Tensor]] = []
    with sparse:
        for _ in range(number):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    return found


def test_what_is_pruned_depends_on_the_batch_norm() -> None:
    """The weight's gradient of a convolution without norm is exact (dL/dI is pruned); that of a normed one isn't, once five
    thresholds are known; the head's never changes. Without hooks afterwards, all is exact again."""
    torch.manual_seed(0)
    model = TwoKinds()
    sparse = SparseGradients(model, 0.9)
    sparse.start_epoch(0, 0, 0)
    found = steps(model, sparse, 7)
    exact = steps(model, SparseGradients(model, 0.0), 1)[0]
    assert all(torch.equal(step[name], exact[name]) for step in found[:5] for name in exact)
    assert all(torch.equal(found[6][n], exact[n]) for n in ("plain.weight", "plain.bias", "head.weight"))
    assert not torch.equal(found[6]["normed.weight"], exact["normed.weight"])
    assert not torch.equal(found[6]["norm.weight"], exact["norm.weight"])  # it lies below the pruned input of `plain`
    report = sparse.report()
    assert report is not None
    assert {name: layer["pruned"] for name, layer in report["layers"].items()} == {"normed": "output", "plain": "input"}


def test_multiply_adds_by_hand() -> None:
    """36 positions: 6 x 9 x 36 for the first weight (images need no gradient); 2 x 5 x 54 x 36 for the second layer."""
    torch.manual_seed(0)
    model = TwoKinds()
    sparse = SparseGradients(model, 0.9)
    sparse.start_epoch(0, 0, 0)
    steps(model, sparse, 12)
    report = sparse.report()
    assert report is not None
    layers = report["layers"]
    assert (layers["normed"]["macs"], layers["plain"]["macs"]) == (1944, 19440) and report["macs"] == 21384
    expected = (1944 * layers["normed"]["zeros"] + 19440 * layers["plain"]["zeros"]) / 21384
    assert report["saved"] == pytest.approx(expected)
    assert layers["plain"]["zeros"] == layers["plain"]["zeros_before"] > 0.2  # by its ReLU alone
    assert layers["normed"]["zeros"] > layers["normed"]["zeros_before"] + 0.1


def test_the_mean_gradient_is_right() -> None:
    """Over many draws the weight's gradient is the exact one; a hard threshold at the same sparsity isn't."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    sparse = SparseGradients(model, 0.9)
    sparse.start_epoch(0, 0, 0)
    drawn = torch.stack([step["0.weight"] for step in steps(model, sparse, 805)[5:]])
    exact = steps(model, SparseGradients(model, 0.0), 1)[0]["0.weight"]
    error = (drawn.mean(0) - exact).abs() / (drawn.std(0) / 800**0.5)
    assert float(error.max()) < 4.5


def images(number: int = 40) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(number, 1, 6, 6, generator=generator), torch.arange(number) % 3)
    return DataLoader(data, batch_size=8, shuffle=True)


def fit(model: nn.Module, epochs: int, share: float = 0.9, **options: object):
    settings = OptimizerConfig(epochs=epochs, lr=0.05, warmup_epochs=0, sparse_gradients=share)
    return train(model, images(), settings, seed=3, **options)


def network() -> nn.Module:
    torch.manual_seed(0)
    return TwoKinds()


def test_the_switch_reports_every_epoch_and_leaves_no_hooks() -> None:
    model, plain = network(), network()
    log = fit(model, 2)
    assert fit(plain, 2, share=0.0).epochs[0].sparse_gradients is None
    first, second = (epoch.sparse_gradients for epoch in log.epochs)
    # The five steps of the first epoch only fill the forecast; the second prunes in each of its five.
    assert first["layers"]["normed"]["pruned"] == "nothing" and second["layers"]["normed"]["pruned"] == "output"
    assert second["saved"] > first["saved"]
    assert not torch.equal(model.normed.weight, plain.normed.weight)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert log.to_dict()["epochs"][1]["sparse_gradients"] == second


def test_a_resumed_run_is_the_straight_one_to_the_bit(tmp_path: Path) -> None:
    straight, cut = network(), network()
    whole = fit(straight, 3)

    def stop(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cut, 3, checkpoint=tmp_path / "c", on_epoch=stop)
    cut = network()
    again = fit(cut, 3, checkpoint=tmp_path / "c", resume=True)
    assert again.resumed_from == 2
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), cut.state_dict().values(), strict=True))
    assert [e.sparse_gradients for e in again.epochs] == [e.sparse_gradients for e in whole.epochs]


def test_a_network_without_convolutions_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(TrainingError, match=r"sparse_gradients = 0\.9 .* this network has none: set it to 0"):
        fit(model, 1)
