"""Latency as a cost: tables, the time of a plan, what measured networks change, and allocation by it. All times are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus import Budget, BudgetNotMet, InvalidBudget
from prunus.allocation.latency import Correction, LatencyModel, TimeTable, fitting_multiple, timed
from small_nets import build, images

Cost = Callable[[Any, Any], Any]


def table(reads: Sequence[int], writes: Sequence[int], ms: Cost) -> TimeTable:
    grid = np.meshgrid(np.array(reads, dtype=float), np.array(writes, dtype=float), indexing="ij")
    return TimeTable.measured(reads, writes, ms(*grid) + 0.0 * grid[0])


def chain(sizes: Sequence[int]) -> prunus.ChannelGraph:
    """1 x 1 convolutions on one pixel in a row: group i is written by layer i."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *sizes), (*sizes, 2), strict=True):
        layers += [nn.Conv2d(inputs, outputs, 1), nn.ReLU()]
    return prunus.trace(nn.Sequential(*layers[:-1]), torch.randn(1, 3, 1, 1))


def with_times(graph: prunus.ChannelGraph, ms: Sequence[Cost], multiple: int = 1) -> prunus.ChannelGraph:
    """Layer i takes ``ms[i](read, written)``, tabulated at every width there is."""
    tables = [
        table(range(1, len(layer.reads) + 1), range(1, len(layer.writes) + 1), cost)
        for layer, cost in zip(graph.layers, ms, strict=True)
    ]
    return timed(graph, tables, multiple)


def drawn(graph: prunus.ChannelGraph, seed: int) -> prunus.Scores:
    generator = torch.Generator().manual_seed(seed)
    by_group = {g.name: torch.rand(g.num_channels, generator=generator, dtype=torch.float64) for g in graph.prunable}
    return prunus.Scores(by_group, "drawn", comparable=True)


# -- tables


def test_a_table_is_interpolated_in_both_widths() -> None:
    """At (10, 20) between 1, 2 / 3, 8: halfway in reads, a quarter in writes: 0.75 (1 + 3) / 2 + 0.25 (2 + 8) / 2 = 2.75."""
    found = TimeTable.measured([0, 20], [10, 50], np.array([[1.0, 2.0], [3.0, 8.0]]))
    assert found.at(np.array([10.0]), np.array([20.0])).tolist() == [2.75]
    assert found.at(np.array([20.0, 20.0, 99.0]), np.array([50.0, 10.0, 99.0])).tolist() == [8.0, 3.0, 8.0]
    assert found.at(np.array([5.0, 5.0, 0.0]), np.array([5.0, 0.0, 5.0])).tolist() == [1.5, 0.0, 0.0]


def test_a_width_that_never_changes_needs_one_point() -> None:
    found = TimeTable.measured([3], [8, 16], np.array([[2.0, 4.0]]))
    assert found.at(np.array([3.0, 3.0]), np.array([12.0, 16.0])).tolist() == [3.0, 4.0]


def test_what_a_wider_layer_seems_to_save_is_evened_out() -> None:
    """5 behind 6: running maximum 6, running minimum 5, so 5.5 at both."""
    found = TimeTable.measured([1], [1, 2, 3, 4], np.array([[1.0, 6.0, 5.0, 9.0]]))
    assert found.ms.tolist() == [[1.0, 5.5, 5.5, 9.0]]


