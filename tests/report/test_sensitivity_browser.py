"""The page of a scan in headless Chromium: the curves are drawn, nothing is on the console, nothing sticks out of a phone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from prunus.report.sensitivity import write_sensitivity
from report.test_browser import CHROMIUM, FRAME, browse
from report.test_laboratory_browser import PROBE
from report.test_sensitivity import point, sample

pytest.importorskip("plotly")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


def test_the_page_fits_a_phone_and_every_curve_is_drawn(tmp_path: Path) -> None:
    result = sample()
    names = [f"features.stage{n}.blocks.0.conv_with_a_long_name.{n}" for n in range(30)]
    result["groups"] += [{**result["groups"][1], "name": name} for name in names]
    result["points"] += [point(name, 20, removed, 0.9 - removed / 40) for name in names for removed in (6, 12)]
    result["subject"]["model"], result["notes"] = "a" * 80, ["b" * 150]
    write_sensitivity(result, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace("</head>", PROBE, 1), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=390), encoding="utf-8")
    dom, console = browse(tmp_path, tmp_path / "frame.html")
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title and title[1] != "waiting" and console == [], console
    found = json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["scroll"] <= found["client"] <= 390 and found["wide"] == [] and found["requests"] == 0
    assert found["drawn"] == {"plot-sensitivity": 33}  # 32 groups and the line one point below
