"""Pictures with what both networks say of them."""

from __future__ import annotations

import re

from prunus.report.samples import samples
from report.sample import photo_result, png


def test_wrong_answers_are_marked_in_words():
    markup = samples(photo_result())
    cards = [re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", card)).strip() for card in markup.split("<li>")[1:]]
    assert cards == [
        "cat before \u2713 91.3 % after \u2717 wrong: dog 61.4 %",
        "dog before \u2717 wrong: cat 55.2 % after \u2713 87.1 %",
        "dog before \u2713 100.0 % after \u2713 99.2 %",
        "cat before \u2717 wrong: dog 70.0 % after \u2717 wrong: dog 83.0 %",
    ]
    assert markup.count('class="wrong"') == 4 and markup.count('class="right"') == 4
    assert "4 of 128 test images drawn at random" in markup


def test_small_pictures_keep_their_pixels():
    result = photo_result()
    for n, side in enumerate((8, 56, 57, 112)):
        result["samples"]["rows"][n]["image"] = png(side)
    assert [' class="small"' in card for card in samples(result).split("<li>")[1:]] == [True, True, False, False]
    result["samples"]["rows"][0]["image"] = "data:image/png;base64,AAAA"  # a damaged header is no reason to fail
    assert ' class="small"' not in samples(result).split("<li>")[1]


def test_none_is_no_section():
    assert samples({}) == samples({"samples": None}) == samples({"samples": {"note": "", "rows": []}}) == ""
