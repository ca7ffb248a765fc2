"""Widths that Python holds: what surgery sets, what it leaves alone, and that a record repeats it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from nets import NETS, Program, conv, random_plan
from prunus.errors import ArtifactError
from prunus.graph import trace
from prunus.surgery import SurgeryRecord, remove
from prunus.surgery.remove import apply_record
from prunus.types import PruningPlan


def _plan(keep: dict[str, list[int]], graph: prunus.ChannelGraph) -> PruningPlan:
    masks = {name: torch.zeros(graph[name].num_channels, dtype=torch.bool) for name in keep}
    for name, kept in keep.items():
        masks[name][kept] = True
    return PruningPlan(masks, graph.cost())


def test_held_widths_follow_the_plan_and_lists_stay_lists() -> None:
    net = NETS["held list of widths"]
    model = net.model()
    graph = trace(model, net.inputs())
    small, record = remove(model, graph, _plan({"stem": [0, 5], "stem#3": [1], "first": [0, 1, 2]}, graph))
    assert small.splits == [2, 3, 1] and model.splits == [6, 3, 3]
    assert record.repaired == ("splits",)
    assert [e["value"] for e in _edits(record) if e.get("attribute") == "splits"] == [[2, 3, 1]]


def test_a_width_with_a_name_of_its_own_class_is_not_called_a_repair() -> None:
    net = NETS["layer norm without parameters"]
    model = net.model()
    graph = trace(model, net.inputs())
    small, record = remove(model, graph, _plan({"stem": [0, 1, 6]}, graph))
    assert small.norm.normalized_shape == (3,)
    assert record.repaired == () and record.attributes["norm"]["normalized_shape"] == (3,)


@pytest.mark.parametrize(
    "name", ["held list of widths", "held width of a partial convolution", "index by buffer", "unflatten to a held shape"]
)
def test_a_record_repeats_the_repair(name: str, tmp_path: Path) -> None:
    net = NETS[name]
    model = net.model()
    graph = trace(model, net.inputs())
    small, record = remove(model, graph, random_plan(graph))
    assert record.repaired or name == "unflatten to a held shape"
    again = apply_record(model, SurgeryRecord.from_json(record.to_json()))
    assert torch.equal(again(net.inputs()), small(net.inputs()))
    prunus.save(small, record, tmp_path / "small.prunus")
    torch.manual_seed(7)
    loaded = prunus.load(tmp_path / "small.prunus", net.build()).eval()
    assert torch.equal(loaded(net.inputs()), small(net.inputs()))


@pytest.mark.parametrize("name", ["held list of widths", "index by buffer", "residual over permuted channels"])
def test_two_rounds_compose_to_one_record(name: str) -> None:
    net = NETS[name]
    model = net.model()
    graph = trace(model, net.inputs())
    first, record = remove(model, graph, random_plan(graph, seed=1, share=0.34))
    second_graph = trace(first, net.inputs())
    second, later = remove(first, second_graph, random_plan(second_graph, seed=2, share=0.34))
    both = SurgeryRecord.from_json(record.compose(later).to_json())
    assert torch.equal(apply_record(model, both)(net.inputs()), second(net.inputs()))


def test_channel_numbers_are_counted_anew() -> None:
    model = NETS["index by buffer"].model()  # order 2 0 3 1
    graph = trace(model, NETS["index by buffer"].inputs())
    small, record = remove(model, graph, _plan({"stem": [0, 2, 3]}, graph))
    assert small.order.tolist() == [1, 0, 2] and small.order.dtype == torch.int64
    assert record.repaired == ("order",)
    ema = copy.deepcopy(model)
    remove(model, graph, _plan({"stem": [0, 2, 3]}, graph), ema=ema)
    assert ema.order.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"index": "order", "values": []}', "channel numbers of 'order' are malformed"),
        ('{"index": "order", "values": [-1]}', "channel numbers of 'order' are malformed"),
        ('{"module": "", "attribute": "width", "value": -1}', "attribute 'width' has the value '-1'"),
        ('{"module": "", "attribute": "shape", "value": [-2, 4]}', "attribute 'shape' has the value"),
    ],
)
def test_damaged_records_are_refused(text: str, what: str) -> None:
    with pytest.raises(ArtifactError, match=what):
        SurgeryRecord.from_json('{"fingerprint": "", "versions": {}, "edits": [' + text + "]}")


def test_a_record_that_sets_what_the_network_lacks_is_refused() -> None:
    model = NETS["index by buffer"].model()
    graph = trace(model, NETS["index by buffer"].inputs())
    _, record = remove(model, graph, _plan({"stem": [0, 2, 3]}, graph))
    stranger = nn.Sequential(conv(3, 4), conv(4, 2))
    with pytest.raises(ArtifactError, match=r"no `stem.weight`|sets the buffer `order`"):
        apply_record(stranger, record)


def test_one_attribute_of_two_meanings_is_left_to_verification() -> None:
    """Both groups of width 6 are named `width` in one function but only one of them by its statement: `prune` stays exact."""

    def run(m: Program, x: torch.Tensor) -> torch.Tensor:
        y = m.first(x).relu()
        z = m.second(y).relu()
        a = y.view(x.shape[0], m.width, -1).mean(2)
        return m.head(z.view(x.shape[0], z.shape[1], -1).mean(2)) + m.other(a)

    torch.manual_seed(0)
    model = Program(run, first=conv(3, 6), second=conv(6, 6), head=nn.Linear(6, 2), other=nn.Linear(6, 2), width=6).eval()
    result = prunus.prune(model, torch.randn(2, 3, 8, 8), prunus.Budget(macs=0.5, tolerance=0.3), "l1", allocator="uniform")
    assert result.verification is not None and result.verification.passed
    assert result.model.width == result.model.first.out_channels < 6
    assert {g.name: g.num_channels for g in result.graph.prunable} == {"first": 6, "second": 6}


def _edits(record: SurgeryRecord) -> list[dict[str, object]]:
    return json.loads(record.to_json())["edits"]


def test_a_number_of_groups_that_equals_their_width_is_left_alone() -> None:
    """Four groups of four: the slots of a group go, so the number of groups must not be taken for their width."""

    def run(m: Program, x: torch.Tensor) -> torch.Tensor:
        y = m.stem(x)
        b, c, h, w = y.shape
        return m.head(y.view(b, m.groups, c // m.groups, h, w).sum(2))

    torch.manual_seed(0)
    model = Program(run, stem=conv(3, 16), head=conv(4, 2), groups=4).eval()
    assert trace(model, torch.randn(1, 3, 8, 8)).held[0].attribute == "groups"
    result = prunus.prune(model, torch.randn(2, 3, 8, 8), prunus.Budget(macs=0.6, tolerance=0.3), "l1")
    assert result.model.groups == 4 and result.graph["stem"].frozen_because is None
    assert result.model.stem.out_channels in (8, 12) and result.record.repaired == ()
    assert result.verification is not None and result.verification.max_error < 1e-12
