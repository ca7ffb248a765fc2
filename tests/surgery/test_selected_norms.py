"""Norms at the heads of branches choose their channels: which can, exactness, cost, files, copies, and what is refused."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus.errors import ArtifactError, PrunusWarning, UnsupportedNetwork
from prunus.surgery import SurgeryRecord, randomise, select_inputs, select_streams
from prunus.surgery.record import SelectEdit, SliceEdit
from small_nets import PreActivation, Residual, images

X = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
STREAM_NORMS = ["blocks.0.bn1", "blocks.1.bn1", "blocks.2.bn1", "norm"]


def selecting(net: nn.Module | None = None, x: Tensor = X, **options: Any) -> tuple[nn.Module, SurgeryRecord]:
    model = randomise(PreActivation() if net is None else net).double().eval()
    return model, select_streams(model, SurgeryRecord.nothing_removed(model), x, **options)


def plan_of(graph: prunus.ChannelGraph, gone: dict[str, list[int]]) -> prunus.PruningPlan:
    keep = {name: torch.ones(graph[name].num_channels, dtype=torch.bool) for name in gone}
    for name, channels in gone.items():
        keep[name][channels] = False
    return prunus.PruningPlan(keep, graph.cost())


def test_the_norms_of_a_stream_have_channels_of_their_own_and_the_stream_keeps_its() -> None:
    whole = randomise(PreActivation()).double().eval()
    model, record = selecting()
    assert torch.equal(model(X), whole(X))  # all channels, at first
    assert list(record.selections) == STREAM_NORMS
    graph = prunus.trace(model, X)
    own = graph["blocks.1.bn1"]
    assert {(m.parameter_axis.parameter, m.parameter_axis.role) for m in own.members} == {
        ("blocks.1.bn1.selected", "writes"),
        ("blocks.1.bn1.weight", "scales"),
        ("blocks.1.bn1.bias", "scales"),
        ("blocks.1.bn1.running_mean", "statistics"),
        ("blocks.1.bn1.running_var", "statistics"),
        ("blocks.1.conv1.weight", "reads"),
        ("blocks.1.shortcut.weight", "reads"),
    }
    inner = [f"blocks.{i}.conv1" for i in range(3)]
    assert {g.name for g in graph.prunable} == {*STREAM_NORMS, *inner}
    assert "its channels are numbered by a norm that selects some of them" in str(graph["stem"].frozen_because)
    assert graph.cost().macs == prunus.trace(whole, X).cost().macs


def test_removed_is_silenced_counted_and_smaller_for_this_reader_alone() -> None:
    """By hand: conv1 (8 -> 12, 3 x 3, 4 x 4 positions) and the shortcut (8 -> 12) lose three inputs each."""
    model, _ = selecting()
    graph = prunus.trace(model, X)
    plan = plan_of(graph, {"blocks.1.bn1": [0, 3, 7]})
    small, record = prunus.remove(model, graph, plan)
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (silent.blocks[1].conv1, silent.blocks[1].shortcut):
            layer.weight[:, [0, 3, 7]] = 0
    torch.testing.assert_close(small(X), silent(X), rtol=0, atol=1e-12)
    assert not torch.allclose(small(X), model(X))
    torch.testing.assert_close(prunus.silence(model, graph, plan)(X), silent(X), rtol=0, atol=0)
    assert small.blocks[1].bn1.selected.tolist() == [1, 2, 4, 5, 6] and small.blocks[1].bn1.num_features == 5
    assert small.blocks[1].conv1.in_channels == small.blocks[1].shortcut.in_channels == 5
    assert small.blocks[0].bn1.num_features == 8 and small.stem.out_channels == 8
    assert record.kept["blocks.1.bn1.selected"][0].tolist() == [1, 2, 4, 5, 6]
    with FlopCounterMode(display=False) as counter:
        small(X[:1])
    assert counter.get_total_flops() // 2 == graph.cost(plan).macs == prunus.trace(small, X).cost().macs
    assert graph.cost().macs - graph.cost(plan).macs == 3 * 12 * (9 + 1) * 16
    small.train()(X)  # statistics of the narrower norm
    assert torch.isfinite(small.blocks[1].bn1.running_mean).all()


def test_saved_loaded_and_pruned_again(tmp_path: Path) -> None:
    model, record = selecting()
    for gone in ({"blocks.0.bn1": [1], "blocks.1.conv1": [0, 5]}, {"blocks.0.bn1": [0, 4], "norm": [11]}):
        graph = prunus.trace(model, X)
        model, later = prunus.remove(model, graph, plan_of(graph, gone))
        record = SurgeryRecord.from_json(record.compose(later).to_json())
        prunus.save(model, record, tmp_path / "net.prunus")
        again = prunus.load(tmp_path / "net.prunus", PreActivation().double()).eval()
        assert torch.equal(again(X), model(X))
    assert again.blocks[0].bn1.selected.tolist() == [2, 3, 4, 6, 7]  # 1 of eight, then the first and the fifth of the rest
    assert record.kept["blocks.0.bn1.weight"][0].tolist() == [2, 3, 4, 6, 7]


def test_copies_pickles_types_and_average() -> None:
    model, _ = selecting()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), model(X)) and type(twin.norm) is type(model.norm)
        assert isinstance(twin.norm, nn.BatchNorm2d) and twin.norm.selected is not model.norm.selected
    assert model.half().norm.selected.tolist() == list(range(12))
    assert repr(model.norm).startswith("SelectingBatchNorm2d(12")


@pytest.mark.parametrize(
    ("criterion", "told"),
    [
        ("bn_scale", "not to have been trained with a sparsity penalty"),
        ("l1", "says nothing about 4 of 7 groups"),
        ("taylor", ""),
    ],
)
def test_pruned_by_a_criterion_and_proven(criterion: str, told: str) -> None:
    model, _ = selecting()
    data = [(X, torch.tensor([0, 1, 2]))] * 2
    budget = prunus.Budget(macs=0.8, tolerance=0.2)
    with pytest.warns(PrunusWarning, match=told) if told else nullcontext():
        result = prunus.prune(model, X, budget, criterion, data, _loss, "global", compensate="mean")
    assert result.verification is not None and result.verification.passed
    narrower = {name for name in STREAM_NORMS if name in result.plan.keep and not bool(result.plan.keep[name].all())}
    assert bool(narrower) == (criterion != "l1")  # no filters write these groups


def _loss(output: Tensor, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(output, batch[1])


def test_timms_pre_activation_network(tmp_path: Path) -> None:
    """Its norms have the activation inside; the first reads what nothing else does, and can be narrowed with it."""
    timm = pytest.importorskip("timm")

    def network() -> nn.Module:
        model = timm.create_model("resnetv2_18", num_classes=4, layers=(1, 2), channels=(8, 12), stem_chs=8)
        return model.double()

    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model, record = selecting(network(), x)
    assert len(record.selections) >= 2 and all(
        type(model.get_submodule(n)).__name__ == "SelectingBatchNormAct2d" for n in record.selections
    )
    result = prunus.prune(model, x, prunus.Budget(parameters=0.6, tolerance=0.2), "random")
    assert result.verification is not None and result.verification.passed
    assert any(not bool(result.plan.keep[name].all()) for name in record.selections)
    prunus.save(result.model, record.compose(result.record), tmp_path / "net.prunus")
    again = prunus.load(tmp_path / "net.prunus", network()).eval()
    assert torch.equal(again(x), result.model.eval()(x))


class Concatenated(nn.Module):
    """Two layers of a DenseNet: the second norm reads what the first does, and four channels more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(10)])
        self.convs = nn.ModuleList([nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 4, 3, padding=1)])
        self.head = nn.Conv2d(14, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return self.head(x).mean((2, 3))


def test_concatenated_features_are_selected_across_their_groups() -> None:
    model, record = selecting(Concatenated())
    graph = prunus.trace(model, X)
    assert list(record.selections) == ["norms.0", "norms.1"] and graph["norms.1"].num_channels == 10
    plan = plan_of(graph, {"norms.1": [0, 7], "norms.0": [5]})
    small, _ = prunus.remove(model, graph, plan)
    torch.testing.assert_close(small(X), prunus.silence(model, graph, plan)(X), rtol=0, atol=1e-12)
    assert small.convs[1].in_channels == 8 and small.head.in_channels == 14


class TestRefusals:
    def test_post_activation_networks(self) -> None:
        model = randomise(Residual())
        with pytest.raises(
            UnsupportedNetwork, match=r"no batch norm of this network can select its inputs: none reads channels that"
        ):
            select_streams(model, SurgeryRecord.nothing_removed(model), images())
        assert not any("selected" in name for name, _ in model.named_buffers())

    def test_kept_norms_read_all(self) -> None:
        _, record = selecting(keep="blocks.*")
        assert list(record.selections) == ["norm"]

    def test_a_norm_isnt_given_some_inputs_without_its_readers(self) -> None:
        model, record = selecting()
        with pytest.raises(
            UnsupportedNetwork, match="`norm` can't select its inputs: a SelectingBatchNorm2d isn't one of PyTorch's"
        ):
            select_inputs(model, record, {"norm": torch.tensor([0])})

    @pytest.mark.parametrize(
        ("edits", "why"),
        [
            (
                [SelectEdit("norm", torch.tensor([3, 1]))],
                "it selects 2 inputs of `norm`, and a norm's selection starts from all 12",
            ),
            (
                [SelectEdit("norm", torch.arange(12)), SliceEdit("norm.selected", 0, torch.tensor([0]), 12)],
                "it selects inputs of `norm`, whose weight isn't cut along",
            ),
            ([SliceEdit("norm.selected", 0, torch.tensor([0]), 12)], "this network has no `norm.selected`"),
        ],
    )
    def test_records_that_dont_fit(self, tmp_path: Path, edits: list[Any], why: str) -> None:
        net = PreActivation().double()
        record = SurgeryRecord(SurgeryRecord.nothing_removed(net).fingerprint, tuple(edits), {})
        prunus.save(net, record, tmp_path / "net.prunus")
        with pytest.raises(ArtifactError, match=why):
            prunus.load(tmp_path / "net.prunus", net)
