"""Heatmaps hold the counts; tables say which classes are taken for which."""

from __future__ import annotations

import re

import pytest

from prunus.report.confusion import class_names, confusion, confusion_figures
from report.sample import photo_result


def words(markup):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", markup)).strip()


def test_first_and_last_evaluation_on_test_images():
    result = photo_result(2)
    result["stages"][0]["confusion"] = [[391, 9], [100, 300]]
    result["stages"][-1] |= {"split": "validation"}
    first, last = (figure["data"] for figure in confusion_figures(result).values())
    assert first[1]["text"] == ["391", "9", "100", "300"]
    assert list(zip(first[1]["x"], first[1]["y"], strict=True)) == [(0, 0), (1, 0), (0, 1), (1, 1)]  # x predicted, y true
    assert first[0]["z"][1] == pytest.approx([0.25**0.5, 0.75**0.5])  # shares of the row
    assert first[0]["customdata"][1][0] == ["dog", "cat", "100", "400", "25.0 %"]
    assert last[1]["text"][0] == str(result["stages"][-2]["confusion"][0][0])
    assert "Confusion, before pruning" in confusion(result) and "Confusion, round 2: after recalibration" in confusion(result)


def test_counts_are_in_the_colour_of_the_other_end():
    (_, text) = confusion_figures(photo_result(1))["plot-confusion-first"]["data"]
    assert text["textfont"]["color"] == ["var(--card)", "var(--ink)", "var(--ink)", "var(--card)"]


@pytest.mark.parametrize(("number", "written"), [(4, 16), (5, 10), (12, 24), (13, None), (20, None)])
def test_what_is_written_depends_on_the_room(number, written):
    figures = confusion_figures(photo_result(1, tuple(f"class {n}" for n in range(number))))
    traces = figures["plot-confusion-first"]["data"]
    assert len(traces[0]["z"]) == number
    assert [len(trace["text"]) for trace in traces[1:]] == ([written] if written else [])


def test_large_counts_of_many_classes_are_left_to_the_table():
    result = photo_result(1, tuple("abcdefgh"))
    assert len(confusion_figures(result)["plot-confusion-first"]["data"]) == 2
    result["stages"][0]["confusion"][0][0] = 123456
    assert len(confusion_figures(result)["plot-confusion-first"]["data"]) == 1


def test_table_of_classes():
    result = photo_result(1, ("cat", "dog", "fox"))
    result["stages"][0]["confusion"] = [[9, 1, 0], [2, 5, 3], [0, 0, 0]]
    result["stages"][-1]["confusion"] = [[10, 0, 0], [4, 1, 5], [0, 0, 0]]
    text = words(confusion(result))
    assert "class test images right, before pruning right, after fine-tuning most frequent mistake" in text
    assert "cat 10 90.0 % 100.0 % none dog 10 50.0 % 10.0 % fox (5) fox 0 \u2013 \u2013 none" in text


def test_many_classes_have_tables_of_pairs():
    result = photo_result(1, tuple(f"<{n}>" for n in range(60)))
    assert confusion_figures(result) == {}
    result["stages"][0]["most_confused"] = [[0, 59, 7]]
    text = words(confusion(result))
    assert "Most confused pairs, before pruning true class predicted images &lt;0&gt; &lt;59&gt; 7" in text
    assert "Most confused pairs, after fine-tuning" in text and "Every class as a table" not in text
    del result["data"]  # then classes are numbers
    assert "true class predicted images 0 59 7" in words(confusion(result))


def test_between_21_and_50_classes_there_are_both_tables():
    result = photo_result(1, tuple(f"class {n}" for n in range(21)))
    text = words(confusion(result))
    assert confusion_figures(result) == {} and "Most confused pairs" in text and "Every class as a table" in text


def test_one_evaluation_is_shown_once_and_none_not_at_all():
    result = photo_result(1)
    result["stages"] = result["stages"][:1]
    assert list(confusion_figures(result)) == ["plot-confusion-first"] and "plot-confusion-last" not in confusion(result)
    result["stages"][0] |= {"confusion": None, "most_confused": []}
    assert confusion(result) == "" and confusion_figures(result) == {}


def test_names_that_do_not_fit_are_numbers():
    assert class_names(photo_result(), 2) == ["cat", "dog"]
    assert class_names(photo_result(), 3) == ["0", "1", "2"] and class_names({}, 1) == ["0"]


def test_before_pruning_is_the_first_whatever_was_judged_earlier():
    result = photo_result(1)
    result["stages"].insert(0, result["stages"][0] | {"stage": "after training the head", "confusion": [[1, 2], [3, 4]]})
    assert "Confusion, before pruning" in confusion(result) and "training the head" not in confusion(result)


def test_short_names_stand_upright_over_their_columns():
    def angle(names):
        (figure, *_) = confusion_figures(photo_result(1, names)).values()
        return figure["layout"]["xaxis"]["tickangle"]

    assert angle(tuple("0123456789")) == 0 and angle(("cat", "dog")) == 0
    assert angle(tuple(f"class {n}" for n in range(10))) == -90
