"""The laboratory's pages say what their results say, whatever is in them, and load nothing."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from prunus import ExportError
from prunus.report import laboratory
from prunus.report.laboratory import render_comparison, render_scores, write_comparison, write_scores
from prunus.report.laboratory_plots import agreement_figure, comparison_figures, correlation_figure, ranked, scores_figure, spread
from report.test_page import HOSTILE, Reader

pytest.importorskip("plotly")


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laboratory, "plotly", lambda: "/* plotly */")


def fig(*values: float | None) -> dict[str, Any]:
    known = [v for v in values if v is not None]
    return {"values": list(values), "mean": sum(known) / len(known) if known else None, "std": 0.05 if len(known) > 1 else None}


def criterion(name: str, raw: float | None, l2: float | None, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "family": "weight",
        "reference": False,
        "not_applicable": None,
        "notes": [],
        "seconds": fig(0.002, 0.004),
        "spearman": {"raw": fig(raw, raw), "l2": fig(l2, l2), "within": fig(0.5)},
        "overlap": {"raw": fig(0.25, 0.75), "l2": fig(0.6)},
        "layers": {"conv1": fig(0.4), "conv2": fig(None)},
        **more,
    }


def sample() -> dict[str, Any]:
    oracle = {**criterion("oracle", None, None), "reference": True, "family": "measured"}
    unable = {**criterion("bn_scale", None, None), "not_applicable": "no norm layers"}
    curve = [{"share": 0.3, **fig(0.8, 0.9)}, {"share": 0.6, **fig(0.4)}]
    return {
        "prunus": "0.1",
        "created": "2026-11-22T10:00:00+00:00",
        "subject": {"model": "net", "data": "images"},
        "settings": {"images": 64, "shares": [0.3, 0.6], "recovery": {"steps": 50, "lr": 0.01}, "keep": [], "channels": None},
        "seeds": [0, 1],
        "network": {
            "accuracy": fig(0.95),
            "channels": 40,
            "sampled": 20,
            "test_images": 100,
            "cost": {"macs": 1000, "parameters": 10},
            "groups": [{"name": "conv1", "channels": 40, "sampled": 20, "frozen_because": None}],
        },
        "criteria": [
            oracle,
            criterion("l1", -0.5, 0.7, notes=["norms are alike"]),
            criterion("taylor", 0.9, 0.8, family="gradient"),
            unable,
        ],
        "correlations": {"names": ["oracle", "l1"], "raw": [[1.0, -0.5], [-0.5, 1.0]], "l2": [[1.0, None], [None, 1.0]]},
        "removal": {
            "recoveries": ["none", "fine-tuned"],
            "curves": {name: {"none": curve, "fine-tuned": curve} for name in ("oracle", "l1", "taylor")},
            "refused": [{"criterion": "l1", "seed": 1, "share": 0.6, "why": "can't be reached"}],
        },
        "warnings": ["hardly trained"],
        "environment": {"torch": "2"},
    }


def test_the_page_says_what_the_result_says() -> None:
    found = Reader(render_comparison(sample()))
    for text in (
        "Criteria on net",
        "images, accuracy 95.0 %; 20 of 40 channels, 2 seeds",
        "taylor agrees best with the oracle: rank correlation 0.90 ± 0.05 over all layers, scores as they are.",
        "\u22120.50 ± 0.05 0.70 ± 0.05 0.50 50.0 % ± 5.0 60.0 % 3.00 ms",
        "bn_scale no norm layers",
        "l1: norms are alike",
        "hardly trained",
        "Test accuracy with 60 % of the channels removed",
        "l1, seed 1, 60.0 %: can't be reached",
        "85.0 % ± 5.0 40.0 %",
        "shares 0.3, 0.6 recovery steps 50, lr 0.01 seeds 0, 1",
    ):
        assert text in found.text, text
    assert json.loads(found.scripts["result"])["seeds"] == [0, 1]
    places = {attributes.get("id") for tag, attributes in found.elements if tag == "div"}
    assert json.loads(found.scripts["figures"]).keys() <= places
    assert not [a for tag, a in found.elements if a.get("src") or (tag == "link")]


def test_the_best_stand_first() -> None:
    assert [r["name"] for r in ranked(sample())] == ["taylor", "l1"]
    figure = agreement_figure(ranked(sample()))
    assert figure is not None
    raw, l2 = figure["data"]
    assert raw["x"] == [0.9, -0.5] and raw["y"] == [0, 1] and l2["x"] == [0.8, 0.7] and raw["error_x"]["array"] == [0.05, 0.05]


def test_figures_hold_the_results_values() -> None:
    drawn = comparison_figures(sample())
    assert drawn.keys() == {
        *("plot-agreement", "plot-layers", "plot-correlations-raw", "plot-correlations-l2"),
        *("plot-removal-none", "plot-removal-fine-tuned"),
    }
    line = next(t for t in drawn["plot-removal-none"]["data"] if t["name"] == "taylor")
    assert line["x"] == [0, 30, 60] and line["y"] == pytest.approx([95, 85, 40])
    assert {(t["line"]["color"], t["line"]["dash"]) for t in drawn["plot-removal-none"]["data"]} == {
        ("var(--good)", "solid"),
        ("var(--accent)", "solid"),
        ("var(--second)", "solid"),
    }
    heat = correlation_figure(sample()["correlations"], "l2")
    assert heat is not None and heat["data"][0]["z"] == [[1.0, None], [None, 1.0]] and heat["data"][1]["text"] == ["1.00", "1.00"]
    box = drawn["plot-layers"]["data"][0]
    assert (box["x"], box["y"], box["text"]) == ([0.4], [0], ["conv1: 0.40"])
    assert spread(fig(-0.001)) == "0.00" and spread(fig(-0.5, -0.5)) == "\u22120.50 ± 0.05" and spread(fig(None)) == "\u2013"


def test_without_removal_or_comparable_criteria() -> None:
    result = sample()
    result["removal"], result["settings"]["shares"] = None, []
    result["criteria"] = result["criteria"][:1]
    result["correlations"] = {"names": ["oracle"], "raw": [[1.0]], "l2": [[1.0]]}
    found = Reader(render_comparison(result))
    assert "No criterion could be compared with the oracle." in found.text and "Accuracy after removal" not in found.text


def test_hostile_names_stay_text() -> None:
    result = copy.deepcopy(sample())
    result["subject"]["model"] = HOSTILE
    result["criteria"][1] |= {"name": HOSTILE, "notes": [HOSTILE]}
    result["criteria"][3]["not_applicable"] = HOSTILE
    result["removal"]["curves"][HOSTILE] = result["removal"]["curves"].pop("l1")
    result["correlations"]["names"][1] = HOSTILE
    result["network"]["groups"][0]["name"] = HOSTILE
    text = render_comparison(result)
    assert "<img" not in text and not re.search(r"<b>\"", text)
    assert json.loads(Reader(text).scripts["result"])["subject"]["model"] == HOSTILE


def scores() -> dict[str, Any]:
    return {
        "prunus": "0.1",
        "model": "net",
        "criterion": "l1",
        "summary": "Sum of weights.",
        "paper": "Li et al.",
        "comparable": False,
        "notes": ["norms are alike"],
        "options": {"members": "max"},
        "scores": {"conv1": [1.0, 2.0, 3.0], "conv2": [0.5, 4.5]},
    }


def test_the_page_of_scores() -> None:
    text = Reader(render_scores(scores())).text
    assert "Scores of net" in text and "l1 (members = max), not comparable over groups" in text and "norms are alike" in text
    assert "conv1 3 1 2 3" in text and "conv2 2 0.5 2.5 4.5" in text


def test_scores_of_many_sizes_are_on_a_logarithmic_axis() -> None:
    assert scores_figure({"a": [1.0, 2.0, 3.0]}, "l1")["layout"]["xaxis"]["type"] == "linear"
    assert scores_figure({"a": [0.1, 0.2, 300.0]}, "l1")["layout"]["xaxis"]["type"] == "log"
    assert scores_figure({"a": [0.0, 0.2, 300.0]}, "l1")["layout"]["xaxis"]["type"] == "linear"


def test_a_result_of_something_else_and_a_full_disk_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the result can't be shown: KeyError 'criteria'"):
        render_comparison({"subject": {}})
    with pytest.raises(ExportError, match="the result can't be shown: KeyError 'scores'"):
        render_scores({})
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="the page can't be written to"):
        write_comparison(sample(), tmp_path / "file" / "page.html")
    write_scores(scores(), tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
