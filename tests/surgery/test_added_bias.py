"""Biases that surgery adds: same outputs, replayed by `load`, sliced by whatever surgery follows."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import prunus
from nets import image, random_plan, residual
from prunus.graph import trace
from prunus.surgery import SurgeryRecord, add_bias, load, remove, save
from prunus.surgery.record import BiasEdit
from prunus.surgery.remove import apply_record


class Chain(nn.Module):
    """No bias anywhere; ``up`` is transposed with two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 4, 3, bias=False)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False)
        self.last = nn.Linear(6, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.up(self.one(x).relu()).mean((2, 3)))


def chain() -> Chain:
    torch.manual_seed(0)
    return Chain().double().eval()


X = torch.randn(2, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_one_entry_for_every_output_and_the_same_outputs() -> None:
    net = chain()
    before = net(X)
    record = add_bias(net, SurgeryRecord.nothing_removed(net), ["up", "last", "up"])
    assert torch.equal(net(X), before)
    assert (net.up.bias.shape, net.last.bias.shape, net.up.bias.dtype) == ((6,), (2,), torch.float64)
    assert record.edits == (BiasEdit("up"), BiasEdit("last"))
    assert record.biases == ("up", "last")
    with torch.no_grad():
        net.last.bias += torch.tensor([1.0, -2.0])
    torch.testing.assert_close(net(X), before + torch.tensor([1.0, -2.0], dtype=torch.float64))


def test_saved_and_loaded_into_a_fresh_network(tmp_path) -> None:
    net = chain()
    record = add_bias(net, SurgeryRecord.nothing_removed(net), "one")
    nn.init.constant_(net.one.bias, 0.25)
    save(net, record, tmp_path / "net.prunus")
    fresh = Chain().double()
    again = load(tmp_path / "net.prunus", fresh)
    assert torch.equal(again.eval()(X), net(X))
    assert fresh.one.bias is None


def test_surgery_before_and_after(tmp_path) -> None:
    """Prune, add a bias, prune again: the bias is sliced with its layer, and the composed record replays all three."""
    model = residual()
    graph = trace(model, image())
    once, first = remove(model, graph, random_plan(graph, 1))
    layer = next(n for n, m in once.named_modules() if isinstance(m, nn.Conv2d) and m.bias is None)
    record = add_bias(once, first, layer)
    nn.init.normal_(once.get_submodule(layer).bias)
    graph = trace(once, image())
    twice, later = remove(once, graph, random_plan(graph, 2))
    assert f"{layer}.bias" in later.kept
    composed = record.compose(later)
    assert composed.biases == (layer,)
    assert f"{layer}.bias" not in composed.kept
    save(twice, composed, tmp_path / "net.prunus")
    again = load(tmp_path / "net.prunus", residual())
    assert again.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(value, twice.state_dict()[key]) for key, value in again.state_dict().items())
    assert torch.equal(again.eval()(image()), twice.eval()(image()))


def test_json_round_trip() -> None:
    net = chain()
    record = add_bias(net, SurgeryRecord.nothing_removed(net), "one")
    again = SurgeryRecord.from_json(record.to_json())
    assert again.edits == (BiasEdit("one"),)
    assert '{"bias": "one"}' in record.to_json()


def test_a_shared_layer_goes_by_its_first_name() -> None:
    net = chain()
    net.alias = net.one
    record = add_bias(net, SurgeryRecord.nothing_removed(net), "alias")
    assert record.biases == ("one",)
    assert net.alias.bias is net.one.bias


class Own(nn.Linear):
    """It would not add a bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


def test_what_cannot_be_given_one() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 1), nn.ReLU(), Own(2, 2, bias=False))
    record = SurgeryRecord.nothing_removed(net)
    before = copy.deepcopy(net.state_dict())
    for names, text in (
        (["0", "1"], "`1` can't be given a bias: it has one"),
        (["0", "2"], "`2` can't be given a bias: a ReLU isn't a convolution or linear layer"),
        (["0", "3"], "`3` can't be given a bias: a Own isn't a convolution or linear layer"),
    ):
        with pytest.raises(prunus.UnsupportedNetwork, match=text):
            add_bias(net, record, names)
    with pytest.raises(prunus.UnknownName, match="unknown layer '7'"):
        add_bias(net, record, "7")
    assert net.state_dict().keys() == before.keys()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("nowhere", "it gives the layer `nowhere` a bias, and there is none of that name"),
        ("", "it gives the layer `` a bias, but a Chain isn't a convolution"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(layer: str, message: str) -> None:
    net = chain()
    record = SurgeryRecord(SurgeryRecord.nothing_removed(net).fingerprint, (BiasEdit(layer),), {})
    with pytest.raises(prunus.ArtifactError, match=re.escape(message)):
        apply_record(net, record)
