"""The page of a scan says what its result says, whatever is in it, and loads nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from prunus import ExportError
from prunus.report import laboratory
from prunus.report.sensitivity import curves, render_sensitivity, sensitivity_figure, write_sensitivity
from report.test_page import HOSTILE, Reader

pytest.importorskip("plotly")


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laboratory, "plotly", lambda: "/* plotly */")


def point(group: str, channels: int, removed: int, accuracy: float) -> dict[str, Any]:
    share = removed / channels
    return {"group": group, "channels": channels, "removed": removed, "accuracy": accuracy, "share": share}


def sample() -> dict[str, Any]:
    robust = point("layer1.conv1", 10, 6, 0.895)
    return {
        "prunus": "0.1",
        "subject": {"model": "net", "data": "images", "weights": None},
        "settings": {"criterion": "l1", "options": {}, "images": 500, "shares": [0.3, 0.6], "keep": [], "seed": 0},
        "criterion": "l1",
        "network": {"accuracy": 0.9, "cost": {"macs": 1000, "parameters": 10}, "images": 500, "split": "validation"},
        "groups": [
            {"name": "layer1.conv1", "channels": 10, "unscanned": None, "largest": {"epsilon": 0.01, "macs": 750, **robust}},
            {"name": "layer2.conv1", "channels": 20, "unscanned": None, "largest": None},
            {"name": "fc", "channels": 5, "unscanned": "outputs are never pruned", "largest": None},
        ],
        "points": [
            point("", 30, 0, 0.9),
            robust,
            point("layer1.conv1", 10, 3, 0.91),
            point("layer2.conv1", 20, 6, 0.8),
            point("layer2.conv1", 20, 12, 0.3),
        ],
        "notes": ["hardly any images"],
        "environment": {"torch": "2"},
    }


def test_the_page_says_what_the_result_says() -> None:
    found = Reader(render_sensitivity(sample()))
    for text in (
        "Sensitivity of net",
        "channels ranked by l1; accuracy 90.0 % on 500 validation images of images",
        "layer2.conv1 is the most sensitive: 30.0 % without 60.0 % of its channels",
        "; layer1.conv1 the least: 89.5 % without 60.0 %.",
        "layer1.conv1 10 60.0 % 6 channels 89.5 % \u22120.5 points 25.0 %",
        "layer2.conv1 20 none \u2013 \u2013 \u2013",
        "layer1.conv1 3 of 10 30.0 % 91.0 % +1.0 points layer1.conv1 6 of 10 60.0 % 89.5 % \u22120.5 points",
        "fc 5 outputs are never pruned",
        "hardly any images",
        "shares 0.3, 0.6 seed 0 MACs 1,000 parameters 10 torch 2",
    ):
        assert text in found.text, text
    assert json.loads(found.scripts["result"]) == sample()
    places = {attributes.get("id") for tag, attributes in found.elements if tag == "div"}
    assert json.loads(found.scripts["figures"]).keys() == {"plot-sensitivity"} <= places
    assert not [a for tag, a in found.elements if a.get("src") or (tag == "link")]


def test_curves_begin_at_the_whole_network_and_grow_in_share() -> None:
    assert [p["removed"] for p in curves(sample())["layer1.conv1"]] == [3, 6] and list(curves(sample())) == [
        "layer1.conv1",
        "layer2.conv1",
    ]
    first, second, limit = sensitivity_figure(sample())["data"]
    assert first["x"] == [0, 30, 60] and first["y"] == pytest.approx([90, 91, 89.5])
    assert second["x"] == [0, 30, 60] and second["y"] == pytest.approx([90, 80, 30])
    assert second["customdata"][2] == ["layer2.conv1", "12 of 20 channels removed: 30.0 %"]
    assert (limit["x"], limit["y"]) == ([0, 60], [89, 89])


def test_many_groups_look_different() -> None:
    result = sample()
    groups = [{**result["groups"][1], "name": f"conv{n}"} for n in range(168)]
    points = [point(g["name"], 20, 6, 0.5) for g in groups]
    lines = sensitivity_figure({**result, "groups": groups, "points": points})["data"][:-1]
    assert len({(t["line"]["color"], t["line"]["dash"], t["marker"]["symbol"]) for t in lines}) == 168


def test_a_scan_without_doubts_and_left_out_groups_has_no_such_sections() -> None:
    result = sample()
    result["notes"], result["groups"] = [], result["groups"][:2]
    text = Reader(render_sensitivity(result)).text
    assert "Doubts" not in text and "Not scanned" not in text and "How much each group bears" in text


def test_hostile_names_stay_text() -> None:
    result = copy.deepcopy(sample())
    result["subject"]["model"] = result["subject"]["data"] = result["criterion"] = HOSTILE
    result["notes"] = [HOSTILE]
    for row in (*result["groups"], *result["points"]):
        key = "name" if "name" in row else "group"
        row[key] = row[key] and f"{row[key]}{HOSTILE}"
    text = render_sensitivity(result)
    assert "<img" not in text
    assert json.loads(Reader(text).scripts["result"])["criterion"] == HOSTILE
    assert "<b>" not in sensitivity_figure(result)["data"][0]["name"]


def test_a_result_of_something_else_and_a_full_disk_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the scan can't be shown: KeyError 'network'; was it written by this version"):
        render_sensitivity({"subject": {}})
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="the page can't be written to"):
        write_sensitivity(sample(), tmp_path / "file" / "page.html")
    write_sensitivity(sample(), tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
