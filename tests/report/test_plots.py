"""The figures hold the figures of the result."""

from __future__ import annotations

import re

import pytest

from prunus.report.plots import curve_figure, figures, stages_figure, stages_shown, widths_figure
from report.sample import groups, photo_result, sample_result


def color_free(value, key=""):
    """The figure with a colour that plotly's validator knows in place of every CSS variable."""
    if isinstance(value, dict):
        return {k: color_free(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [color_free(item, key) for item in value]
    return "#123456" if isinstance(value, str) and key.endswith(("color", "colorscale")) and value.startswith("var(") else value


@pytest.mark.parametrize("number", [1, 3, 150])
def test_plotly_accepts_every_figure(number):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    drawn = figures(sample_result(number))
    assert list(drawn) == ["plot-stages", "plot-widths", "plot-loss", "plot-accuracy"]
    for figure in drawn.values():
        graph_objects.Figure(color_free(figure))


def test_plotly_accepts_the_optional_figures():
    graph_objects = pytest.importorskip("plotly.graph_objects")
    drawn = figures(photo_result())
    assert list(drawn)[-4:] == ["plot-scores", "plot-rounds", "plot-confusion-first", "plot-confusion-last"]
    for figure in drawn.values():
        graph_objects.Figure(color_free(figure))


def test_every_width_is_one_bar_on_another():
    made = groups(30)
    before, *after = widths_figure(made)["data"]
    assert before["x"] == [g["before"] for g in made] and before["y"] == list(range(30))
    assert before["text"][0] == f"{made[0]['after']} of {made[0]['before']}"
    assert sorted((row, width) for trace in after for row, width in zip(trace["y"], trace["x"], strict=True)) == [
        (row, g["after"]) for row, g in enumerate(made)
    ]
    rows = {trace["name"]: trace["y"] for trace in after}
    assert rows["frozen"] == [6, 13, 20, 27]
    assert rows["after, mixing group"] == [3, 23]  # 13 is frozen as well
    assert {trace["width"] for trace in (before, *after)} == {0.72}


def test_frozen_bars_tell_their_reason():
    frozen = widths_figure(groups(7))["data"][-1]
    assert "frozen: its channels are the network's outputs" in frozen["customdata"][0].replace("<br>", " ")


def test_rows_stay_legible_with_any_number_of_groups():
    for number in (1, 3, 40, 41, 150, 600):
        layout = widths_figure(groups(number))["layout"]
        assert (layout["height"] - 60) / number >= 19
        assert len(layout["yaxis"]["ticktext"]) == number
        assert max(map(len, layout["yaxis"]["ticktext"])) <= 22


def test_long_names_lose_their_beginning():
    named = groups(1)
    named[0]["name"] = "backbone.features.denseblock4.denselayer16.conv1"
    assert widths_figure(named)["layout"]["yaxis"]["ticktext"] == ["…k4.denselayer16.conv1"]


def test_accuracy_is_in_percent_at_every_stage():
    (trace,) = stages_figure(sample_result()["stages"])["data"]
    assert trace["y"] == pytest.approx([99.2, 31.4, 87.6, 98.8]) and trace["x"] == [0, 1, 2, 3]
    assert trace["text"] == ["99.2 %", "31.4 %", "87.6 %", "98.8 %"]
    assert trace["textposition"] == ["top center", "bottom center", "top center", "top center"]


def test_many_stages_run_downwards_and_splits_are_apart():
    stages = [
        {"stage": f"round {n}: after pruning", "split": split, "accuracy": n / 10, "count": 5}
        for n in range(1, 8)
        for split in "ab"
    ]
    figure = stages_figure(stages)
    assert [trace["name"] for trace in figure["data"]] == ["a accuracy", "b accuracy"]
    assert figure["data"][1]["x"] == pytest.approx([10, 20, 30, 40, 50, 60, 70]) and figure["data"][1]["y"] == list(range(7))
    assert figure["layout"]["yaxis"]["ticktext"][6] == "round 7: after pruning"


def test_labels_downwards_have_a_margin_of_their_own():
    """They stand to the right of the marks: at 100 % they were cut off where the plot is narrow."""
    stages = [
        {"stage": f"stage {n}", "split": "test", "accuracy": share, "count": 5} for n, share in enumerate((1, 0.1, 0.5, 0.4, 1))
    ]
    figure = stages_figure(stages)
    assert figure["layout"]["margin"]["r"] == 60 and figure["layout"]["xaxis"]["range"][1] < 105
    # a valley's label goes to the left, unless the names of the stages are there
    assert figure["data"][0]["textposition"] == ["middle right", "middle right", "middle right", "middle left", "middle right"]


def test_long_names_run_downwards_however_few():
    stages = [{"stage": f"round {n}: after recalibration", "split": "test", "accuracy": 0.5, "count": 5} for n in range(2)]
    assert stages_figure(stages)["data"][0]["y"] == [0, 1]


def test_of_many_rounds_the_stages_of_the_last_are_shown():
    few, many = photo_result(4), photo_result(12)
    many["stages"].append(many["stages"][0] | {"stage": "after final fine-tuning"})
    assert stages_shown(few) == few["stages"] and len(few["stages"]) == 13
    assert [s["stage"] for s in stages_shown(many)] == [
        "before pruning",
        "round 12: after pruning",
        "round 12: after recalibration",
        "round 12: after fine-tuning",
        "after final fine-tuning",
    ]
    del many["rounds"]  # without the plot of rounds, nothing else would show them
    assert stages_shown(many) == many["stages"]


def test_many_phases_have_no_legend():
    few, many = (curve_figure({f"phase {n}": sample_result()["training"]["train"] for n in range(k)}, "loss", "") for k in (3, 4))
    assert (few["layout"]["showlegend"], many["layout"]["showlegend"]) == (True, False)
    assert many["data"][3]["hovertemplate"].startswith("phase 3<br>") and "phase" not in few["data"][2]["hovertemplate"]


def test_phases_follow_one_another():
    train, tune = curve_figure(sample_result()["training"], "loss", "loss")["data"]
    assert train["x"] == list(range(1, 13)) and tune["x"] == list(range(13, 19))
    assert tune["y"] == pytest.approx([0.7 / n for n in range(1, 7)])
    assert tune["customdata"][1] == ["2", "0.01"]
    assert train["line"]["dash"] != tune["line"]["dash"]  # told apart without colour


def test_epochs_without_accuracy_leave_gaps_and_none_at_all_no_figure():
    training = sample_result()["training"]
    training["train"][0]["accuracy"] = None
    train, _ = curve_figure(training, "accuracy", "accuracy")["data"]
    assert train["x"] == list(range(2, 13)) and train["y"][0] == pytest.approx(86.5)
    for epochs in training.values():
        for epoch in epochs:
            epoch["accuracy"] = None
    assert curve_figure(training, "accuracy", "accuracy") is None
    assert widths_figure([]) is None and stages_figure([]) is None


def test_colours_are_variables_of_the_style_sheet():
    from prunus.report.offline import resource

    text = str(figures(sample_result(30) | {k: photo_result()[k] for k in ("stages", "rounds", "data")}))
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgb", text)
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    light, dark = resource("style.css").split("prefers-color-scheme: dark", 1)
    assert {"--accent", "--before", "--frozen", "--third"} <= used
    for name in used:
        assert f"{name}: #" in light and f"{name}: #" in dark
