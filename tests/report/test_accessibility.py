"""axe-core finds no serious fault in any page, in light and dark. It wants ``npm install axe-core`` in the project's folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from prunus.report import page, runs
from report import test_runs
from report.sample import photo_result
from report.test_browser import CHROMIUM, browse
from report.test_hostile_text import PAGES

ROOT = Path(__file__).parents[2]
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
pytest.importorskip("plotly")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
    pytest.mark.skipif(
        not AXE.exists() or not shutil.which("npm"), reason="npm install axe-core has not been run in the project"
    ),
]
ALL = {
    "run": (page.render, lambda: photo_result(3)),
    "runs": (runs.render_runs, lambda: runs.compare_runs(test_runs.RUNS, "0.1.0")),
    **{name: (render, make) for name, (render, make, _) in PAGES.items()},
}
RUN = """<script>AXE</script><script>
addEventListener("load", () => setTimeout(async () => {
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
  const found = await axe.run(document, { resultTypes: ["violations"] });
  document.title = JSON.stringify(found.violations.map((fault) => ({
    id: fault.id, impact: fault.impact, nodes: fault.nodes.map((node) => node.html.slice(0, 160)).slice(0, 4) })));
}, 500));
</script></head>"""


def faults(folder: Path, html: str, *flags: str) -> list[dict[str, object]]:
    """What axe finds; the page's own policy forbids scripts of others, so that it goes from this copy's head."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    head, _, rest = html.partition("</head>")
    (folder / "page.html").write_text(head + RUN.replace("AXE", AXE.read_text(encoding="utf-8"), 1) + rest, encoding="utf-8")
    dom, console = browse(folder, folder / "page.html", *flags, "--virtual-time-budget=20000")
    title = re.search(r"<title>(\[.*?\])</title>", dom, re.DOTALL)
    assert title, console
    return json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_no_serious_fault(name, dark, tmp_path):
    render, make = ALL[name]
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    found = faults(tmp_path, render(make()), *flags)
    assert [fault for fault in found if fault["impact"] in ("serious", "critical")] == []


def test_a_fault_would_be_found(tmp_path):
    html = "<!doctype html><html lang='en'><head><title>x</title></head><body><main><img src='data:,'></main></body></html>"
    assert "image-alt" in [fault["id"] for fault in faults(tmp_path, html)]
