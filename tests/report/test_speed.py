"""Images per second and the settings of the CPU."""

from __future__ import annotations

import re

import pytest

from prunus.report.speed import speed
from report.sample import photo_result


def text_of(**changes):
    markup = speed({"compute": photo_result()["compute"] | changes})
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", markup)).strip()


def test_rates_settings_and_their_measurement():
    text = text_of()
    assert "2 threads, channels last in memory." in text
    assert "phase images/s head 812 training 31.0 fine-tuning 45.2" in text
    assert "1 thread, channels first 11.6 1 thread, channels last 14.9 2 threads, channels first 21.3" in text
    assert text.count("used") == 1 and "2 threads, channels last 26.8 used" in text


@pytest.mark.parametrize("threads", [1, None])
def test_what_was_not_measured_is_left_out(threads):
    text = text_of(measured=[], training_images_per_second={}, threads=threads, channels_last=False)
    number = "1 thread" if threads else "PyTorch's number of threads"
    assert text == f"Speed of training {number}, channels first in memory."


def test_none_is_silent():
    assert speed({}) == speed({"compute": None}) == ""


def test_peak_memory_is_shown_where_it_is_known() -> None:
    assert "At its peak the process held 1.50 GB." in speed({"compute": {"peak_memory_bytes": 1_500_000_000}})
    assert "At its peak" not in speed({"compute": {"threads": 1, "peak_memory_bytes": None}})
