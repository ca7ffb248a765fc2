"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from prunus.report import wording


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (wording.count, 1035000, "1,035,000"),
        (wording.count, 1040000.0, "1,040,000"),
        (wording.count, 0.5, "0.50"),
        (wording.count, math.nan, "\u2013"),
        (wording.count, True, "\u2013"),
        (wording.short, 999, "999"),
        (wording.short, 1035000, "1.03 M"),
        (wording.short, 4_111_514_624, "4.11 G"),
        (wording.short, 0, "0"),
        (wording.short, 999_999, "1.00 M"),
        (wording.size, 421987, "422 kB"),
        (wording.size, 12, "12.0 B"),
        (wording.percent, 0.39807, "39.8 %"),
        (wording.percent, None, "\u2013"),
        (wording.points, -0.004, "\u22120.4 points"),
        (wording.points, 0.0123, "+1.2 points"),
        (wording.points, 0.0, "\u00b10.0 points"),
        (wording.milliseconds, 12.345, "12.3 ms"),
        (wording.milliseconds, 1234.5, "1,234 ms"),
        (wording.milliseconds, 0.0004, "0.0004 ms"),
        (wording.milliseconds, 9.999, "10.0 ms"),
        (wording.duration, 59.99, "60.0 s"),
        (wording.duration, 61.2, "1 min 1 s"),
        (wording.duration, 7325, "2 h 2 min"),
        (wording.error, 1.3e-15, "1.3e-15"),
        (wording.error, 0.0, "0"),
        (wording.error, math.inf, "not finite"),
        (wording.error, None, "\u2013"),
        (wording.plain, 0.0512, "0.0512"),
        (wording.plain, 1234567, "1,234,567"),
        (wording.plain, True, "True"),
        (wording.moment, "2026-11-22T10:00:00+00:00", "22 November 2026, 10:00 UTC"),
        (wording.moment, "yesterday", "yesterday"),
        (wording.escape, "<a href=\"'&", "&lt;a href=&quot;&#x27;&amp;"),
    ],
)
def test_writing(write, value, text):
    assert write(value) == text


def test_ratio_and_speed():
    assert wording.ratio(1, 4) == 0.25
    assert wording.ratio(1, 0) is None and wording.ratio(None, 1) is None
    assert wording.speed_up({"median_ms": 4.0}, {"median_ms": 2.0}) == 2.0
    assert wording.speed_up(None, {"median_ms": 2.0}) is None
