"""The network as a picture: bars as wide as the layers, brackets where outputs are added, reasons where nothing may go."""

from __future__ import annotations

import re
from typing import Any

from prunus.report.picture import picture
from prunus.report.wording import MISSING


def _row(
    name: str, before: int, after: int | None, writes: str, *, makes: bool = True, kind: str = "convolution"
) -> dict[str, Any]:
    def figures(width: int) -> dict[str, Any]:
        return {"reads": 8, "writes": width, "macs": 100 * width, "ms": width / 16}

    return {
        **{"name": name, "kind": kind, "writes": [writes], "makes": makes},
        **{"before": figures(before), "after": None if after is None else figures(after)},
    }


GROUPS = [
    {"name": "stem", "before": 32, "after": 16, "frozen_because": None},
    {"name": "a", "before": 64, "after": 8, "frozen_because": None},
    {"name": "head", "before": 10, "after": 10, "frozen_because": "it is the network's output"},
]
ROWS = [
    _row("stem", 32, 16, "stem"),
    _row("a.conv1", 64, 8, "a"),
    _row("a.depthwise", 64, 8, "a", makes=False, kind="depthwise convolution"),
    _row("a.conv2", 32, 16, "stem"),
    _row("b.conv", 32, None, "stem"),
    _row("head", 10, 10, "head", kind="matrix product"),
]
RESULT: dict[str, Any] = {"layers": {"threads": 2, "rows": ROWS}, "groups": GROUPS}


def test_bars_are_as_wide_as_the_layers():
    html = picture(RESULT)
    bars = re.findall(r'<span class="bar"[^>]*>(.*?)</span>', html)
    assert [re.findall(r'class="(\w+)" style="width:([\d.]+)%"', bar) for bar in bars] == [
        [("before", "50.00"), ("after", "25.00")],
        [("before", "100.00"), ("after", "12.50")],
        [("before", "100.00"), ("after", "12.50")],
        [("before", "50.00"), ("after", "25.00")],
        [("before", "50.00")],
        [("before", "15.62"), ("frozen", "15.62")],
    ]
    assert re.findall(r'class="count"[^>]*>([^<]*)<', html) == [
        "16 of 32",
        "8 of 64",
        "8 of 64",
        "16 of 32",
        "0 of 32",
        "10 of 10",
    ]


def test_a_bracket_couples_layers_that_add_their_outputs():
    """Three layers make the channels of ``stem``; the depthwise one only passes those of ``a`` on."""
    html = picture(RESULT)
    assert re.findall(r'class="link" style="grid-area:(\d+)/4/(\d+)/5', html) == [("2", "7")]
    assert re.findall(r'class="tick" style="grid-area:(\d+)/', html) == ["2", "5", "6"]
    assert "--lanes:1" in html and "A bracket couples" in html


def test_brackets_that_overlap_lie_side_by_side():
    names = ["s", "t", "s", "t", "u", "u"]
    rows = [_row(f"l{n}", 8, 8, name) for n, name in enumerate(names)]
    html = picture({"layers": {"threads": 1, "rows": rows}, "groups": []})
    lanes = {match[0]: match[1] for match in re.findall(r'class="link" style="grid-area:(\d+)/4/\d+/5;--lane:(\d)', html)}
    assert lanes == {"6": "0", "2": "0", "3": "1"} and "--lanes:2" in html


def test_reasons_and_lost_layers_are_told():
    html = picture(RESULT)
    assert "head: matrix product; 10 of 10 channels; frozen: it is the network&#x27;s output" in html
    assert "b.conv: convolution; removed as a whole" in html and "2.00 ms → gone" in html
    assert "2 threads" in html and "frozen (hover for the reason)" in html


def test_the_table_has_the_figures():
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", picture(RESULT)))
    assert "a.conv1 convolution 8 → 64 8 → 8 6.40 k 800 12.5 % 4.00 ms 0.500 ms 12.5 %" in text
    assert f"b.conv convolution 8 → 32 gone 3.20 k {MISSING} 0.0 % 2.00 ms {MISSING} 0.0 %" in text


def test_results_without_layers_have_no_picture():
    assert picture({"groups": GROUPS}) == ""
