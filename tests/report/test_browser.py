"""The page in headless Chromium: the plots are drawn, nothing is on the console, nothing sticks out of a phone's screen."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from prunus.report import write_report
from report.sample import photo_result, sample_result

pytest.importorskip("plotly")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

PLACES = ["plot-stages", "plot-widths", "plot-loss", "plot-accuracy"]
# Headless windows have a least width, a frame doesn't; file:// frames are strangers to each other, so that the inner page sends
# its findings out. The probe is added to a copy of the page: the page itself has no such script.
FRAME = """<!doctype html><title>waiting</title><iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>
<script>addEventListener("message", (event) => {{ document.title = event.data; }});</script>"""
PROBE = """<script>
const problems = [];
const places = PLACES;
addEventListener("error", (event) => problems.push(String(event.message)));
addEventListener("load", () => setTimeout(() => {
  const own = ".scroll, pre, svg, .skip, .plot, .name";
  const wide = [...document.querySelectorAll("body *")].filter((element) => !element.closest(own)
    && element.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
  const style = (element, name) => getComputedStyle(element)[name];
  parent.postMessage(JSON.stringify({
    client: document.documentElement.clientWidth,
    scroll: document.documentElement.scrollWidth,
    wide: wide.map((element) => element.outerHTML.slice(0, 120)),
    drawn: places.map((place) => document.querySelectorAll("#" + place + " .main-svg .trace").length),
    bars: document.querySelectorAll("#plot-widths .point path").length,
    plotWidths: places.map((place) => document.querySelector("#" + place + " .main-svg").getBoundingClientRect().width),
    cropped: [...document.querySelectorAll(".plot .main-svg text")].filter((text) => {
      const [inner, outer] = [text, text.closest(".plot")].map((element) => element.getBoundingClientRect());
      return inner.width > 0 && (inner.left < outer.left - 1 || inner.right > outer.right + 1);
    }).map((text) => text.textContent),
    pictures: [...document.querySelectorAll(".samples img")].map((image) => [image.naturalWidth, image.width]),
    background: style(document.body, "backgroundColor"),
    paper: style(document.querySelector("#plot-widths .main-svg"), "backgroundColor"),
    card: style(document.querySelector("main section"), "backgroundColor"),
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
    problems,
  }), "*");
}, 500));
</script></head>"""


def browse(folder, page, *flags):
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr"),
        *(f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=6000", "--window-size=1440,1000"),
        *(*flags, "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    shutil.rmtree(folder / "profile", ignore_errors=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def inspect(folder, result, width, *flags, places=PLACES):
    write_report(result, folder / "report.html")
    text = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "page.html").write_text(text.replace("</head>", PROBE.replace("PLACES", json.dumps(places)), 1), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    dom, console = browse(folder, folder / "frame.html", *flags)
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title and title[1] != "waiting", console
    return json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), console


def test_all_plots_are_drawn_and_the_console_is_silent(tmp_path):
    write_report(sample_result(12), tmp_path / "report.html")
    dom, console = browse(tmp_path, tmp_path / "report.html")
    assert console == []
    for place in PLACES:
        inner = dom[dom.index(f'id="{place}"') :]
        assert 'class="main-svg"' in inner[: inner.index("</figure>")], place
    assert dom.count('class="main-svg"') >= len(PLACES)


@pytest.mark.parametrize(("number", "width", "dark"), [(3, 390, False), (40, 768, False), (150, 390, True)])
def test_it_fits_the_screen_in_either_colour_scheme(tmp_path, number, width, dark):
    result = sample_result(number)
    result["groups"][0]["name"] = "a" * 90  # a name without a place to break
    result["groups"][0]["frozen_because"] = "b" * 200
    result["warnings"] = ["c" * 150, "ordinary words"]
    result["command"] = "prunus run " + "d" * 200
    result["environment"]["platform"] = "e" * 120
    found, console = inspect(tmp_path, result, width, *(["--blink-settings=preferredColorScheme=0"] if dark else []))
    assert console == [] and found["problems"] == [] and found["requests"] == []
    assert found["client"] <= width and found["scroll"] <= found["client"] and found["wide"] == []
    assert found["bars"] == 2 * number and found["cropped"] == []
    assert found["drawn"][0] == 1 and found["drawn"][2:] == [2, 2]
    assert all(150 < plot <= width for plot in found["plotWidths"])
    assert found["background"] == ("rgb(23, 20, 26)" if dark else "rgb(246, 244, 241)")
    assert found["paper"].replace(" ", "") == ("rgb(33,29,37)" if dark else "rgb(255,255,255)")


@pytest.mark.parametrize(
    ("result", "dark"), [(photo_result(1), False), (photo_result(20, tuple(f"class {n}" * 3 for n in range(10))), True)]
)
def test_a_full_result_fits_a_phone(tmp_path, result, dark):
    places = [
        "plot-confusion-first",
        "plot-confusion-last",
        "plot-stages",
        *(["plot-rounds"] if len(result["rounds"]) > 2 else []),
    ]
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    found, console = inspect(tmp_path, result, 390, *flags, places=places)
    assert console == [] and found["problems"] == [] and found["cropped"] == []
    assert all(name.startswith("data:image/png;base64,") for name in found["requests"])
    assert found["scroll"] <= found["client"] <= 390 and found["wide"] == []
    assert found["drawn"][2:] == [1] * (len(places) - 2)
    assert all(150 < plot <= 390 for plot in found["plotWidths"])
    assert found["pictures"] == [[112, 112], [112, 112], [112, 112], [8, 112]]


def test_markup_in_names_does_not_run(tmp_path):
    hostile = "</script><img src=x onerror=\"document.title='owned'\"><a href='javascript:alert(1)'>x</a>"
    result = sample_result(3)
    for group in result["groups"]:
        group["name"] += hostile
        group["layers"] = [hostile]
    result |= {"name": hostile, "notes": [hostile], "command": hostile, "warnings": [hostile]}
    for stage in result["stages"]:
        stage["stage"] += hostile
    write_report(result, tmp_path / "report.html")
    dom, console = browse(tmp_path, tmp_path / "report.html")
    assert "<title>owned" not in dom and "<img" not in dom.split('<script type="application/json"')[0]
    assert console == []
    assert 'href="javascript' not in dom and 'xlink:href="javascript' not in dom
