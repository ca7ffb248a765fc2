"""What every row of `ALLOCATORS` must do, counted on the small network that really comes out."""

from __future__ import annotations

import math
import re
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus import ALLOCATORS, Budget, BudgetNotMet, InvalidBudget, NothingPruned, UnknownName
from prunus.allocation import allocate
from prunus.types import PruningPlan
from small_nets import NETS, build, images

FINE = ("Plain", "Residual", "Dense", "Flattened")  # nets with enough channels to come within 1 % of a budget
every_allocator = pytest.mark.parametrize("allocator", ALLOCATORS)
TARGETS = ("macs", "parameters", "channels", "activation_bytes")

Case = tuple[nn.Module, prunus.ChannelGraph, prunus.Scores]


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for name in NETS:
        model = build(name)
        graph = prunus.trace(model, images())
        found[name] = (model, graph, prunus.score(model, graph, "l1"))
    return found


@pytest.fixture(autouse=True)
def accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that ask for it are handed an accuracy: what a plan removes costs the square of its share, each group at a rate of
    its own."""
    allocate = prunus.allocate

    def evaluate(plan: PruningPlan) -> float:
        shares = {name: 1 - float(mask.float().mean()) for name, mask in plan.keep.items()}
        return 0.9 - sum((1 + zlib.crc32(name.encode()) % 7) / 7 * share**2 for name, share in shares.items())

    def with_accuracy(graph: Any, scores: Any, budget: Any, allocator: Any, **options: Any) -> PruningPlan:
        handed_in: dict[str, Any] = {"evaluate": evaluate} if isinstance(allocator, str) else {}
        if allocator == "search":
            handed_in["trials"] = 5
        return allocate(graph, scores, budget, allocator, **handed_in, **options)

    monkeypatch.setattr(prunus, "allocate", with_accuracy)


def count(model: nn.Module, graph: prunus.ChannelGraph) -> dict[str, float]:
    """Cost of a network, counted on it: by torch's counter, by its tensors, and by a trace of its own."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images())
    tensors = dict(model.named_parameters())
    writers = [g.with_role("writes")[0].parameter_axis for g in graph.prunable]
    return {
        "macs": counter.get_total_flops() / 2,
        "parameters": sum(p.numel() for p in model.parameters()),
        "channels": sum(tensors[w.parameter].shape[w.axis] for w in writers),
        "activation_bytes": prunus.trace(model, images()).cost().activation_bytes,
    }


def check(case: Case, plan: PruningPlan, budget: Budget) -> None:
    """Every target is met, the tightest one within the tolerance, and the plan says so itself."""
    model, graph, _ = case
    full, small = count(model, graph), count(prunus.remove(model, graph, plan)[0], graph)
    limits = {target: math.floor(budget.limit(target, full[target]) + 1e-9) for target in budget.targets}
    assert all(small[target] <= limits[target] for target in limits)
    assert min(1 - small[target] / limits[target] for target in limits) <= budget.tolerance
    assert [(t["target"], t["requested"], t["full"], t["achieved"], t["met"]) for t in plan.provenance["budget"]] == [
        (target, pytest.approx(limits[target]), full[target], small[target], True) for target in limits
    ]
    assert plan.predicted.macs == small["macs"]
    assert plan.predicted.parameters == small["parameters"]


