"""Scores of kept and removed channels, by group."""

from __future__ import annotations

from typing import Any

import pytest

from prunus.report.scores import scores, scores_figure


def _result(groups: dict[str, Any], across_groups: bool = False, rounds: int = 1) -> dict[str, Any]:
    found = {"criterion": "l1", "across_groups": across_groups, "round": rounds, "groups": groups}
    return {"scores": found, "request": {"rounds": rounds}}


GROUPS = {"a": {"kept": [3.0, 5.0], "removed": [1.0]}, "b": {"kept": [30.0], "removed": [0.0, 30.0]}}


def test_scores_are_in_units_of_their_groups_mean():
    figure = scores_figure(_result(GROUPS))
    removed, kept = figure["data"]
    assert kept["x"] == pytest.approx([1, 5 / 3, 1.5]) and kept["y"] == pytest.approx([-0.16, -0.16, 0.84])
    assert removed["x"] == pytest.approx([1 / 3, 1 / 9, 1.5])  # zero stands a third below the least that isn't
    assert [text.rpartition(" ")[2] for text in removed["customdata"]] == ["0.333333", "0", "1.5"]
    assert figure["layout"]["xaxis"]["type"] == "log" and figure["layout"]["yaxis"]["ticktext"] == ["a", "b"]


def test_scores_on_one_scale_stay_as_they_are():
    removed, kept = scores_figure(_result(GROUPS, across_groups=True))["data"]
    assert kept["x"] == [3, 5, 30] and removed["x"][0] == 1
    text = scores(_result(GROUPS, across_groups=True, rounds=3))
    assert "on one scale" in text and "of round 3" in text and "<code>l1</code>" in text


def test_signed_scores_have_a_linear_axis():
    figure = scores_figure(_result({"a": {"kept": [1.0], "removed": [-2.0]}}, across_groups=True))
    assert figure["layout"]["xaxis"]["type"] == "linear" and figure["data"][0]["x"] == [-2.0]


@pytest.mark.parametrize("result", [{}, _result({}), _result({"a": {"kept": [2.0], "removed": [2.0]}})])
def test_where_nothing_differs_nothing_is_drawn(result):
    assert scores_figure(result) is None and scores(result) == ""
