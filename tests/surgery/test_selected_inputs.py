"""Layers that read some channels of a stream: exact, counted, replayed by `load`, renumbered by whatever surgery follows."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus.errors import ArtifactError, UnknownName, UnsupportedNetwork
from prunus.surgery import SurgeryRecord, add_bias, select_inputs
from prunus.surgery.record import SelectEdit
from prunus.types import PruningPlan


class Branches(nn.Module):
    """A stream of six channels that a branch, a second branch and a head read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.one, self.two = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.Conv2d(4, 6, 1)
        self.grouped = nn.Conv2d(6, 6, 1, groups=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.two(torch.relu(self.one(torch.relu(x))))
        x = x + self.grouped(x)
        return self.head(torch.relu(x).mean((2, 3)))


X = torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def branches() -> Branches:
    torch.manual_seed(0)
    net = Branches().double().eval()
    with torch.no_grad():
        for tensor in [*net.parameters(), net.norm.running_mean]:
            tensor.normal_(0, 0.5)
    return net


def selected(*pairs: tuple[str, list[int]]) -> tuple[Branches, SurgeryRecord]:
    net = branches()
    return net, select_inputs(net, SurgeryRecord.nothing_removed(net), {name: torch.tensor(kept) for name, kept in pairs})


def silenced(net: nn.Module, layer: str, kept: list[int]) -> nn.Module:
    """The whole network with zeros in the weights of the channels left out."""
    silent = copy.deepcopy(net)
    weight = silent.get_submodule(layer).weight
    with torch.no_grad():
        weight[:, [c for c in range(weight.shape[1]) if c not in kept]] = 0
    return silent


@pytest.mark.parametrize(("layer", "kept"), [("one", [0, 2, 5]), ("head", [1, 4])])
def test_outputs_are_those_with_zeros_in_the_weights_left_out(layer: str, kept: list[int]) -> None:
    net, record = selected((layer, kept))
    torch.testing.assert_close(net(X), silenced(branches(), layer, kept)(X), rtol=0, atol=1e-12)
    module = net.get_submodule(layer)
    assert module.weight.shape[1] == len(kept) == getattr(module, "in_channels", getattr(module, "in_features", None))
    assert record.selections[layer].tolist() == kept and record.kept[f"{layer}.weight"][1].tolist() == kept
    assert not torch.allclose(net(X), branches()(X))


def test_the_multiply_adds_are_those_that_torch_counts() -> None:
    net, _ = selected(("one", [0, 2, 5]))
    with FlopCounterMode(display=False) as counter:
        net(X[:1])
    macs = prunus.trace(net, X[:1]).cost().macs
    assert macs == counter.get_total_flops() // 2
    assert prunus.trace(branches(), X[:1]).cost().macs - macs == 3 * 4 * 9 * 16  # inputs x outputs x kernel x positions


def test_saved_and_loaded_into_a_fresh_network(tmp_path) -> None:
    net, record = selected(("one", [0, 2, 5]), ("head", [1, 4]))
    prunus.save(net, record, tmp_path / "net.prunus")
    again = prunus.load(tmp_path / "net.prunus", Branches().double()).eval()
    assert torch.equal(again(X), net(X))
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in branches().named_parameters()]
    assert torch.equal(pickle.loads(pickle.dumps(again))(X), net(X)) and torch.equal(copy.deepcopy(again)(X), net(X))


@pytest.mark.parametrize("gone", [[2], [1, 3], [0, 1, 4]], ids=["a selected one", "others", "both"])
def test_the_stream_is_pruned_afterwards(tmp_path, gone: list[int]) -> None:
    whole = branches()
    whole.grouped = nn.Conv2d(6, 6, 1).double()  # without groups, so that single channels can go
    net = copy.deepcopy(whole)
    record = select_inputs(net, SurgeryRecord.nothing_removed(whole), {"one": torch.tensor([0, 2, 5])})
    graph = prunus.trace(net, X[:1])
    keep: dict[str, Tensor] = {}
    for group in graph.prunable:
        for member in group.with_role("writes"):
            if member.parameter_axis.parameter == "stem.weight":
                keep[group.name] = torch.tensor([int(p) not in gone for p in member.positions[:, 0]])
    assert sum(int((~k).sum()) for k in keep.values()) == len(gone)
    plan = PruningPlan(keep, graph.cost())
    small, later = prunus.remove(net, graph, plan)
    silent = prunus.silence(net, graph, plan)
    torch.testing.assert_close(small(X), silent(X), rtol=0, atol=1e-12)
    left = [c for c in range(6) if c not in gone]
    wanted = [left.index(c) for c in (0, 2, 5) if c in left]
    assert small.one.selected.tolist() == wanted
    both = record.compose(later)
    assert both.selections["one"].tolist() == wanted and both.indices == {}
    prunus.save(small, both, tmp_path / "net.prunus")
    fresh = copy.deepcopy(whole)
    assert torch.equal(prunus.load(tmp_path / "net.prunus", fresh).eval()(X), small(X))


