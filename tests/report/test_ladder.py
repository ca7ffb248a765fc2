"""The ladder and the controls in the report, and the page of a recovery."""

from __future__ import annotations

import pytest

from prunus.errors import ExportError
from prunus.report.ladder import controls, ladder, ladder_figure, render_recovery
from report.sample import sample_result


def rung(name, accuracy, gained, seconds, epochs=0):
    figures = {"accuracy": accuracy, "loss": 1.0, "split": "test", "gained": gained, "seconds": seconds, "epochs": epochs}
    return {"rung": name, **figures}


ROWS = [rung("removal", 0.314, None, 0.5), rung("reconstruction", 0.653, 0.339, 61.0), rung("fine-tuning", 0.988, 0.335, 9.0, 6)]


def test_shares_of_the_loss_are_of_the_unpruned_accuracy():
    """Before pruning 0.992, after 0.314: 0.678 is lost; reconstruction brings 0.339 of it back, half."""
    text = ladder({**sample_result(), "ladder": ROWS})
    assert "Which rung of recovery gave what" in text
    for cell in ("31.4 %", "65.3 %", "+33.9 points", "50.0 %", "1 min 1 s", "98.8 %", "99.4 %"):
        assert cell in text
    assert ladder(sample_result()) == "" and ladder({**sample_result(), "ladder": ROWS[:1]}) == ""


def test_controls_stand_beside_this_run():
    row = {"row": "scratch-b", "what": "from <random> weights", "epochs": 30, "macs": 1035000, "split": "test", "seconds": 5.0}
    text = controls({**sample_result(), "ladder": ROWS, "controls": [{**row, "accuracy": 0.978, "loss": 0.1}]})
    assert "from &lt;random&gt; weights" in text and "97.8 %" in text and "1,035,000" in text
    assert "\u22121.0 points" in text and "98.8 %" in text
    assert controls(sample_result()) == ""


def recovery():
    return {
        "prunus": "0.1.0",
        "request": {"model": "cifar:resnet20", "data": "digits", "weights": None, "pruned": "<small>.prunus", "seed": 0},
        "full": {"accuracy": 0.992},
        "ladder": ROWS,
        "warnings": ["a doubt"],
        "notes": [],
        "environment": {"torch": "2.14"},
    }


def test_the_page_of_a_recovery():
    page = render_recovery(recovery())
    assert "Accuracy goes from 31.4 % as pruned to 98.8 %; the unpruned network has 99.2 %." in page
    assert "&lt;small&gt;.prunus" in page and "<small>.prunus" not in page.split("<script")[0]
    assert "a doubt" in page and 'id="plot-ladder"' in page
    figure = ladder_figure(recovery())
    assert figure["data"][0]["y"] == pytest.approx([31.4, 65.3, 98.8])
    assert figure["layout"]["shapes"][0]["y0"] == pytest.approx(99.2)


def test_a_page_of_something_else_is_refused():
    with pytest.raises(ExportError, match="the recovery can't be shown: KeyError 'full'"):
        render_recovery({key: value for key, value in recovery().items() if key != "full"})
