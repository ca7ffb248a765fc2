"""Least-squares reconstruction against NumPy and scikit-learn, layer by layer, and what it is given and leaves."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import prunus
from prunus.errors import EvidenceError, UnknownName, UnsupportedNetwork
from prunus.reconstruction import ReconstructionReport, paused_passes, reconstruct
from prunus.surgery import add_bias
from prunus.types import PruningPlan
from refitting import EVERY, Block, Two, data, error, half, settled
from small_nets import NETS


def _patches(x: Tensor, layer: nn.Conv2d) -> np.ndarray:
    """(groups, points, inputs of a group), image by image."""
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    rows = unfolded.movedim(1, 2).flatten(0, 1)
    return rows.reshape(len(rows), layer.groups, -1).movedim(1, 0).numpy()


@pytest.mark.parametrize(
    "second",
    [
        nn.Conv2d(8, 6, 3, padding=1),
        nn.Conv2d(8, 6, 1),
        nn.Conv2d(8, 6, 3, stride=2, padding=2, dilation=2),
        nn.Conv2d(8, 6, (1, 3), padding=(0, 1)),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
    ],
    ids=["3x3", "1x1", "strided, dilated", "1x3", "grouped", "depthwise"],
)
def test_a_convolution_is_what_lstsq_finds(second: nn.Conv2d) -> None:
    torch.manual_seed(0)
    full = Two(second, last=second.out_channels).double().eval()
    batches = data()
    small, record = half(full, batches[0], "first")
    report = reconstruct(small, full, record, batches, points=EVERY, ridge=0.0, skip=["last.*"])
    x = torch.cat(batches)
    kept = record.kept.get("second.weight", {}).get(0, torch.arange(second.out_channels))
    with torch.no_grad():
        y = full.second(torch.relu(full.first(x)))[:, kept].movedim(1, 3).flatten(0, 2).numpy()
        rows = _patches(torch.relu(small.first(x)), small.second)
    outputs = len(kept) // len(rows)
    for group, patches in enumerate(rows):
        found, *_ = np.linalg.lstsq(np.hstack([patches, np.ones((len(patches), 1))]), y[:, group * outputs :][:, :outputs])
        weight = small.second.weight.detach()[group * outputs :][:outputs].flatten(1).numpy()
        np.testing.assert_allclose(weight, found[:-1].T, atol=1e-9)
        np.testing.assert_allclose(small.second.bias.detach()[group * outputs :][:outputs].numpy(), found[-1], atol=1e-9)
    assert report.layers[-1].points == len(y)
    assert report.layers[0].ridge is None and report.layers[0].error_before < 1e-12  # it reads the images, as before


def test_a_linear_layer_is_what_scikit_learn_finds() -> None:
    torch.manual_seed(0)
    full = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4)).double().eval()
    x = torch.randn(80, 5, dtype=torch.float64)
    graph = prunus.trace(full, x[:1])
    small, record = prunus.remove(full, graph, PruningPlan({"0": torch.arange(16) < 7}, graph.cost()))
    reconstruct(small, full, record, [x[:50], x[50:]], ridge=0.0)
    with torch.no_grad():
        expected = LinearRegression().fit(torch.relu(small[0](x)).numpy(), full(x).numpy())
    np.testing.assert_allclose(small[2].weight.detach().numpy(), expected.coef_, atol=1e-9)
    np.testing.assert_allclose(small[2].bias.detach().numpy(), expected.intercept_, atol=1e-9)


def test_a_duplicate_is_made_up_for_entirely() -> None:
    full = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1)).double()
    with torch.no_grad():
        full[0].weight.fill_(1.0)
        full[0].bias.fill_(0.5)
        full[2].weight.copy_(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1))
    batches = data(channels=1)
    small, record = half(full, batches[0])
    reconstruct(small, full, record, batches, ridge=0.0)
    assert error(small, full, batches[0]) < 1e-20
    assert small[2].weight.item() == pytest.approx(3.0)  # METHODS: least squares restores 3


def test_the_constant_goes_into_the_batch_norm_behind() -> None:
    torch.manual_seed(1)
    batches = data()
    full = settled(Two(nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))), batches)
    with torch.no_grad():
        full.second[1].weight.uniform_(0.5, 2)
    small, record = half(full, batches[0], "first")
    report = reconstruct(small, full, record, batches, points=EVERY, ridge=0.0, skip=["second.3.*"])
    x = torch.cat(batches)
    with torch.no_grad():
        y = full.second[:2](torch.relu(full.first(x))).movedim(1, 3).flatten(0, 2)
        got = small.second[:2](torch.relu(small.first(x))).movedim(1, 3).flatten(0, 2)
        rows = _patches(torch.relu(small.first(x)), small.second[0])[0]
    expected = LinearRegression().fit(rows, y.numpy()).predict(rows)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)
    assert [fit.intercept for fit in report.layers] == [True, True]


def test_without_bias_and_norm_there_is_no_intercept() -> None:
    torch.manual_seed(1)
    batches = data()
    full = Two(nn.Conv2d(8, 6, 1, bias=False)).double().eval()
    small, record = half(full, batches[0], "first")
    report = reconstruct(small, full, record, batches, points=EVERY, ridge=0.0)
    x = torch.cat(batches)
    with torch.no_grad():
        y = full(x).movedim(1, 3).flatten(0, 2).numpy()
        rows = _patches(torch.relu(small.first(x)), small.second)[0]
    expected = LinearRegression(fit_intercept=False).fit(rows, y).coef_
    np.testing.assert_allclose(small.second.weight.detach().flatten(1).numpy(), expected, atol=1e-9)
    assert not report.layers[-1].intercept and "`second.weight`" in str(report) and "without intercept" in str(report)


def test_a_bias_that_was_added_takes_the_intercept(tmp_path: Path) -> None:
    torch.manual_seed(1)
    batches = data()
    full = Two(nn.Conv2d(8, 6, 1, bias=False)).double().eval()
    small, record = half(full, batches[0], "first")
    record = add_bias(small, record, "second")
    report = reconstruct(small, full, record, batches, points=EVERY, ridge=0.0)
    x = torch.cat(batches)
    with torch.no_grad():
        y = full(x).movedim(1, 3).flatten(0, 2).numpy()
        rows = _patches(torch.relu(small.first(x)), small.second)[0]
    expected = LinearRegression().fit(rows, y)
    np.testing.assert_allclose(small.second.weight.detach().flatten(1).numpy(), expected.coef_, atol=1e-9)
    np.testing.assert_allclose(small.second.bias.detach().numpy(), expected.intercept_, atol=1e-9)
    assert report.layers[-1].intercept
    prunus.save(small, record, tmp_path / "small.prunus")
    again = prunus.load(tmp_path / "small.prunus", Two(nn.Conv2d(8, 6, 1, bias=False)).double()).eval()
    with torch.no_grad():
        assert torch.equal(again(x), small(x))


def test_a_residual_branch_makes_up_for_its_shortcut() -> None:
    torch.manual_seed(2)
    batches = data()
    full = settled(Block(), batches)
    small, record = half(full, batches[0], "middle")
    with torch.no_grad():
        small.stem.weight.add_(0.05 * torch.randn_like(small.stem.weight))  # an error that can't be mended where it is made
    reports = reconstruct(small, full, record, batches, points=EVERY, ridge=0.0, skip=["stem.*", "middle.*", "head.*"])
    x = torch.cat(batches)
    with torch.no_grad():
        shortcut, before = torch.relu(small.stem(x)), torch.relu(full.stem(x))
        rows = _patches(torch.relu(small.middle(shortcut)), small.last)[0]
        wanted = full.norm(full.last(torch.relu(full.middle(before)))) + before - shortcut
        got = small.norm(small.last(torch.relu(small.middle(shortcut)))).movedim(1, 3).flatten(0, 2)
    expected = LinearRegression().fit(rows, wanted.movedim(1, 3).flatten(0, 2).numpy()).predict(rows)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)
    assert [fit.in_sum for fit in reports.layers] == [True]


def test_a_layer_reads_what_the_refitted_layers_before_it_give() -> None:
    torch.manual_seed(3)
    batches = data()
    conv = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)]
    full = nn.Sequential(conv[0], nn.ReLU(), conv[1], nn.ReLU(), conv[2]).double().eval()
    small, record = half(full, batches[0])
    reconstruct(small, full, record, batches, points=EVERY, ridge=0.0)
    x = torch.cat(batches)
    with torch.no_grad():
        rows = _patches(small[:4](x), small[4])[0]
        y = full(x).movedim(1, 3).flatten(0, 2).numpy()
    np.testing.assert_allclose(small[4].weight.detach().flatten(1).numpy(), LinearRegression().fit(rows, y).coef_, atol=1e-8)


@pytest.mark.parametrize("name", ["Plain", "Residual", "Flattened", "Dense"])
def test_held_out_images_come_much_closer(name: str) -> None:
    torch.manual_seed(0)
    batches = data(4, 40, channels=1, size=8)
    full = settled(NETS[name](), batches)
    small, record = half(full, batches[0])
    before, shapes = error(small, full, data(1, 64, 1, 8)[0] + 0.1), {n: p.shape for n, p in small.named_parameters()}
    report = reconstruct(small, full, record, batches, points=20)
    assert error(small, full, data(1, 64, 1, 8)[0] + 0.1) < 0.3 * before
    assert {n: p.shape for n, p in small.named_parameters()} == shapes
    assert all(fit.error_after <= fit.error_before for fit in report.layers)


def test_a_layer_that_no_fit_improves_on_held_out_images_stays_as_it_was() -> None:
    full = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1)).double().eval()
    with torch.no_grad():
        full[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))  # positive values, negative values
        full[0].bias.zero_()
        full[2].weight.fill_(1.0)
    small, record = half(full, torch.ones(1, 1, 7, 7, dtype=torch.float64))
    images = -torch.ones(5, 1, 7, 7, dtype=torch.float64)  # four images of what was removed ...
    images[4] = 1.0
    images[4, 0, 0, 0] = -1.0  # ... and one, held out, with hardly any of it
    before = copy.deepcopy(small.state_dict())
    report = reconstruct(small, full, record, [images], points=EVERY)
    assert report.layers[-1].ridge is None and report.layers[-1].error_after == report.layers[-1].error_before > 0
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    assert "left as it was" in str(report)


def test_ill_conditioned_equations_get_a_ridge() -> None:
    torch.manual_seed(0)
    full = Two(nn.Conv2d(8, 6, 1)).double().eval()
    with torch.no_grad():
        full.first.weight[2:5] = full.first.weight[:1]
        full.first.bias[2:5] = full.first.bias[:1]
    batches = data()
    small, record = half(full, batches[0], "first")
    report = reconstruct(small, full, record, batches, ridge=0.0)
    assert report.layers[-1].ridge == 1e-6
    assert small.second.weight.abs().max() < 10 and report.layers[-1].error_after < report.layers[-1].error_before


def test_the_network_loads_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = data(2, 20, 1, 8)
    full = settled(NETS["Residual"](), batches)
    small, record = half(full, batches[0])
    reconstruct(small, full, record, batches)
    prunus.save(small, record, tmp_path / "small.prunus")
    again = prunus.load(tmp_path / "small.prunus", NETS["Residual"]().double()).eval()
    with torch.no_grad():
        assert torch.equal(again(batches[0]), small(batches[0]))


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paused_passes, "MOST_HELD", 0)  # beyond that
    full = settled(NETS["Plain"](), data(1, 10, 1, 8))
    small, record = half(full, data(1, 1, 1, 8)[0])
    alive: list[int] = []

    class Batches:
        """Batches of which nobody else keeps any; counts at every draw how many of the earlier ones are alive."""

        def __iter__(self) -> Iterator[Tensor]:
            given: list[weakref.ref[Tensor]] = []
            for seed in range(6):
                alive.append(sum(ref() is not None for ref in given))
                batch = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
                given.append(weakref.ref(batch))
                yield batch
                del batch

    reconstruct(small, full, record, Batches())
    assert max(alive) <= 1  # the loop's own variable holds the last one
    assert len(alive) > 6


class Peak(TorchDispatchMode):
    """The most bytes of tensors made while it is active that were alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: found for key, found in self.live.items() if not found[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


def test_what_lives_at_most_depends_on_the_batch_and_on_what_may_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    class Batches:
        def __init__(self, number: int) -> None:
            self.number = number

        def __iter__(self) -> Iterator[Tensor]:
            for seed in range(self.number):
                yield torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    peaks: list[int] = []
    for number, most in ((4, 0), (16, 0), (16, 100_000), (16, 2**31)):
        monkeypatch.setattr(paused_passes, "MOST_HELD", most)
        full = settled(NETS["Plain"](), data(1, 10, 1, 8))
        small, record = half(full, data(1, 1, 1, 8)[0])
        with Peak() as mode:
            reconstruct(small, full, record, Batches(number))
        peaks.append(mode.peak)
    assert peaks[1] <= 1.02 * peaks[0]
    assert peaks[2] <= peaks[1] + 100_000 < peaks[3]  # the limit holds, and is what holds
    assert peaks[0] > 8 * 144**2 * 2  # the normal equations of the largest layer, twice: the counter counts


class TestRefusals:
    def given(self) -> tuple[nn.Module, nn.Module, prunus.SurgeryRecord, list[Tensor]]:
        full = Two(nn.Conv2d(8, 6, 3)).double().eval()
        batches = data()
        return *half(full, batches[0], "first"), full, batches  # type: ignore[return-value]

    def test_data_that_come_once(self) -> None:
        small, record, full, batches = self.given()
        with pytest.raises(EvidenceError, match="gives them only once: pass a loader or a list"):
            reconstruct(small, full, record, iter(batches))

    def test_too_few_images(self) -> None:
        small, record, full, batches = self.given()
        with pytest.raises(EvidenceError, match="fewer than 5 images"):
            reconstruct(small, full, record, [batches[0][:4]])

    def test_networks_that_do_not_belong_together(self) -> None:
        _, record, full, batches = self.given()
        with pytest.raises(
            UnsupportedNetwork,
            match=r"`first\.weight` has 8 outputs in the small network, and the record leads from the full one to 4",
        ):
            reconstruct(full, full, record, batches)

    def test_an_unknown_layer(self) -> None:
        small, record, full, batches = self.given()
        with pytest.raises(UnknownName, match=r"unknown layer in skip 'secnd\.weight': did you mean second\.weight"):
            reconstruct(small, full, record, batches, skip=["secnd.weight"])

    def test_what_is_not_finite_and_leaves_no_trace(self) -> None:
        small, record, full, batches = self.given()
        before = copy.deepcopy(small.state_dict())
        bad = [batches[0], torch.full_like(batches[1], torch.nan)]
        with pytest.raises(EvidenceError, match=r"what `first.weight` reads or gives isn't finite"):
            reconstruct(small, full, record, bad)
        assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())

    def test_transposed_convolutions_are_named(self) -> None:
        full = Two(nn.ConvTranspose2d(8, 6, 2)).double().eval()
        batches = data()
        small, record = half(full, batches[0], "first")
        report = reconstruct(small, full, record, batches)
        assert isinstance(report, ReconstructionReport)
        assert report.not_fitted == {"second.weight": "it is a transposed convolution"}
        assert "`second.weight` isn't refitted: it is a transposed convolution" in str(report)
