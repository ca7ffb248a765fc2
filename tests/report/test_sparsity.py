"""What the report shows of training with a sparsity method."""

from __future__ import annotations

import re

import pytest

from prunus.report.page import render
from prunus.report.sparsity import sparsity, sparsity_figures
from report.sample import epochs, sample_result


def with_method(number: int = 3) -> dict:
    """Halfway down to 70 % of the MACs, the first group down to half of its channels."""
    result = sample_result()
    full, groups = result["networks"]["before"]["macs"], result["groups"]
    trained = epochs(number, 1.0, 0.1)
    for n, epoch in enumerate(trained, start=1):
        widths = {g["name"]: g["before"] for g in groups} | {
            groups[0]["name"]: groups[0]["before"] * (2 * number - n) / number / 2
        }
        histogram = {"edges": [0.0, 0.5, 1.0], "counts": [n, 10 - n]}
        epoch["sparsity"] = {"macs": int(full * (1 - 0.1 * n)), "widths": widths, "histogram": histogram}
    result["training"]["sparsity training"] = trained
    return result


def test_lines_are_shares_of_the_full_network() -> None:
    result = with_method()
    figure = sparsity_figures(result)["plot-sparsity"]
    assert figure is not None
    macs, first, *others = figure["data"]
    assert macs["x"] == [1, 2, 3] and macs["y"] == pytest.approx([90, 80, 70], abs=0.01)
    assert first["y"] == pytest.approx([500 / 6, 400 / 6, 50]) and result["groups"][0]["name"].endswith(first["name"][-4:])
    assert len(others) == 5 and all(line["y"] == [100.0] * 3 for line in others)


def test_histograms_are_of_the_first_and_the_last_epoch() -> None:
    figure = sparsity_figures(with_method())["plot-strengths"]
    assert figure is not None
    assert [(bars["name"], bars["x"], bars["y"]) for bars in figure["data"]] == [
        ("epoch 1", [0.25, 0.75], [1, 9]),
        ("epoch 3", [0.25, 0.75], [3, 7]),
    ]


def test_the_section_has_a_table_and_is_on_the_page() -> None:
    result = with_method()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", sparsity(result)))
    assert "sparsity training 3" in text and "70.0 %" in text
    page = render(result)
    assert 'id="plot-sparsity"' in page and '"plot-strengths"' in page
    assert sparsity(sample_result()) == "" and 'id="plot-sparsity"' not in render(sample_result())
