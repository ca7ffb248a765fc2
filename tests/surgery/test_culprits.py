"""The groups at fault are found: by the place of the break, by kinds, in few checks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import prunus
import prunus.testing
from prunus.errors import PrunusWarning, VerificationFailed
from prunus.graph import trace
from prunus.surgery import prove as proving
from prunus.surgery import randomise, remove
from prunus.surgery.culprits import bisect, crash_of, find_culprits
from prunus.surgery.prove import Checks, prove
from prunus.testing import random_plan
from prunus.types import ChannelGraph, PruningPlan


class Block(nn.Module):
    """Two convolutions; ``width`` is a number that Python holds where no attribute has it."""

    def __init__(self, width: int, held: bool, scaled: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(6, width, 1), nn.Conv2d(width, 6, 1)
        self.check = (lambda x: x.reshape(len(x), width, 16).reshape(x.shape)) if held else (lambda x: x)
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        y = self.check(self.one(x))
        return x + self.two(y / y.shape[1] if self.scaled else y)


class Stack(nn.Module):
    """Blocks of one kind, some of which hold their width, and an entry and an exit of another kind."""

    def __init__(self, held: set[int], scaled: set[int] = frozenset(), blocks: int = 12) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, 6, 1)
        self.side = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 6, 1))
        self.blocks = nn.ModuleList([Block(8, i in held, i in scaled) for i in range(blocks)])
        self.exit = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x) + self.side(x)
        for block in self.blocks:
            x = block(x)
        return self.exit(x)


def unfrozen(model: nn.Module, x: Tensor) -> ChannelGraph:
    """The graph of the network as if the trace had seen no width in Python."""
    graph = trace(model, x)
    return replace(graph, groups=tuple(replace(g, frozen_because=None) if g.name != "exit" else g for g in graph.groups))


@pytest.fixture(scope="module")
def dozen() -> tuple[ChannelGraph, PruningPlan]:
    graph = trace(Stack(set()), torch.randn(2, 3, 4, 4))
    return graph, random_plan(graph)


def found(dozen: tuple[ChannelGraph, PruningPlan], culprits: set[str], near: str | None = None) -> tuple[list[str], int]:
    """What is found if these groups break the network, and the number of checks that it took."""
    calls: list[int] = []

    def breaks(plan: PruningPlan) -> bool:
        calls.append(1)
        return bool(culprits & set(plan.keep))

    return find_culprits(*dozen, breaks, near), len(calls)


def blocks(*numbers: int) -> list[str]:
    return [f"blocks.{i}.one" for i in numbers]


def test_one_culprit_among_a_dozen(dozen: tuple[ChannelGraph, PruningPlan]) -> None:
    for i in range(12):
        names, calls = found(dozen, set(blocks(i)))
        assert names == blocks(i)
        assert calls <= 10


def test_a_whole_kind_is_given_up_after_its_first_and_last_member_failed(dozen: tuple[ChannelGraph, PruningPlan]) -> None:
    names, calls = found(dozen, set(blocks(*range(12))))
    assert names == blocks(*range(12))
    assert calls <= 4


def test_only_the_members_at_fault_are_given_up_where_the_kind_is_mixed(dozen: tuple[ChannelGraph, PruningPlan]) -> None:
    assert found(dozen, set(blocks(2, 9)))[0] == blocks(2, 9)
    assert found(dozen, {"entry", "side.0", *blocks(4)})[0] == ["entry", "side.0", *blocks(4)]


def test_the_place_of_the_break_comes_first(dozen: tuple[ChannelGraph, PruningPlan]) -> None:
    """What breaks elsewhere is found in another round, once this is mended."""
    assert found(dozen, {"side.0", *blocks(*range(12))}, near="blocks.5")[0] == blocks(*range(12))
    assert found(dozen, {"side.0", *blocks(*range(12))})[0] == ["side.0", *blocks(*range(12))]
    assert found(dozen, {"side.0"}, near="blocks.5")[0] == ["side.0"]


def test_bisection_gives_up_the_second_half_where_only_both_together_fail() -> None:
    suspects = [["a"], ["b"], ["c"], ["d"]]
    assert bisect(suspects, lambda part: {"a", "d"} <= {name for names in part for name in names}) == [["d"]]
    assert bisect(suspects, lambda part: ["b"] in list(part)) == [["b"]]


def test_a_crash_names_the_innermost_module_and_the_line_of_the_program() -> None:
    model = Stack({3})
    x = torch.randn(2, 3, 4, 4)
    assert crash_of(model, x) is None
    model.blocks[3].one = nn.Conv2d(6, 5, 1)
    crash = crash_of(model, x)
    assert crash is not None
    assert crash.module == "blocks.3"
    assert crash.line.startswith("test_culprits.py:")
    assert crash.error == "RuntimeError: shape '[2, 8, 16]' is invalid for input of size 160"
    model.blocks[3] = Block(8, False)
    model.exit = nn.Conv2d(7, 4, 1)
    crash = crash_of(model, x)
    assert crash is not None and crash.module == "exit" and crash.line.startswith("test_culprits.py:")
    assert not nn.modules.module._global_forward_pre_hooks and not nn.modules.module._global_forward_hooks


def test_a_proof_freezes_the_culprit_with_where_it_breaks() -> None:
    x = torch.randn(2, 3, 4, 4)
    model = randomise(Stack({3}, blocks=5))
    with pytest.warns(PrunusWarning, match=r"frozen after verification failed on them: blocks\.3\.one; the plan is made again"):
        proof = prove(Checks(model, x), unfrozen(model, x), random_plan)
    assert list(proof.frozen) == ["blocks.3.one"]
    reason = proof.frozen["blocks.3.one"]
    assert reason.startswith(
        "removal differs from silencing (the forward pass after removal fails: RuntimeError: shape '[2, 8, 16]'"
    )
    assert "; it breaks in `blocks.3`, test_culprits.py:" in reason
    assert proof.notes == ("frozen after verification failed on them: blocks.3.one",)
    assert proof.report.passed and proof.report.max_error < 1e-12
    small, _ = remove(model, proof.graph, proof.plan)
    assert [block.one.out_channels for block in small.blocks] == [4, 4, 4, 8, 4]


def test_a_wrong_value_is_found_without_a_crash() -> None:
    x = torch.randn(2, 3, 4, 4)
    model = randomise(Stack(set(), {1, 4}, blocks=6))
    with pytest.warns(PrunusWarning):
        proof = prove(Checks(model, x), trace(model, x), random_plan)
    assert set(proof.frozen) == {"blocks.1.one", "blocks.4.one"}


def test_surgery_that_breaks_down_costs_only_the_group_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 4, 4)
    model = randomise(Stack(set(), blocks=4))
    original = proving.silence

    def silence(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
        if "blocks.2.one" in plan.keep:
            raise IndexError("no such row")
        return original(model, graph, plan)

    monkeypatch.setattr(proving, "silence", silence)
    with pytest.warns(PrunusWarning):
        proof = prove(Checks(model, x), trace(model, x), random_plan)
    assert list(proof.frozen) == ["blocks.2.one"]
    assert "surgery itself breaks down, please report it: IndexError: no such row" in proof.frozen["blocks.2.one"]


def test_nothing_left_to_prove() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            return self.two(x / x.shape[1])

    x = torch.randn(2, 3, 4, 4)
    model = randomise(Scaled())
    with pytest.warns(PrunusWarning), pytest.raises(VerificationFailed, match="removal differs from silencing in every group"):
        prove(Checks(model, x), trace(model, x), random_plan)


class Hungry(nn.Module):
    """Asks for memory that isn't there once its first layer is narrower than 8, in one of the modes."""

    def __init__(self, training: bool, words: str) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.hungry_in_training, self.words = training, words

    def forward(self, x: Tensor) -> Tensor:
        if self.one.out_channels < 8 and self.training == self.hungry_in_training:
            raise RuntimeError(self.words)
        return self.two(self.one(x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
    ],
)
def test_too_little_memory_is_no_fault_of_the_network(training: bool, words: str) -> None:
    """Neither are groups frozen for it, nor does a check pass because of it."""
    model = Hungry(training, words)
    for prune in (
        lambda: prunus.prune(model, torch.randn(2, 3, 4, 4), prunus.Budget(channels=0.5)),
        lambda: prunus.testing.check_network(model, torch.randn(2, 3, 4, 4)),
    ):
        with pytest.raises(MemoryError, match=r"memory ran out\. A check holds up to five copies of the network.*verify=False"):
            prune()