@given(st.lists(st.lists(st.floats(0.01, 10), min_size=4, max_size=4), min_size=3, max_size=3), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_tables_never_fall(raw: list[list[float]], seed: int) -> None:
    found = TimeTable.measured([2, 5, 9], [1, 4, 8, 16], np.array(raw))
    draw = np.random.default_rng(seed)
    low = draw.uniform(0, 20, (2, 30))
    high = low + draw.uniform(0, 20, (2, 30))
    assert (found.at(*high) >= found.at(*low) - 1e-9).all()


def test_noise_around_a_rising_time_does_not_pull_it_away() -> None:
    draw = np.random.default_rng(0)
    true = np.outer([1, 2, 3, 4], [10, 20, 30, 40]) / 100 + 0.1
    found = TimeTable.measured([1, 2, 3, 4], [1, 2, 3, 4], true * draw.normal(1, 0.05, true.shape))
    assert np.abs(found.ms / true - 1).max() < 0.15
    assert (np.diff(found.ms, axis=0) >= 0).all() and (np.diff(found.ms, axis=1) >= 0).all()


def test_products_near_to_a_table() -> None:
    found = table([1, 2, 4, 8], [2, 4, 8], lambda r, w: 0.5 + 0.25 * w + 0.125 * r * w).as_products()
    assert found == pytest.approx((0.5, 0.0, 0.25, 0.125), abs=1e-9)


# -- the time of a plan


def test_the_time_of_a_plan_is_the_sum_of_its_layers() -> None:
    """Widths 4 and 6 kept as 2 and 3: 3 * 2 + 2 * 3 + 3 * 2 = 18 of 12 + 24 + 12."""
    graph = with_times(chain((4, 6)), [lambda r, w: r * w] * 3)
    assert graph.cost().latency_ms == pytest.approx(48.0)
    assert graph.cost_model.cost({"0": 2, "2": 3}).latency_ms == pytest.approx(18.0)
    costs = graph.cost_model.costs(["0", "2"], np.array([[2.0, 3.0], [4.0, 6.0], [2.0, 6.0]]))
    assert costs["latency"].tolist() == pytest.approx([18.0, 48.0, 6 + 12 + 12])
    assert costs["macs"].tolist() == [18.0, 48.0, 30.0]


@pytest.mark.parametrize("net", ["Plain", "Residual", "Dense", "Flattened", "Layouts"])
def test_widths_are_those_that_surgery_leaves(net: str) -> None:
    """Tables that are reads x writes count every weight of concatenated, flattened and grouped layers."""
    model = build(net)
    graph = prunus.trace(model, images())
    seconds = with_times(graph, [lambda r, w: r * w] * len(graph.layers))
    plan = prunus.allocate(graph, prunus.score(model, graph, "l1"), Budget(channels=0.6, tolerance=0.1), "uniform")
    small = prunus.trace(prunus.remove(model, graph, plan)[0], images())
    expected = sum(len(layer.reads) * len(layer.writes) for layer in small.layers)
    assert seconds.cost(plan).latency_ms == pytest.approx(expected)


def test_written_bytes_of_a_chain() -> None:
    """One pixel of 3 inputs, 4 + 6 channels before and behind the ReLUs and 2 outputs: 25 numbers of four bytes, 19 with one."""
    graph = chain((4, 6))
    model: Any = graph.cost_model
    assert model.written_bytes(["0"], np.array([[4.0], [1.0]])).tolist() == [4 * 25, 4 * 19]
    terms = model.written_bytes_terms()
    assert terms == {("0",): 8.0, ("2",): 8.0, ("4",): 4.0, (): 12.0}


# -- correction by whole networks


def test_calibration_finds_calls_memory_and_layers() -> None:
    graph = with_times(chain((16, 32)), [lambda r, w: 0.01 * r * w] * 3)
    model: Any = graph.cost_model
    truth = replace(model, by_layers=0.8, by_bytes=0.004, per_call=0.7)
    plans: list[dict[str, int]] = [{}, {"0": 10, "2": 20}, {"0": 5, "2": 9}, {"0": 3, "2": 26}]
    found = model.calibrated([(kept, truth.cost(kept).latency_ms) for kept in plans])
    assert found.by_layers == pytest.approx(0.8, rel=0.05)
    for kept in ({"0": 12, "2": 7}, {"0": 2, "2": 2}, {}):
        assert found.cost(kept).latency_ms == pytest.approx(truth.cost(kept).latency_ms, rel=0.02)


def test_one_network_alone_sets_the_scale() -> None:
    graph = with_times(chain((16, 32)), [lambda r, w: 0.01 * r * w] * 3)
    model: Any = graph.cost_model
    assert model.calibrated([({}, 2 * graph.cost().latency_ms)]).cost({}).latency_ms == pytest.approx(
        2 * graph.cost().latency_ms, rel=0.02
    )


def test_correction_goes_through_what_was_measured() -> None:
    """Predicted 4 and 10 measured 6 and 12: in between 8 gives 10; beyond, in proportion: 20 gives 24, 2 gives 3."""
    found = Correction([(10, 12), (4, 6)])
    assert [found.measured(x) for x in (2, 4, 8, 10, 20)] == pytest.approx([3, 6, 10, 12, 24])
    assert [found.predicted(y) for y in (3, 6, 10, 12, 24)] == pytest.approx([2, 4, 8, 10, 20])


def test_correction_evens_out_networks_in_the_wrong_order() -> None:
    found = Correction([(4, 7), (5, 6), (10, 12)])
    assert found.measured(4) == pytest.approx(6.5) and found.measured(5) == pytest.approx(6.5)


# -- allocation


def staircase(step: int) -> Cost:
    """What blocks of ``step`` channels take, with a floor for the call."""
    return lambda r, w: 0.3 + np.ceil(r / step) * np.ceil(w / step)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(2, 6), st.integers(2, 6), st.integers(2, 5)),
    steps=st.tuples(*[st.sampled_from([1, 2, 3])] * 4),
    share=st.floats(0.35, 0.9),
    macs=st.none() | st.floats(0.4, 0.9),
    seed=st.integers(0, 2**31),
)
def test_knapsack_with_tables_equals_brute_force(
    sizes: tuple[int, int, int], steps: tuple[int, ...], share: float, macs: float | None, seed: int
) -> None:
    """Of all widths that meet every limit, the plan's keep the most importance, whatever steps the tables have."""
    graph = with_times(chain(sizes), [staircase(step) for step in steps])
    scores = drawn(graph, seed)
    names = [g.name for g in graph.prunable]
    every = np.array(list(product(*(range(1, n + 1) for n in sizes))), dtype=float)
    costs = graph.cost_model.costs(names, every)
    budget = Budget(latency=share, macs=macs, tolerance=0.99, max_pruning_ratio=1.0, multiple_of=1)
    fits = costs["latency"] <= share * costs["latency"].max() + 1e-9
    if macs is not None:
        fits &= costs["macs"] <= np.floor(macs * costs["macs"].max() + 1e-9)
    worth = [np.concatenate([[0], scores.by_group[n].sort(descending=True).values.cumsum(0).numpy()]) for n in names]
    kept = sum(values[column.astype(int)] for values, column in zip(worth, every.T, strict=True))
    if not fits.any():
        with pytest.raises(BudgetNotMet):
            prunus.allocate(graph, scores, budget, "knapsack")
        return
    plan = prunus.allocate(graph, scores, budget, "knapsack")
    found = sum(float(scores.by_group[n][plan.keep[n]].sum()) for n in names)
    assert found == pytest.approx(float(kept[fits].max()), rel=1e-6)
    assert plan.predicted.latency_ms <= share * costs["latency"].max() * (1 + 1e-9)


