"""Accuracy against MACs left, round by round."""

from __future__ import annotations

import re

import pytest

from prunus.report.rounds import rounds, rounds_figure
from report.sample import photo_result

ROUNDS = [
    {"round": 0, "macs": 200, "parameters": 40, "channels": 30, "accuracy": 0.98, "split": "test", "after": "training"},
    {"round": 1, "macs": 150, "parameters": 30, "channels": 20, "accuracy": 0.97, "split": "test", "after": "fine-tuning"},
    {
        "round": 2,
        "macs": 90,
        "parameters": 20,
        "channels": 10,
        "accuracy": 0.95,
        "split": "test",
        "after": "round 2: after fine-tuning",
    },
]


def test_marks_lie_where_the_rounds_are():
    figure = rounds_figure({"rounds": ROUNDS})
    (trace,) = figure["data"]
    assert trace["x"] == pytest.approx([100, 75, 45]) and trace["y"] == pytest.approx([98, 97, 95])
    assert trace["text"] == ["before", "1", "2"]
    assert trace["customdata"][2] == ["round 2, after fine-tuning", "90.0", "45.0 %", "95.0 %"]
    left, right = figure["layout"]["xaxis"]["range"]
    assert left < 45 and 100 < right < 110  # 100 % is at the right end
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < 95 and high > 98 and high - low >= 5


def test_the_table_has_every_round():
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", rounds({"rounds": ROUNDS})))
    assert "before pruning 200 100.0 % 40 30 98.0 % test" in text
    assert "round 2, after fine-tuning 90 45.0 % 20 10 95.0 % test" in text


def test_many_rounds_have_some_labels_and_the_last():
    labels = rounds_figure(photo_result(25))["data"][0]["text"]
    shown = [label for label in labels if label]
    assert len(labels) == 26 and len(shown) <= 11 and (shown[0], shown[-1]) == ("before", "25")


def test_splits_are_lines_of_their_own():
    mixed = [*ROUNDS[:2], ROUNDS[2] | {"split": "validation"}]
    figure = rounds_figure({"rounds": mixed})
    assert [trace["name"] for trace in figure["data"]] == ["test accuracy", "validation accuracy"]
    assert figure["data"][1]["x"] == [45.0] and figure["layout"]["showlegend"]


@pytest.mark.parametrize("entries", [None, [], ROUNDS[:2], [row | {"accuracy": None} for row in ROUNDS]])
def test_one_round_or_no_accuracy_is_no_plot(entries):
    assert rounds({"rounds": entries}) == "" and rounds_figure({"rounds": entries}) is None


def test_a_round_that_was_not_judged_leaves_a_gap():
    figure = rounds_figure({"rounds": [ROUNDS[0], ROUNDS[1] | {"accuracy": None}, ROUNDS[2]]})
    assert figure["data"][0]["x"] == [100.0, 45.0]
