"""No text of a result can be markup in its page, whichever page and whichever text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunus.report import laboratory, ladder, page, sensitivity, tickets
from report import test_laboratory, test_ladder, test_sensitivity, test_tickets
from report.hostile import MARKUP, poisoned, texts_that_stayed_text

pytest.importorskip("plotly")
PAGES: dict[str, tuple[Callable[[Any], str], Callable[[], Any], int]] = {
    "comparison": (laboratory.render_comparison, test_laboratory.sample, 60),
    "scores": (laboratory.render_scores, test_laboratory.scores, 10),
    "sensitivity": (sensitivity.render_sensitivity, test_sensitivity.sample, 30),
    "tickets": (tickets.render_tickets, test_tickets.sample, 60),
    "recovery": (ladder.render_recovery, test_ladder.recovery, 15),
}


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (page, laboratory):
        monkeypatch.setattr(module, "plotly", lambda: "/* plotly */")


@pytest.mark.parametrize("name", PAGES)
def test_markup_stays_text(name: str) -> None:
    render, make, least = PAGES[name]
    assert texts_that_stayed_text(render, make()) >= least


def test_a_page_that_escapes_nothing_is_found_out() -> None:
    with pytest.raises(AssertionError, match=r"markup in .*name.* is part of the page"):
        texts_that_stayed_text(lambda result: f"<h1>{result['name']}</h1>", {"name": "digits"})
    assert poisoned({"a": {"b": "c"}}, [(("a", "b"), True), (("a",), True)]) == {f"a{MARKUP}": {f"b{MARKUP}": "c"}}


def test_every_page_writer_is_tested() -> None:
    """Run: test_page, several: test_runs; searches, latencies and benches: tests/laboratory; gallery: test_gallery."""
    package = Path(page.__file__).parent
    writers = {path.stem for path in package.glob("*.py") if "\ndef write_" in path.read_text() and path.stem != "offline"}
    assert writers == {"page", "laboratory", "sensitivity", "tickets", "ladder", "search", "latency", "gallery", "bench", "runs"}
