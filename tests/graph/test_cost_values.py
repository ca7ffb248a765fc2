"""The closed form by hand: widths, products of widths, and what lives at the same time."""

from __future__ import annotations

import numpy as np
import pytest

from prunus.graph.cost import ClosedFormCost, WidthTable, product_table
from prunus.types import Cost

# Labels 0-3 are group "a" (two channels, two positions each), 4-6 group "b" (three channels), 7 belongs to no group.
GROUP_OF_LABEL = np.array([0, 0, 0, 0, 1, 1, 1, -1])
SIZES = np.array([2, 3, 5])  # a third group, of five channels, occurs in no width
A, B = np.array([0, 1, 2, 3]), np.array([4, 5, 6])
MIXED = np.array([4, 0, -1, 7, 1, 5])  # two positions of b, two of a (one a channel), two of none


def table() -> WidthTable:
    return WidthTable(GROUP_OF_LABEL, SIZES)


def test_row_zero_is_the_width_one_and_vectors_are_known_by_identity() -> None:
    widths = table()
    assert [widths.row(A), widths.row(B), widths.row(A), widths.row(7), widths.row(7), widths.row(B)] == [1, 2, 1, 3, 4, 2]
    constant, coefficients = widths.matrices()
    assert constant.tolist() == [1, 0, 0, 7, 7]
    assert coefficients.shape == (5, 3) and constant.dtype == np.float64
    assert coefficients.toarray().tolist() == [[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_a_width_counts_fixed_positions_and_positions_per_channel() -> None:
    widths = table()
    row = widths.row(MIXED)
    constant, coefficients = widths.matrices()
    assert constant[row] == 2
    assert coefficients.toarray()[row].tolist() == pytest.approx([2 / 2, 2 / 3, 0])


def test_a_table_without_vectors_has_only_fixed_widths() -> None:
    widths = table()
    assert widths.row(3) == 1
    constant, coefficients = widths.matrices()
    assert constant.tolist() == [1, 3] and coefficients.shape == (2, 3) and coefficients.nnz == 0


def test_products_are_padded_with_row_zero() -> None:
    factors, rows = product_table([(2.0, [3, 1, 4]), (0.5, []), (7.0, [5])])
    assert factors.tolist() == [2.0, 0.5, 7.0]
    assert rows.tolist() == [[3, 1, 4], [0, 0, 0], [5, 0, 0]] and rows.dtype == np.int64


def test_no_products_at_all() -> None:
    factors, rows = product_table([])
    assert factors.shape == (0,) and rows.shape == (0, 0)


def model(live_at: list[list[int]] | None = None) -> ClosedFormCost:
    """10 x a x b + 3 x b MACs; a x b + 5 parameters; storages of 4 x a, 8 x b and 100 bytes."""
    widths = table()
    a, b = widths.row(A), widths.row(B)
    return ClosedFormCost(
        {"a": 2, "b": 3, "c": 5},
        widths,
        layers=[(10.0, [a, b]), (3.0, [b])],
        parameters=[(1.0, [a, b]), (5.0, [])],
        storages=[(4.0, [a]), (8.0, [b]), (100.0, [])],
        live_at=[[0], [0, 1], [1], [2]] if live_at is None else live_at,
    )


def test_the_full_network() -> None:
    # a is 4 wide (two positions a channel), b is 3 wide
    assert model().cost({}) == Cost(macs=10 * 4 * 3 + 3 * 3, parameters=4 * 3 + 5, activation_bytes=100)
    assert model().full.tolist() == [2, 3, 5] and model().full.dtype == np.float64


def test_the_peak_is_what_lives_at_once() -> None:
    assert model([[0], [0, 1], [1]]).cost({}).activation_bytes == 4 * 4 + 8 * 3
    assert model([[0], [1]]).cost({}).activation_bytes == 8 * 3
    assert model([[0, 2], [1, 2], [0]]).cost({"b": 0}).activation_bytes == 116
    assert model([[0, 1, 2]]).cost({"a": 1, "b": 1}).activation_bytes == 4 * 2 + 8 + 100


def test_nothing_lives_where_nothing_was_recorded() -> None:
    assert model([]).cost({}) == Cost(macs=129, parameters=17, activation_bytes=0)


def test_groups_that_are_not_named_stay_whole() -> None:
    assert model().cost({"a": 1}) == Cost(macs=10 * 2 * 3 + 3 * 3, parameters=2 * 3 + 5, activation_bytes=100)
    assert model().cost({"b": 1}) == Cost(macs=10 * 4 + 3, parameters=4 + 5, activation_bytes=100)
    assert model().cost({"b": 2, "a": 0}) == Cost(macs=6, parameters=5, activation_bytes=100)
    assert model().cost({"c": 1}) == model().cost({})


def test_many_plans_at_once() -> None:
    kept = np.array([[3.0, 2.0], [1.0, 1.0], [0.0, 2.0]])
    costs = model().costs(["b", "a"], kept)
    assert sorted(costs) == ["activation_bytes", "file_size", "macs", "parameters"]
    assert costs["macs"].tolist() == [129, 23, 0]
    assert costs["parameters"].tolist() == [17, 7, 5]
    assert costs["activation_bytes"].tolist() == [100, 100, 100]
    assert model([]).costs(["b", "a"], kept)["activation_bytes"].tolist() == [0, 0, 0]


def test_a_plan_changes_neither_the_full_widths_nor_the_next_plan() -> None:
    cost = model()
    assert cost.cost({"a": 1, "b": 1}).macs == 23
    assert cost.full.tolist() == [2, 3, 5] and cost.cost({}).macs == 129


def test_costs_are_rounded_to_whole_numbers() -> None:
    widths = table()
    b = widths.row(B)
    cost = ClosedFormCost({"a": 2, "b": 3, "c": 5}, widths, [(0.25, [b])], [(0.6, [b])], [(0.5, [b, b])], [[0]])
    found = cost.cost({})
    assert (found.macs, found.parameters, found.activation_bytes, found.latency_ms) == (1, 2, 4, None)
    assert all(type(value) is int for value in (found.macs, found.parameters, found.activation_bytes))


def test_a_layer_may_be_a_product_of_three_widths() -> None:
    widths = table()
    rows = [widths.row(w) for w in (A, B, 6)]
    cost = ClosedFormCost({"a": 2, "b": 3, "c": 5}, widths, [(2.0, rows)], [], [], [])
    assert cost.cost({"a": 1}) == Cost(macs=2 * 2 * 3 * 6, parameters=0, activation_bytes=0)
