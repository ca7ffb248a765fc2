"""What the report says about the images."""

from __future__ import annotations

import html
import re

import pytest

from prunus.report.data import data
from report.sample import photo_result


def text_of(**changes):
    markup = data({"data": photo_result()["data"] | changes})
    return re.sub(r" ([,.])", r"\1", re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.unescape(markup))))


def test_the_section_in_words():
    text = text_of()
    assert "2 classes; images: 1,998 for training, 398 for validation, 800 for the test." in text
    assert "The classes are about equally large." in text
    assert "2 damaged images of train left out: train/dog/11702.jpg, train/cat/666.jpg" in text and "of test left out" not in text
    assert "class train validation test cat 1,000 200 400 dog 998 198 400 all 1,998 398 800" in text
    assert "network input RGB, 160 \u00d7 160 pixels augmentation resized-crop-flip, colour 0.2" in text
    assert "mean 0.485, 0.456, 0.406 std 0.229, 0.224, 0.225 normalised by the network's own" in text


@pytest.mark.parametrize(
    ("imbalance", "told"),
    [
        (1.3, "The largest class has 1.3\u00d7 as many training images as the smallest: dog 130, cat 100. "),
        (2.4, "Accuracy leans towards the large classes; balanced accuracy counts every class the same."),
    ],
)
def test_imbalance_in_words(imbalance, told):
    counts = {"train": [100, int(100 * imbalance)], "test": [5, 5]}
    text = text_of(counts=counts, imbalance=imbalance)
    assert told in text and ("Accuracy leans" in text) == (imbalance > 1.5)


def test_imbalance_that_is_not_known_is_not_told():
    assert "images as the smallest" not in text_of(imbalance=None) and "equally" not in text_of(imbalance=None)


def test_of_many_damaged_images_some_are_named():
    names = [f"train/{n}.jpg" for n in range(20)]
    text = text_of(damaged={"train": {"count": 35, "names": names}, "test": {"count": 1, "names": ["x.jpg"]}})
    assert "35 damaged images of train left out: train/0.jpg," in text and "train/9.jpg and 25 more" in text
    assert "train/10.jpg" not in text and "1 damaged image of test left out: x.jpg" in text


def test_many_classes_are_summed_up():
    names = [f"kind {n}" for n in range(21)]
    text = text_of(classes=names, counts={"train": list(range(10, 31)), "test": [7] * 21}, imbalance=3.0)
    assert "Images per class, of 21 classes split images smallest class median largest class" in text
    assert "train 420 10 kind 0 20 30 kind 20" in text and "kind 7" not in text


@pytest.mark.parametrize(
    ("shape", "told"), [([1, 8, 8], "grey, 8 \u00d7 8 pixels"), ([5, 8, 9], "5 channels, 8 \u00d7 9 pixels")]
)
def test_other_inputs(shape, told):
    assert told in text_of(input_shape=shape)


def test_unknown_counts_are_left_out():
    markup = data({"data": photo_result()["data"] | {"counts": {}, "imbalance": 1.0}})
    assert "<p>2 classes. </p>" in markup and "<table>" not in markup and "0.485" in markup


def test_a_result_without_is_silent():
    assert data({}) == "" and data({"data": None}) == ""
    least = {"classes": ["a", "b"], "counts": {"train": [1, 1]}}
    assert "2 classes; images: 2 for training." in re.sub(r"<[^>]*>", "", data({"data": least}))