def test_selected_again() -> None:
    net, record = selected(("one", [0, 2, 5]))
    record = select_inputs(net, record, {"one": torch.tensor([1, 2])})
    torch.testing.assert_close(net(X), silenced(branches(), "one", [2, 5])(X), rtol=0, atol=1e-12)
    assert record.selections["one"].tolist() == [2, 5] and record.kept["one.weight"][1].tolist() == [2, 5]
    again = SurgeryRecord.from_json(record.to_json())
    assert again.selections["one"].tolist() == [2, 5]


def test_a_bias_behind_it(tmp_path) -> None:
    net, record = selected(("one", [0, 2, 5]))
    record = add_bias(net, record, "one")
    with torch.no_grad():
        net.one.bias += 0.5
    prunus.save(net, record, tmp_path / "net.prunus")
    assert torch.equal(prunus.load(tmp_path / "net.prunus", Branches().double()).eval()(X), net(X))


def test_gradients_flow_and_half_precision_keeps_the_numbers() -> None:
    net, _ = selected(("one", [0, 2, 5]))
    net(X).sum().backward()
    assert net.one.weight.grad is not None and net.one.weight.grad.abs().sum() > 0
    assert net.half().one.selected.tolist() == [0, 2, 5]


class TestRefusals:
    def test_an_unknown_layer(self) -> None:
        with pytest.raises(UnknownName, match=r"unknown layer 'on': did you mean one"):
            selected(("on", [0]))

    def test_groups(self) -> None:
        with pytest.raises(UnsupportedNetwork, match=r"`grouped` can't select its inputs: it has 2 groups, each with inputs"):
            selected(("grouped", [0]))

    def test_other_layers(self) -> None:
        with pytest.raises(UnsupportedNetwork, match=r"`norm` can't .*: a BatchNorm2d isn't one of PyTorch's own convolutions"):
            selected(("norm", [0]))

    @pytest.mark.parametrize("kept", [[], [0, 0], [2, 1], [0, 6], [-1, 2], [0, 1, 2, 3, 4, 5]])
    def test_inputs(self, kept: list[int]) -> None:
        net = branches()
        with pytest.raises(UnsupportedNetwork, match=r"`one` reads 6 channels: give ascending numbers of some of them, 0 to 5"):
            select_inputs(net, SurgeryRecord.nothing_removed(net), {"two": torch.tensor([0]), "one": torch.tensor(kept)})
        assert net.two.weight.shape[1] == 4  # nothing has been changed

    @pytest.mark.parametrize(
        ("edit", "why"),
        [
            (SelectEdit("on", torch.tensor([0])), r"it selects the inputs of the layer `on`, and there is none"),
            (SelectEdit("grouped", torch.tensor([0])), r"it selects the inputs of `grouped`, but it has 2 groups"),
            (SelectEdit("one", torch.tensor([0])), r"it selects 1 inputs of `one`, whose weight isn't cut to as many"),
        ],
    )
    def test_records_of_other_networks(self, tmp_path, edit: SelectEdit, why: str) -> None:
        net = branches()
        record = SurgeryRecord(SurgeryRecord.nothing_removed(net).fingerprint, (edit,), {})
        prunus.save(net, record, tmp_path / "net.prunus")
        with pytest.raises(ArtifactError, match=why):
            prunus.load(tmp_path / "net.prunus", net)

    def test_damaged_numbers(self) -> None:
        text = selected(("one", [0, 2, 5]))[1].to_json().replace('"values": [0, 2, 5]', '"values": [0, -2, 5]')
        with pytest.raises(ArtifactError, match=r"channel numbers of 'one' are malformed"):
            SurgeryRecord.from_json(text)