class Joined(nn.Module):
    """Three convolutions whose results are concatenated and read by one."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(2, 8, 1) for _ in range(3))
        self.last = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([part(x).relu() for part in self.parts], 1))


def test_a_layer_over_three_groups_keeps_the_budget() -> None:
    """Its table can't be priced by pairs; its nearest products can, and the plan holds by the table itself."""
    graph = prunus.trace(Joined(), torch.randn(1, 2, 1, 1))
    graph = with_times(graph, [lambda r, w: r * w] * 3 + [lambda r, w: 40 * np.sqrt(r)])
    full = graph.cost().latency_ms
    assert full is not None
    for share in (0.85, 0.7, 0.55):
        plan = prunus.allocate(graph, drawn(graph, 1), Budget(latency=share, tolerance=0.1, multiple_of=1))
        assert plan.provenance["allocator"] == "knapsack"
        assert 0.9 * share * full <= plan.predicted.latency_ms <= share * full


@pytest.mark.parametrize("allocator", ["uniform", "global", "global_per_cost", "per_layer", "knapsack", "mean_minus_deviations"])
def test_every_allocator_meets_milliseconds_from_below(allocator: str) -> None:
    model = build("Residual")
    graph = prunus.trace(model, images())
    graph = with_times(graph, [lambda r, w: 0.01 * r * w + 0.2] * len(graph.layers))
    full = graph.cost().latency_ms
    plan = prunus.allocate(graph, prunus.score(model, graph, "l1"), Budget(latency=0.6, tolerance=0.03, multiple_of=1), allocator)
    (row,) = plan.provenance["budget"]
    assert row["target"] == "latency" and row["full"] == pytest.approx(full) and row["met"]
    assert 0.97 * 0.6 <= plan.predicted.latency_ms / full <= 0.6
    assert row["achieved"] == pytest.approx(plan.predicted.latency_ms)


