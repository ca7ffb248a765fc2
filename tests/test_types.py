"""The values that travel: budgets and their units, plans, graphs, printing."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from prunus import Budget, ChannelGraph, ChannelGroup, Cost, GroupMember, InvalidBudget, ParameterAxis, Scores, UnknownName
from prunus.budgets import TARGETS, parse_limits
from prunus.types import PruningPlan, call_model, first_tensor

COST = Cost(macs=1000, parameters=100, activation_bytes=64)


class LinearCost:
    """A cost of 10 MACs a channel."""

    def cost(self, kept: Any) -> Cost:
        counts = {"a": 4, "b": 2} | dict(kept)
        return Cost(10 * sum(counts.values()), sum(counts.values()), 0)

    def costs(self, names: Any, kept: Any) -> Any:
        raise NotImplementedError


def member(parameter: str, axis: int, role: str, positions: list[list[int]]) -> GroupMember:
    return GroupMember(ParameterAxis(parameter, axis, role), torch.tensor(positions))  # type: ignore[arg-type]


def graph() -> ChannelGraph:
    a = ChannelGroup(
        "a", 4, (member("a.weight", 0, "writes", [[0, 4], [1, 5], [2, 6], [3, 7]]), member("a.bias", 0, "writes", [[0]] * 4))
    )
    b = ChannelGroup(
        "b", 2, (member("b.weight", 0, "writes", [[0], [1]]), member("c.weight", 1, "reads", [[0], [1]])), mixing=True
    )
    return ChannelGraph((a, b), (), Counter({"aten::lstm": 2}), "f" * 64, LinearCost(), notes=("a remark",))


# -- budgets


@pytest.mark.parametrize(
    ("target", "amount", "full", "limit"),
    [
        ("macs", 0.5, 1000, 500),
        ("macs", 1.0, 1000, 1000),
        ("macs", 300, 1000, 300),
        ("macs", 1, 1000, 1),  # an int is an amount, not the whole
        ("macs", "300", 1000, 300),
        ("macs", "1.5K", 9e9, 1500),
        ("macs", "120M", 9e9, 120e6),
        ("macs", "120m", 9e9, 120e6),
        ("macs", " 2 G ", 9e9, 2e9),
        ("macs", "0.1T", 9e12, 1e11),
        ("parameters", "2k", 9e9, 2000),
        ("parameters", "1.5e6", 9e9, 1.5e6),
        ("parameters", "3G", 9e9, 3e9),
        ("channels", "1K", 5000, 1000),
        ("channels", 7, 50, 7),
        ("activation_bytes", "1.5MB", 9e9, 1.5e6),
        ("activation_bytes", "64B", 9e9, 64),
        ("activation_bytes", "2KiB", 9e9, 2048),
        ("activation_bytes", "1MiB", 9e9, 2**20),
        ("activation_bytes", "1GiB", 9e9, 2**30),
        ("file_size", "3GB", 9e9, 3e9),
        ("file_size", "4KB", 9e9, 4000),
        ("latency", "8ms", 100, 8),
        ("latency", "0.5s", 100, 500),
        ("latency", "250us", 100, 0.25),
        ("latency", 0.25, 100, 25),
    ],
)
def test_a_float_is_kept_and_everything_else_is_absolute(target: str, amount: Any, full: float, limit: float) -> None:
    budget = Budget(**{target: amount})
    assert budget.limit(target, full) == pytest.approx(limit, rel=1e-12)
    assert budget.targets == {target: amount}


@pytest.mark.parametrize(
    ("amounts", "text"),
    [
        ({"macs": 0}, "macs=0 must be above zero"),
        ({"macs": 0.0}, r"macs=0\.0: a float is the fraction to keep, in \(0, 1\].*macs='120M'"),
        ({"macs": -3}, "macs=-3 must be above zero"),
        ({"macs": -0.5}, r"macs=-0\.5: a float is the fraction"),
        ({"macs": 1.5}, r"macs=1\.5: a float is the fraction to keep"),
        ({"latency": 8.0}, "latency='8ms'"),
        ({"file_size": 2.0}, r"file_size='1\.5MB'"),
        ({"macs": math.nan}, "macs=nan: a float is the fraction"),
        ({"macs": math.inf}, "macs=inf: a float is the fraction"),
        ({"macs": True}, "macs=True is not a number"),
        ({"macs": "0M"}, "macs='0M' must be above zero"),
        ({"macs": "-2M"}, "macs='-2M' must be above zero"),
        ({"macs": "5MB"}, "can't read budget macs='5MB': a number and a unit of K, M, G, T"),
        ({"latency": "8 minutes"}, "can't read budget latency='8 minutes': a number and a unit of MS, S, US"),
        ({"parameters": "many"}, "can't read budget parameters='many'"),
        ({"parameters": "1.2.3M"}, r"can't read budget parameters='1\.2\.3M'"),
        ({"parameters": "inf"}, "can't read budget parameters='inf'"),
        ({"parameters": "1e400"}, "parameters='1e400' must be above zero"),
        ({"activation_bytes": ""}, "can't read budget activation_bytes=''"),
        ({}, "needs at least one of macs, parameters, channels, activation_bytes, file_size, latency"),
        ({"macs": 0.5, "parameters": 0}, "parameters=0 must be above zero"),
        ({"macs": 0.5, "min_channels": -1}, "min_channels must be at least 0 and multiple_of at least 1"),
        ({"macs": 0.5, "multiple_of": 0}, "min_channels must be at least 0 and multiple_of at least 1"),
        ({"macs": 0.5, "max_pruning_ratio": 0.0}, r"max_pruning_ratio must be in \(0, 1\]"),
        ({"macs": 0.5, "max_pruning_ratio": 1.1}, r"max_pruning_ratio must be in \(0, 1\]"),
        ({"macs": 0.5, "tolerance": 1.0}, r"tolerance in \[0, 1\)"),
        ({"macs": 0.5, "tolerance": -0.1}, r"tolerance in \[0, 1\)"),
        ({"macs": 0.5, "tolerance": math.nan}, r"tolerance in \[0, 1\)"),
        ({"macs": [0.5]}, r"macs=\[0\.5\] is not a number"),
        ({"macs": 0.5, "runtime": "tensorrt"}, "runtime='tensorrt'.*eager, compile, onnxruntime"),
    ],
)
def test_wrong_budgets_say_what_is_wrong(amounts: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidBudget, match=text):
        Budget(**amounts)


def test_parse_reads_the_command_lines_form() -> None:
    budget = Budget.parse(" macs=0.5, parameters=1.2M,channels=40 ,latency=8ms", multiple_of=8)
    assert budget.targets == {"macs": 0.5, "parameters": "1.2M", "channels": 40, "latency": "8ms"}
    assert budget.multiple_of == 8
    assert isinstance(Budget.parse("macs=1").macs, int)
    assert isinstance(Budget.parse("macs=1.0").macs, float)
    assert Budget.parse("macs=1e-1").macs == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flops=0.5", "can't read budget 'flops=0.5': write TARGET=AMOUNT with TARGET one of macs, parameters"),
        ("macs", "can't read budget 'macs'"),
        ("macs=", "can't read budget 'macs='"),
        ("", "needs at least one of"),
        ("macs=-1", "must be above zero"),
        ("macs=nan", "a float is the fraction"),
        ("macs=2.5", "a float is the fraction"),
        ("macs=0.5,macs=0.6", "macs is given twice"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(InvalidBudget, match=message):
        Budget.parse(text)


def test_every_target_has_units_and_is_a_field() -> None:
    assert set(TARGETS) == {"macs", "parameters", "latency", "activation_bytes", "file_size", "channels"}
    assert set(TARGETS) <= {f.name for f in dataclasses.fields(Budget)}


# -- plans and graphs


def test_plan_counts() -> None:
    plan = PruningPlan({"a": torch.tensor([True, False, True, False]), "b": torch.tensor([True, True])}, COST)
    assert plan.counts() == {"a": 2, "b": 2}
    assert plan.num_removed == 2


def test_graph_lists_freezes_and_prices_its_groups() -> None:
    original = graph()
    assert [g.name for g in original] == ["a", "b"]
    assert original["b"].mixing
    assert original["a"].width_factor == 2
    assert original.cost().macs == 60
    assert original.cost(PruningPlan({"a": torch.tensor([True, False, False, False])}, COST)).macs == 30
    frozen = original.freeze({"a": "asked for"})
    assert [g.name for g in frozen.prunable] == ["b"]
    assert {g.name: g.frozen_because for g in frozen.frozen} == {"a": "asked for"}
    assert frozen.freeze({"a": "another reason"})["a"].frozen_because == "asked for"
    assert original["a"].frozen_because is None
    assert [m.parameter_axis.parameter for m in original["b"].with_role("reads")] == ["c.weight"]


def test_an_unknown_group_is_named() -> None:
    with pytest.raises(UnknownName, match="unknown group 'layer9': known are: a, b"):
        graph()["layer9"]


def test_graph_prints_a_table() -> None:
    assert str(graph().freeze({"a": "it is the output"})).splitlines() == [
        "group  channels  written by    state",
        "a      4         2 parameters  frozen: it is the output",
        "b      2         1 parameter   prunable, mixing",
        "60 MACs, 6 parameters; 1 of 2 groups prunable",
        "no rule for aten::lstm: 2 calls",
        "a remark",
    ]


def test_values_are_frozen() -> None:
    scores = Scores({"a": torch.ones(2)}, "mine")
    assert not scores.comparable
    for value, name in ((scores, "criterion"), (COST, "macs"), (Budget(macs=0.5), "macs"), (graph(), "groups")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)


# -- calls


class Sum(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor | float = 0.0) -> torch.Tensor:
        return a + b


def test_call_model_takes_tensor_tuple_dict_or_function() -> None:
    one, model = torch.ones(1), Sum()
    assert call_model(model, one) == 1
    assert call_model(model, (one, 2 * one)) == 3
    assert call_model(model, {"b": one, "a": 4 * one}) == 5
    assert call_model(model, [one, one], lambda m, xs: m(xs[0], 7.0)) == 8


def test_first_tensor() -> None:
    tensor = torch.ones(2)
    assert first_tensor({"x": [3, (tensor, torch.zeros(1))]}) is tensor
    assert first_tensor([1, "a", None]) is None


@pytest.mark.parametrize("limit", [1.0, -0.1, 0, -3, True, "0.3", None, float("nan")])
def test_limits_that_are_neither_share_nor_number(limit: Any) -> None:
    with pytest.raises(InvalidBudget, match=r"limit 'layer1\.\*': .* is neither the largest share removed there"):
        Budget(macs=0.5, limits={"layer1.*": limit})


def test_limits_on_the_command_line() -> None:
    assert parse_limits(["layer1.*=0.3", " conv1 = 16", "a=b=0.0"]) == {"layer1.*": 0.3, "conv1": 16, "a=b": 0.0}
    for text in ("layer1.*", "=0.3", "layer1.*=", "layer1.*=much"):
        with pytest.raises(InvalidBudget, match=r"can't read limit .*: write GLOB=SHARE"):
            parse_limits([text])
    with pytest.raises(InvalidBudget, match="'a' is given twice"):
        parse_limits(["a=0.1", "a=3"])


def test_budgets_on_latency() -> None:
    """The runtime may stand behind the amount; widths that the runtime likes are the default there."""
    from prunus.budgets import shown_amount

    parsed = Budget.parse("latency=0.5@onnxruntime,macs=0.7")
    assert (parsed.latency, parsed.runtime, parsed.macs) == (0.5, "onnxruntime", 0.7)
    assert Budget(latency="8ms@compile") == Budget(latency="8ms", runtime="compile")
    assert Budget(latency="8ms@compile").limit("latency", 100.0) == 8.0
    assert Budget(latency=0.5).liked_widths and Budget(macs=0.5, multiple_of="auto").liked_widths
    assert not Budget(latency=0.5, multiple_of=1).liked_widths and not Budget(macs=0.5).liked_widths
    assert [Budget(latency=0.5).measured, Budget(macs=0.5).measured] == [True, False]
    with pytest.raises(InvalidBudget, match="runtime='tpu' is none of eager, compile, onnxruntime"):
        Budget.parse("latency=0.5@tpu")
    with pytest.raises(InvalidBudget, match='multiple_of at least 1, or "auto"'):
        Budget(macs=0.5, multiple_of=0)
    assert [shown_amount("latency", ms) for ms in (8.2, 0.01234, 1234.5)] == ["8.2 ms", "0.0123 ms", "1,234 ms"]
    assert shown_amount("macs", 12e3) == "12,000 macs"
