"""The laboratory's page in headless Chromium: the plots are drawn, nothing is on the console, nothing sticks out of a phone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from prunus.report.laboratory import write_comparison, write_scores
from report.test_browser import CHROMIUM, FRAME, browse
from report.test_laboratory import criterion, sample, scores

pytest.importorskip("plotly")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

PROBE = """<script>
addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement;
  const wide = [...document.querySelectorAll("main *")].filter((element) => !element.closest(".scroll, figure, svg")
    && element.getBoundingClientRect().right > root.clientWidth + 1);
  parent.postMessage(JSON.stringify({
    scroll: root.scrollWidth, client: root.clientWidth, wide: wide.map((element) => element.outerHTML.slice(0, 120)),
    drawn: Object.fromEntries([...document.querySelectorAll(".plot")].map((place) =>
      [place.id, place.querySelectorAll(".main-svg .trace, .main-svg .hm").length])),
    requests: performance.getEntriesByType("resource").length,
  }), "*");
}, 500));
</script></head>"""


def test_the_comparison_fits_a_phone_and_every_plot_is_drawn(tmp_path: Path) -> None:
    result = sample()
    result["criteria"] += [criterion(f"criterion_{n}", n / 30, -n / 30) for n in range(20)]
    result["subject"]["model"] = "a" * 80
    result["criteria"][1]["notes"] = ["b" * 150]
    write_comparison(result, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace("</head>", PROBE, 1), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=390), encoding="utf-8")
    dom, console = browse(tmp_path, tmp_path / "frame.html")
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title and title[1] != "waiting" and console == [], console
    found = json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["scroll"] <= found["client"] <= 390 and found["wide"] == [] and found["requests"] == 0
    assert found["drawn"] == {
        "plot-agreement": 2,
        "plot-layers": 22,
        "plot-correlations-raw": 2,
        "plot-correlations-l2": 2,
        "plot-removal-none": 3,
        "plot-removal-fine-tuned": 3,
    }


def test_the_scores_are_drawn(tmp_path: Path) -> None:
    write_scores(scores(), tmp_path / "report.html")
    dom, console = browse(tmp_path, tmp_path / "report.html")
    assert console == []
    place = dom[dom.index('id="plot-scores"') :]
    assert place[: place.index("</figure>")].count('class="trace boxes"') == 2