def test_importance_per_millisecond_takes_the_dear_layer_first() -> None:
    """Equal scores, but a channel of the first group costs ten times as much as one of the second."""
    graph = with_times(chain((20, 20)), [lambda r, w: 10 * w, lambda r, w: w, lambda r, w: 1.0])
    scores = prunus.Scores({g.name: torch.ones(20) for g in graph.prunable}, "ties", comparable=True)
    plan = prunus.allocate(graph, scores, Budget(latency=0.6, tolerance=0.05, multiple_of=1), "global_per_cost")
    assert plan.counts()["0"] < 13 and plan.counts()["2"] >= 19


def test_liked_widths_are_used_and_given_up_where_they_are_too_coarse() -> None:
    """Multiples of eight in groups with room for four of them, halved until the budget can be met closely."""
    sizes, ms = (64, 64), [lambda r, w: r * w] * 3
    graph = with_times(chain(sizes), ms, multiple=8)
    liked: Any = graph.cost_model
    assert liked.multiples == {"0": 8, "2": 8}
    scores = drawn(graph, 0)
    plan = prunus.allocate(graph, scores, Budget(latency=0.5, tolerance=0.08))
    assert all(kept % 8 == 0 for kept in plan.counts().values())
    close = prunus.allocate(graph, scores, Budget(latency=0.5, tolerance=0.003))
    assert any(kept % 8 for kept in close.counts().values())
    assert 0.997 * 0.5 <= close.predicted.latency_ms / graph.cost().latency_ms <= 0.5
    forced = prunus.allocate(graph, scores, Budget(latency=0.5, tolerance=0.3, multiple_of=16))
    assert all(kept % 16 == 0 for kept in forced.counts().values())
    counted = prunus.allocate(graph, scores, Budget(macs=0.5, multiple_of="auto", tolerance=0.08))
    assert all(kept % 8 == 0 for kept in counted.counts().values())


@pytest.mark.parametrize(("width", "multiple"), [(128, 32), (127, 16), (64, 16), (32, 8), (16, 4), (3, 1)])
def test_small_layers_follow_smaller_multiples(width: int, multiple: int) -> None:
    assert fitting_multiple(width, 32) == multiple


def test_what_was_not_measured_is_refused() -> None:
    graph = chain((8, 8))
    with pytest.raises(InvalidBudget, match=r"a budget on latency needs measurements on this machine: prunus\.prune, `prunus pr"):
        prunus.allocate(graph, drawn(graph, 0), Budget(latency=0.5))
    with pytest.raises(InvalidBudget, match='multiple_of="auto" needs measurements on this machine'):
        prunus.allocate(graph, drawn(graph, 0), Budget(macs=0.5, multiple_of="auto"))


def test_what_no_plan_reaches_is_told_in_milliseconds() -> None:
    graph = with_times(chain((8, 8)), [lambda r, w: 5.0 + r * w] * 3)
    with pytest.raises(BudgetNotMet) as caught:
        prunus.allocate(graph, drawn(graph, 0), Budget(latency=0.1, max_pruning_ratio=0.9))
    text = str(caught.value)
    assert "the budget latency <= 11.9 ms (10.0% of 119 ms) can't be reached" in text
    assert "the smallest allowed network has 21 ms (17.6% of 119)" in text
    assert "`0` (at its floor of 1, " in text


def test_reach_shows_milliseconds() -> None:
    graph = with_times(chain((8, 8)), [lambda r, w: 5.0 + r * w] * 3)
    (row,) = prunus.reach(graph, Budget(latency=0.5, max_pruning_ratio=0.9))
    assert (row.target, row.smallest, row.asked, row.full) == ("latency", 15 + 3 + 1 + 2, 0.5 * 119, 119)


def test_the_model_says_what_time_goes_to() -> None:
    """Widths 2 and 3 write 3 + 2 + 2 + 3 + 3 + 2 numbers of four bytes."""
    graph = with_times(chain((4, 6)), [lambda r, w: r * w] * 3)
    model = replace(graph.cost_model, by_layers=0.5, by_bytes=0.125, per_call=3.0)  # type: ignore[type-var]
    assert isinstance(model, LatencyModel)
    assert model.parts({"0": 2, "2": 3}) == pytest.approx({"layers": 9.0, "memory": 7.5, "calls": 3.0})