# -- the budget


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("net", FINE)
@every_allocator
def test_a_kept_fraction_is_met_from_below(cases: dict[str, Case], allocator: str, net: str, target: str) -> None:
    _, graph, scores = cases[net]
    tried = 0
    for fraction in (0.8, 0.6, 0.45):
        budget = Budget(**{target: fraction}, tolerance=0.1 if (net, target) in COARSE else 0.01)
        smallest = {g.name: max(1, -(-g.num_channels // 20)) for g in graph.prunable}
        if target != "channels" and getattr(graph.cost_model.cost(smallest), target) > budget.limit(
            target, getattr(graph.cost(), target)
        ):
            continue  # what no plan reaches is another test's matter
        check(cases[net], prunus.allocate(graph, scores, budget, allocator), budget)
        tried += 1
    assert tried >= 1


COARSE = {(net, "activation_bytes") for net in FINE} | {("Flattened", "macs"), ("Flattened", "channels")}
"""The peak is one layer's activations, and steps of 12 or 20 channels are coarser than 1 %."""


@pytest.mark.parametrize(
    "amounts",
    [
        {"macs": 60_000},
        {"macs": "60K"},
        {"parameters": "7.2K"},
        {"channels": 40},
        {"activation_bytes": "3KB", "tolerance": 0.2},
        {"macs": 0.5, "parameters": 0.5},
        {"macs": 0.9, "parameters": 0.3},
        {"macs": 0.3, "channels": 70},
        {"macs": 0.6, "parameters": "10K", "channels": 0.9, "activation_bytes": 1.0},
    ],
)
@every_allocator
def test_absolute_amounts_and_several_at_once(cases: dict[str, Case], allocator: str, amounts: dict[str, Any]) -> None:
    budget = Budget(**amounts)
    check(cases["Plain"], prunus.allocate(*cases["Plain"][1:], budget, allocator), budget)


@every_allocator
def test_a_tighter_budget_keeps_less(cases: dict[str, Case], allocator: str) -> None:
    kept = [
        prunus.allocate(*cases["Residual"][1:], Budget(macs=f / 100, tolerance=0.02), allocator).predicted.macs
        for f in range(90, 20, -5)
    ]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)


@every_allocator
def test_the_same_request_gives_the_same_plan(cases: dict[str, Case], allocator: str) -> None:
    first, again = (prunus.allocate(*cases["Dense"][1:], Budget(macs=0.4), allocator) for _ in range(2))
    assert all(torch.equal(first.keep[name], again.keep[name]) for name in first.keep)
    assert first.provenance == again.provenance
    assert allocator in (first.provenance["allocator"], "auto"), "auto names what it took"


@every_allocator
def test_equal_scores_are_no_obstacle(cases: dict[str, Case], allocator: str) -> None:
    """Ties fall to the later channels: what is kept is a prefix."""
    _, graph, _ = cases["Plain"]
    ties = prunus.Scores({g.name: torch.ones(g.num_channels) for g in graph.prunable}, "ties", comparable=True)
    budget = Budget(macs=0.5)
    plan = prunus.allocate(graph, ties, budget, allocator)
    check(cases["Plain"], plan, budget)
    for mask in plan.keep.values():
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)


@every_allocator
def test_the_best_channels_of_every_group_stay(cases: dict[str, Case], allocator: str) -> None:
    _, graph, scores = cases["Residual"]
    plan = prunus.allocate(graph, scores, Budget(macs=0.4), allocator)
    assert plan.num_removed > 10
    for name, mask in plan.keep.items():
        if not bool(mask.all()):
            assert float(scores.by_group[name][mask].min()) >= float(scores.by_group[name][~mask].max())


# -- floors and multiples


@every_allocator
def test_min_channels(cases: dict[str, Case], allocator: str) -> None:
    free = prunus.allocate(*cases["Plain"][1:], Budget(parameters=0.12), allocator)
    held = prunus.allocate(*cases["Plain"][1:], Budget(parameters=0.2, min_channels=11), allocator)
    assert min(free.counts().values()) < 11
    assert min(held.counts().values()) == 11


@every_allocator
def test_max_pruning_ratio(cases: dict[str, Case], allocator: str) -> None:
    """Of 16 channels at least ceil(16 * 0.4) = 7 stay, of 24 at least 10; that floor is the smallest network there is."""
    _, graph, scores = cases["Residual"]
    floors = {"stem.0": 7, "inner.0.0": 10, "inner.1.0": 10}
    smallest = graph.cost_model.cost(floors).macs
    held = prunus.allocate(graph, scores, Budget(macs=smallest, max_pruning_ratio=0.6), allocator)
    assert held.counts() == floors
    with pytest.raises(BudgetNotMet, match=r"`stem\.0` \(at its floor of 7, \d+%\)"):
        prunus.allocate(graph, scores, Budget(macs=smallest - 1, max_pruning_ratio=0.6), allocator)
    assert prunus.allocate(graph, scores, Budget(macs=smallest - 1, tolerance=0.05), allocator).num_removed > 0


@every_allocator
def test_no_layer_is_ever_emptied(cases: dict[str, Case], allocator: str) -> None:
    _, graph, _ = cases["Plain"]
    by_group = {
        g.name: torch.full((g.num_channels,), float(i)) for i, g in enumerate(graph.prunable)
    }  # the first group is worthless
    plan = prunus.allocate(
        graph, prunus.Scores(by_group, "skewed", comparable=True), Budget(macs=0.05, max_pruning_ratio=1.0), allocator
    )
    assert min(plan.counts().values()) >= 1


@pytest.mark.parametrize("net", FINE)
@every_allocator
def test_multiple_of_holds_for_the_real_widths(cases: dict[str, Case], allocator: str, net: str) -> None:
    """A width that changes is a multiple of four in the layer that writes it; widths that don't change stay what they are."""
    model, graph, scores = cases[net]
    plan = prunus.allocate(graph, scores, Budget(macs=0.6, multiple_of=4, tolerance=0.4), allocator)
    small, _ = prunus.remove(model, graph, plan)
    sizes = dict(small.named_parameters())
    changed = [g for g in graph.prunable if not bool(plan.keep[g.name].all())]
    assert changed
    for group in changed:
        where = group.with_role("writes")[0].parameter_axis
        assert sizes[where.parameter].shape[where.axis] % 4 == 0


@every_allocator
def test_multiple_of_counts_positions_not_channels(cases: dict[str, Case], allocator: str) -> None:
    """A channel of a convolution of four groups is four filters wide: two channels are a multiple of eight."""
    model, graph, scores = cases["Layouts"]
    plan = prunus.allocate(graph, scores, Budget(macs=0.6, multiple_of=8, tolerance=0.5), allocator)
    small, _ = prunus.remove(model, graph, plan)
    assert plan.counts()["grouped"] in (2, 4)
    assert small.grouped.weight.shape[0] in (8, 16)
    assert plan.num_removed > 0


@every_allocator
def test_limits_of_single_groups_hold(cases: dict[str, Case], allocator: str) -> None:
    """Of 32 channels at most 30 % go: ceil(22.4) = 23 stay; and of 16 at least 15."""
    _, graph, scores = cases["Plain"]
    limits: dict[str, float | int] = {"two*": 0.3, "one.0": 15}
    plan = prunus.allocate(graph, scores, Budget(macs=0.5, limits=limits), allocator)
    check(cases["Plain"], plan, Budget(macs=0.5))
    assert plan.counts()["two.0"] >= 23 and plan.counts()["one.0"] >= 15
    free = prunus.allocate(graph, scores, Budget(macs=0.5), allocator)
    assert free.counts()["two.0"] < 23 or free.counts()["one.0"] < 15
    whole = prunus.allocate(graph, scores, Budget(macs=0.6, limits={"group:two.0": 0.0}), allocator)
    assert whole.counts().get("two.0", 32) == 32
    with pytest.raises(BudgetNotMet, match=r"`two\.0` \(at its floor of 29, \d+%\).* unfreeze groups or loosen their limits"):
        prunus.allocate(graph, scores, Budget(macs=0.2, limits={"two*": 0.1, "three.0": 30}), allocator)


@every_allocator
def test_limits_that_fit_nothing(cases: dict[str, Case], allocator: str) -> None:
    for glob in ("four.*", "group:two", "group:two*"):
        with pytest.raises(UnknownName, match="unknown group or layer in limits"):
            prunus.allocate(*cases["Plain"][1:], Budget(macs=0.5, limits={glob: 0.5}), allocator)


@pytest.mark.parametrize("net", ["Plain", "Residual"])
@every_allocator
def test_a_file_is_never_larger_than_its_budget(cases: dict[str, Case], allocator: str, net: str, tmp_path: Path) -> None:
    model, graph, scores = cases[net]
    for amount in (0.7, 0.4, 20_000):
        budget = Budget(file_size=amount)
        plan = prunus.allocate(graph, scores, budget, allocator)
        limit = math.floor(budget.limit("file_size", graph.cost().file_size) + 1e-9)
        assert 0.99 * limit <= plan.predicted.file_size <= limit
        prunus.save(*prunus.remove(model, graph, plan), tmp_path / "small.prunus")
        written = (tmp_path / "small.prunus").stat().st_size
        assert plan.predicted.file_size - 1000 - 0.01 * written <= written <= plan.predicted.file_size


# -- what can't be had


@pytest.mark.parametrize("target", ["macs", "parameters", "channels"])
@every_allocator
def test_an_unreachable_budget_names_what_holds_it(cases: dict[str, Case], allocator: str, target: str) -> None:
    model, graph, scores = cases["Plain"]
    graph = graph.freeze({"two.0": "asked for"})
    limit = {"macs": 0.2, "parameters": 0.05, "channels": 1}[target]
    with pytest.raises(BudgetNotMet) as caught:
        prunus.allocate(graph, scores, Budget(**{target: limit}, min_channels=8), allocator)
    text, plan = str(caught.value), caught.value.plan
    assert f"the budget {target} <= " in text
    assert "can't be reached: the smallest allowed network has" in text
    assert "lower min_channels or multiple_of, raise max_pruning_ratio, or unfreeze groups" in text
    assert plan.counts() == {"one.0": 8, "three.0": 8}
    small = count(prunus.remove(model, graph, plan)[0], graph)
    assert f"{small[target]:,.0f} {target}" in text
    assert not plan.provenance["budget"][0]["met"]
    shares = [int(share) for share in re.findall(r"(\d+)%\)[,.]", text)]
    assert shares == sorted(shares, reverse=True)
    assert all(0 < share <= 100 for share in shares)
    if target == "channels":
        assert "`two.0`" not in text  # frozen channels aren't counted
    else:
        assert re.search(r"held by .*`two\.0` \(frozen, \d+%\)", text)
    assert re.search(r"`three\.0` \(at its floor of 8, \d+%\)", text)


@every_allocator
def test_unscored_groups_that_hold_the_cost_are_called_so(cases: dict[str, Case], allocator: str) -> None:
    _, graph, scores = cases["Plain"]
    part = prunus.Scores({"one.0": scores.by_group["one.0"]}, "part")
    with pytest.raises(BudgetNotMet, match=r"`two\.0` \(without scores, so kept whole, \d+%\)"):
        prunus.allocate(graph, part, Budget(macs=0.1), allocator)


@every_allocator
def test_coarse_steps_are_told_with_a_tolerance_that_works(cases: dict[str, Case], allocator: str) -> None:
    _, graph, scores = cases["Plain"]
    limits: dict[str, Any] = {"macs": 0.55, "multiple_of": 16}
    with pytest.raises(BudgetNotMet) as caught:
        prunus.allocate(graph, scores, Budget(**limits), allocator)
    text = str(caught.value)
    assert re.search(
        r"the budget macs <= 66,070 \(55\.0% of 120,128\) is missed: the closest plan found has [\d,]+ macs, \d+\.\d% below it",
        text,
    )
    assert re.search(r"above all of `\w+\.0` \(one step is \d+\.\d% of the budget\)", text)
    assert "or lower multiple_of" in text
    suggested = float(re.search(r"tolerance=(0\.\d+)", text)[1])  # type: ignore[index]
    plan = prunus.allocate(graph, scores, Budget(**limits, tolerance=suggested), allocator)
    assert plan.counts() == caught.value.plan.counts()
    with pytest.raises(BudgetNotMet):
        prunus.allocate(graph, scores, Budget(**limits, tolerance=suggested - 0.002), allocator)


@pytest.mark.parametrize("fraction", [0.85, 0.72, 0.61, 0.5, 0.43, 0.31, 0.2])
@every_allocator
def test_a_missed_budget_is_the_best_of_all_plans(cases: dict[str, Case], allocator: str, fraction: float) -> None:
    """With tolerance zero only an exact hit will do; else the error's plan is the best of all 128."""
    _, graph, scores = cases["Layouts"]
    limit = math.floor(fraction * graph.cost().macs)
    widths = product(*(range(1, g.num_channels + 1) for g in graph.prunable))
    every = [graph.cost_model.cost(dict(zip((g.name for g in graph.prunable), w, strict=True))).macs for w in widths]
    best = max(macs for macs in every if macs <= limit)
    try:
        plan = prunus.allocate(graph, scores, Budget(macs=fraction, tolerance=0.0, max_pruning_ratio=1.0), allocator)
    except BudgetNotMet as error:
        plan = error.plan
        assert best < limit
    assert plan.predicted.macs == best


@every_allocator
def test_a_budget_that_is_met_already(cases: dict[str, Case], allocator: str) -> None:
    _, graph, scores = cases["Plain"]
    for budget in (Budget(macs=1.0), Budget(macs="1G"), Budget(macs=120_128)):
        with pytest.raises(NothingPruned, match=r"the network already meets the budget \(120,128 macs <= [\d,]+\): ask for less"):
            prunus.allocate(graph, scores, budget, allocator)


@every_allocator
def test_a_network_of_frozen_groups(cases: dict[str, Case], allocator: str) -> None:
    model, _, scores = cases["Plain"]
    graph = prunus.trace(model, images(), keep="*")
    with pytest.raises(
        NothingPruned, match=r"all 4 groups are frozen, so nothing can be pruned. `one\.0`: `\*` is listed in keep; `two\.0`"
    ):
        prunus.allocate(graph, scores, Budget(macs=0.5), allocator)


@every_allocator
def test_floors_that_leave_nothing(cases: dict[str, Case], allocator: str) -> None:
    with pytest.raises(
        NothingPruned, match="no group can lose a channel: 3 groups are at their floors or unscored by l1; lower min_channels"
    ):
        prunus.allocate(*cases["Plain"][1:], Budget(macs=0.5, min_channels=64), allocator)


@pytest.mark.parametrize(("target", "why"), [("latency", "measurements on this machine")])
@every_allocator
def test_targets_without_a_closed_form(cases: dict[str, Case], allocator: str, target: str, why: str) -> None:
    with pytest.raises(InvalidBudget, match=f"a budget on {target} needs {why}"):
        prunus.allocate(*cases["Plain"][1:], Budget(**{target: 0.5}, macs=0.5), allocator)


def test_where_none_is_named_scores_decide_which(cases: dict[str, Case]) -> None:
    """Scores of one scale are ranked over the network by what their channels cost, others give every group the same share."""
    _, graph, scores = cases["Plain"]
    for comparable, wanted in ((True, "global_per_cost"), (False, "uniform")):
        given = prunus.Scores(scores.by_group, "own", comparable=comparable)
        plan, named = (allocate(graph, given, Budget(macs=0.5), *by) for by in ((), (wanted,)))
        assert plan.provenance["allocator"] == wanted
        assert all(torch.equal(plan.keep[name], named.keep[name]) for name in plan.keep)


def test_unknown_allocators(cases: dict[str, Case]) -> None:
    with pytest.raises(UnknownName, match=r"unknown allocator 'globl': did you mean global or global_per_cost\?"):
        prunus.allocate(*cases["Plain"][1:], Budget(macs=0.5), "globl")


@every_allocator
def test_a_row_says_what_it_is(allocator: str) -> None:
    assert ALLOCATORS[allocator].name == allocator
    assert len(ALLOCATORS[allocator].summary) > 30


def test_an_own_allocator_is_called(cases: dict[str, Case]) -> None:
    _, graph, scores = cases["Plain"]
    seen: list[Any] = []

    class Own:
        def allocate(self, *args: Any, **options: Any) -> PruningPlan:
            seen.append((args, options))
            return PruningPlan({"one.0": torch.arange(16) < 5}, graph.cost())

    budget = Budget(latency="8ms")
    plan = prunus.allocate(graph, scores, budget, Own(), measure=len)  # type: ignore[arg-type]
    assert plan.counts() == {"one.0": 5}
    assert seen == [((graph, scores, budget), {"evaluate": None, "measure": len})]
