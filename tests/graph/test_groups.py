"""The channel groups of every named difficulty, as worked out by hand, and the reasons of what is frozen."""

from __future__ import annotations

import re
import textwrap

import pytest
import torch
from torch import Tensor, nn

import prunus
from nets import NETS, G, Net, Program, conv, image, random_plan
from prunus.graph import OP_RULES, op_rule, trace
from prunus.graph.op_call import OpCall
from prunus.graph.op_rules import _found
from prunus.surgery import randomise, remove, silence, verify


@pytest.mark.parametrize("name", NETS)
def test_groups_are_those_worked_out_by_hand(name: str) -> None:
    net = NETS[name]
    graph = trace(net.model(), net.inputs())
    assert {g.name for g in graph} == set(net.groups)
    wrong = {g.name: difference for g in graph if (difference := net.groups[g.name].mismatch(g))}
    assert not wrong
    assert not graph.notes


def test_an_expectation_can_fail() -> None:
    """The comparison itself: any wrong field of an expected group is reported."""
    stem = trace(NETS["flatten"].model(), NETS["flatten"].inputs())["0"]
    right = {"num_channels": 8, "writes": "0.weight/0", "reads": "5.weight/1", "scales": "1.weight/0 1.bias/0"}
    assert G(**right).mismatch(stem) == ""  # type: ignore[arg-type]
    for change in (
        {"num_channels": 7},
        {"writes": "0.weight/1"},
        {"reads": ""},
        {"scales": ""},
        {"frozen": "x"},
        {"mixing": True},
    ):
        assert G(**(right | change)).mismatch(stem)  # type: ignore[arg-type]


def test_positions_after_flatten_are_the_channels_own_columns() -> None:
    group = trace(NETS["flatten"].model(), NETS["flatten"].inputs())["0"]
    (reader,) = group.with_role("reads")
    assert torch.equal(reader.positions, torch.arange(128).view(8, 16))
    (writer,) = group.with_role("writes")
    assert torch.equal(writer.positions, torch.arange(8).view(8, 1))


def test_positions_of_tied_parts() -> None:
    positions = {m.parameter_axis.parameter: m.positions.tolist() for m in trace(NETS["grouped"].model(), image())["1.0"].members}
    assert positions["1.0.weight"] == [[0, 2, 4], [1, 3, 5]]  # three groups that lose the same slot
    shuffled = trace(NETS["channel shuffle"].model(), image())["stem.0"]
    positions = {m.parameter_axis.parameter: m.positions.tolist() for m in shuffled.members}
    assert positions["branch.1.weight"] == [[0], [1], [2], [3]]
    assert positions["stem.0.weight"] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert positions["head.weight"] == [[0, 1], [2, 3], [4, 5], [6, 7]]  # the shuffle puts the halves side by side


def test_parts_of_a_chunk_need_not_lose_the_same_slots() -> None:
    """C2f: a channel of the first half is paired with one of the second, and removal in any such pairs is exact."""
    net = NETS["c2f"]
    model = randomise(net.model())
    graph = trace(model, net.inputs())
    pairs = next(m for m in graph["stem.0"].members if m.parameter_axis.parameter == "stem.0.weight").positions
    assert pairs.shape == (4, 2)
    assert bool((pairs.min(1).values < 4).all() and (pairs.max(1).values >= 4).all())


def test_a_reason_names_operation_module_and_line(tmp_path) -> None:
    """The line is the one of the network's own code, also if that code lies outside this package."""
    source = tmp_path / "their_network.py"
    source.write_text(
        textwrap.dedent("""
        from torch import nn

        class Roll(nn.Module):
            def forward(self, x):
                return x.roll(1, dims=1)
        """)
    )
    scope: dict[str, type[nn.Module]] = {}
    exec(compile(source.read_text(), str(source), "exec"), scope)
    model = nn.Sequential(conv(3, 4), scope["Roll"](), conv(4, 2))
    assert trace(model, image())["0"].frozen_because == (
        "channels are picked by absolute index in `aten.roll.default` (called in `1`), their_network.py:6"
    )


def test_the_table_shows_reasons_and_cost() -> None:
    text = str(trace(NETS["padded shortcut"].model(), image()))
    assert re.search(r"stem\s+4\s+2 parameters\s+frozen: padded with constant channels", text)
    assert re.search(r"[\d,]+ MACs, [\d,]+ parameters; 0 of 3 groups prunable", text)


@torch.library.custom_op("prunustest::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    """An operation that the table doesn't know."""
    return x / 2


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.fixture
def halving() -> nn.Module:
    return Program(lambda m, x: m.head(halve(m.stem(x)) + halve(m.stem(x))), stem=conv(3, 6), head=conv(6, 2)).eval()


def test_an_operation_without_a_rule_is_counted_and_freezes_what_it_touches(halving: nn.Module) -> None:
    graph = trace(halving, image())
    assert graph.unsupported_ops == {"prunustest.halve.default": 2}
    reason = graph["stem"].frozen_because or ""
    assert reason.startswith("no rule for this operation (register one with `prunus.op_rule`) in `prunustest.halve.default`")
    assert "no rule for prunustest.halve.default: 2 calls" in str(graph)


def test_a_registered_rule_makes_it_prunable_and_exact(halving: nn.Module) -> None:
    @op_rule("prunustest::halve")
    def follows(op: OpCall) -> None:
        op.follow(op.args[0])

    try:
        graph = trace(halving, image())
        assert not graph.unsupported_ops
        assert graph["stem"].frozen_because is None
        plan = random_plan(graph)
        small, _ = remove(halving, graph, plan)
        assert verify(silence(halving, graph, plan), small, image()).passed
    finally:
        del OP_RULES["prunustest::halve"]
        _found.clear()


def test_a_rule_name_without_a_namespace_is_refused() -> None:
    with pytest.raises(prunus.UnknownName, match="op rule for 'halve': write the operation as 'namespace::operation'"):
        op_rule("halve")


def test_mixing_groups_can_be_frozen() -> None:
    net = NETS["layer norm"]
    assert trace(net.model(), net.inputs())["stem"].frozen_because is None
    group = trace(net.model(), net.inputs(), mixing="freeze")["stem"]
    assert group.frozen_because == "an operation computes statistics over its channels, and mixing='freeze' was asked for"
    with pytest.raises(prunus.UnknownName, match=r"unknown value of mixing 'forbid': .*allow"):
        trace(net.model(), net.inputs(), mixing="forbid")  # type: ignore[arg-type]


def test_layers_hold_one_entry_a_call() -> None:
    net: Net = NETS["reused module"]
    graph = trace(net.model(), net.inputs())
    assert [layer.name for layer in graph.layers] == ["stem", "block", "block", "block", "head"]
    stem, block, head = graph.layers[0], graph.layers[1], graph.layers[-1]
    assert stem.kind == "convolution" and stem.kernel_size == (3, 3) and stem.output_size == (2, 6, 8, 8) and stem.groups == 1
    assert (
        torch.equal(block.reads, stem.writes) and torch.equal(block.writes, stem.writes) and torch.equal(head.reads, stem.writes)
    )
    assert stem.reads.tolist() == [-1, -1, -1] or bool((stem.reads >= 0).all())
