"""Surgery records: composing, JSON, and records that are damaged or hostile."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import prunus
from nets import EXACT, NETS, image, random_plan, residual
from prunus.graph import trace
from prunus.surgery import AttributeEdit, SliceEdit, SurgeryRecord, remove
from prunus.surgery.remove import apply_record


@pytest.mark.parametrize("name", EXACT)
def test_a_then_b_is_their_composition(name: str) -> None:
    net = NETS[name]
    model = net.model()
    graph = trace(model, net.inputs())
    once, a = remove(model, graph, random_plan(graph, 1))
    graph = trace(once, net.inputs())
    if not graph.prunable:
        pytest.skip("a single channel is left in every group")
    twice, b = remove(once, graph, random_plan(graph, 2))
    composed = a.compose(b)
    replayed = apply_record(model, composed)
    assert str(replayed) == str(twice)
    assert replayed.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(value, twice.state_dict()[key]) for key, value in replayed.state_dict().items())
    assert composed.fingerprint == a.fingerprint
    assert all(e.size > len(e.kept) for e in composed.edits if isinstance(e, SliceEdit))


def test_the_composition_of_no_surgery_and_one_is_that_one() -> None:
    model = residual()
    graph = trace(model, image())
    _, record = remove(model, graph, random_plan(graph))
    both = SurgeryRecord.nothing_removed(model).compose(record)
    assert both.to_json() == record.to_json()


def test_records_that_do_not_follow_one_another_are_refused() -> None:
    model = residual()
    graph = trace(model, image())
    _, record = remove(model, graph, random_plan(graph))
    with pytest.raises(
        prunus.ArtifactError, match=r"records don't follow one another: axis 0 of `\S+` is left with \d entries, but .* slices"
    ):
        record.compose(record)


def test_json_round_trip() -> None:
    net = NETS["layer norm"]
    graph = trace(net.model(), net.inputs())
    _, record = remove(net.model(), graph, random_plan(graph))
    again = SurgeryRecord.from_json(record.to_json())
    assert again.to_json() == record.to_json() and again.fingerprint == record.fingerprint and again.versions == record.versions
    for a, b in zip(record.edits, again.edits, strict=True):
        if isinstance(a, SliceEdit) and isinstance(b, SliceEdit):
            assert (a.parameter, a.axis, a.size) == (b.parameter, b.axis, b.size) and torch.equal(a.kept, b.kept)
            assert b.kept.dtype == torch.int64
        else:
            assert a == b
    assert AttributeEdit("norm", "normalized_shape", (4,)) in again.edits  # a tuple stays a tuple
    assert set(json.loads(record.to_json())["versions"]) == {"prunus", "torch"}


def _json(**edit: Any) -> str:
    return json.dumps({"fingerprint": "x", "versions": {}, "edits": [edit]})


_SLICE = {"slice": "stem.0.weight", "axis": 0, "kept": [0, 2], "size": 6}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it isn't JSON"),
        ("{", "it isn't JSON"),
        ("[]", "TypeError"),
        ("null", "TypeError"),
        ('{"edits": []}', "KeyError: 'versions'"),
        ('{"fingerprint": "x", "versions": {}, "edits": [1]}', "TypeError"),
        ('{"fingerprint": "x", "versions": [], "edits": []}', "AttributeError"),
        ("[" * 100_000, "it is nested too deeply"),
        (_json(nothing=1), "KeyError: 'value'"),
        (_json(**_SLICE | {"axis": -1}), "slice of 'stem.0.weight' is malformed"),
        (_json(**_SLICE | {"axis": True}), "slice of 'stem.0.weight' is malformed"),
        (_json(**_SLICE | {"kept": [], "size": 0}), "slice of 'stem.0.weight' is malformed"),
        (_json(**_SLICE | {"kept": [0.5]}), "slice of 'stem.0.weight' is malformed"),
        (_json(**_SLICE | {"kept": None}), "TypeError"),
        (_json(**_SLICE | {"size": 2**40}), "slice of 'stem.0.weight' is malformed"),
        (_json(**_SLICE | {"kept": [2, 0]}), r"indices of 'stem.0.weight' are not ascending within 0\.\.5"),
        (_json(**_SLICE | {"kept": [2, 2]}), r"are not ascending within 0\.\.5"),
        (_json(**_SLICE | {"kept": [-1, 2]}), r"are not ascending within 0\.\.5"),
        (_json(**_SLICE | {"kept": [0, 6]}), r"are not ascending within 0\.\.5"),
        (_json(**_SLICE | {"kept": [0, 2**70]}), r"are not ascending within 0\.\.5"),
        (_json(attribute="groups", module="stem.0", value="import os"), "attribute 'groups' has the value 'import os'"),
        (_json(attribute="groups", module="stem.0", value=-1), "attribute 'groups' has the value '-1'"),
        (_json(attribute="groups", module="stem.0", value=True), "attribute 'groups' has the value 'True'"),
        (_json(attribute="groups", module="stem.0", value=[2**60]), "attribute 'groups' has the value"),
    ],
)
def test_text_that_is_no_record_is_refused(text: str, message: str) -> None:
    with pytest.raises(prunus.ArtifactError, match=f"this isn't a surgery record: .*{message}"):
        SurgeryRecord.from_json(text)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (SliceEdit("nowhere.weight", 0, torch.tensor([0]), 6), "this network has no `nowhere.weight`"),
        (
            SliceEdit("stem.0.weight", 5, torch.tensor([0]), 6),
            r"`stem.0.weight` should have 6 entries on axis 5, here it is \(6, 3, 3, 3\)",
        ),
        (
            SliceEdit("stem.0.weight", 0, torch.tensor([0]), 99),
            r"`stem.0.weight` should have 99 entries on axis 0, here it is \(6, 3, 3, 3\)",
        ),
        (AttributeEdit("nowhere", "groups", 2), "it sets `nowhere.groups` to 2, here it is None"),
        (AttributeEdit("stem.0", "forward", 2), "it sets `stem.0.forward` to 2, here it is <bound method"),
        (AttributeEdit("stem.0", "_parameters", 2), "it sets `stem.0._parameters` to 2"),
        (AttributeEdit("stem.0", "training", 2), "it sets `stem.0.training` to 2, here it is False"),
        (AttributeEdit("stem.0", "kernel_size", 3), r"it sets `stem.0.kernel_size` to 3, here it is \(3, 3\)"),
    ],
)
def test_a_hostile_edit_is_refused_though_the_fingerprint_fits(edit: SliceEdit | AttributeEdit, message: str) -> None:
    model = residual()
    record = SurgeryRecord(SurgeryRecord.nothing_removed(model).fingerprint, (edit,), {})
    with pytest.raises(prunus.ArtifactError, match=f"^the record is of another architecture: {message}"):
        apply_record(model, record)
