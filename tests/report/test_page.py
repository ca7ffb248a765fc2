"""The page says what the result says, whatever is in it, and loads nothing."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import sys
from html.parser import HTMLParser

import pytest

from prunus.errors import ExportError
from prunus.report import page, write_report
from report.sample import photo_result, sample_result

pytest.importorskip("plotly")

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&amp;<b>"


class Reader(HTMLParser):
    """Elements with attributes, the text outside scripts and styles, and the content of every script by id."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.scripts, self.script = [], [], {}, None
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.script = dict(attrs).get("id", tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.script = None

    def handle_data(self, data):
        if self.script is None:
            self.words.append(data)
        else:
            self.scripts[self.script] = self.scripts.get(self.script, "") + data


@pytest.fixture
def small_plotly(monkeypatch):
    """The library itself is 4.8 MB of text that only the browser test needs."""
    monkeypatch.setattr(page, "plotly", lambda: "/* plotly */")


@pytest.fixture(scope="module")
def result():
    return sample_result()


@pytest.fixture(scope="module")
def reader(result):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "plotly", lambda: "/* plotly */")
        return Reader(page.render(result))


def test_the_result_is_in_the_page_as_it_is(reader, result):
    assert json.loads(reader.scripts["result"]) == result


@pytest.mark.parametrize(
    "text",
    [
        "39.8 % of the MACs remain, the network runs 2.08\u00d7 as fast in eager and 1.94\u00d7 as fast in onnxruntime, "
        "and accuracy goes from 99.2 % to 98.8 %.",
        "\u2713 budget met",
        "\u2713 exact surgery",
        "Accuracy 98.8 % from 99.2 % on test, \u22120.4 points",
        "MACs left 39.8 % 2.60 M → 1.03 M",
        "Parameters left 36.2 % 272 k → 98.8 k",
        "File size left 37.7 % 1.12 MB → 422 kB",
        "Speed-up 2.08\u00d7 4.21 ms → 2.02 ms, eager, batch 1; 1.94\u00d7 in onnxruntime",
        "Exactness 1.3e-15 relative difference; 1.0e-09 allowed",
        "macs 2,600,000 1,040,000 40.0 % 1,035,000 39.8 % \u2713 met",
        "Peak activation bytes 131,072 65,537 50.0 %",
        "Latency eager, batch 1, threads 1, 30 runs 4.21 ms 4.00 to 4.74 ms 2.02 ms 1.92 to 2.27 ms 48.0 %",
        "after recalibration 87.6 % 0.4021 test 500 0.620 s",
        "fine-tune 2 0.35 86.5 % 0.01 1.38 s 1,002",
        "its channels are the network's outputs 1 32 layer2.6.conv1",
        "aten.foo 2",
        "the training-mode trace found nothing new",
        "onnx small.onnx 405 kB 3.1e-07 (allowed 1.0e-04) 100.0 % 1.61 ms → 0.830 ms, 1.94\u00d7",
        "In 1 mixing group, where a layer computes statistics",
        "cpu Some CPU @ 2.9 GHz",
        "22 November 2026, 10:00 UTC · 1 min 1 s in all",
        "prunus run examples/digits.toml --set prune.budget.macs=0.4 --out runs/digits",
        '"source": "cifar:resnet20"',
        "model cifar:resnet20 weights \u2013 data digits",
    ],
)
def test_the_page_says(reader, text):
    assert re.sub(r" ([,.])", r"\1", text) in re.sub(r" ([,.])", r"\1", reader.text)


def test_every_group_and_epoch_is_in_a_table(reader, result):
    for group in result["groups"]:
        left = f"{100 * group['after'] / group['before']:.1f} %"
        assert f"{group['name']} {group['before']} {group['after']} {left}" in reader.text
    for epoch in result["training"]["train"]:
        assert f"train {epoch['epoch']} {epoch['loss']:.6g} {100 * epoch['accuracy']:.1f} %" in reader.text


def test_failures_are_said_first(small_plotly):
    result = sample_result()
    result["budget"][0]["met"] = False
    result["verification"] |= {"passed": False, "max_error": float("nan")}
    result["exports"][0]["passed"] = False
    result["warnings"] = ["the data are few", "the clock stood still"]
    text = Reader(page.render(result)).text
    head = text[: text.index("What was asked")]
    for words in ("2 warnings the data are few the clock stood still", "\u2717 budget not met", "\u2717 surgery NOT exact"):
        assert words in head
    assert "\u2717 onnx export differs" in head and "Exactness not finite" in head
    assert json.loads(Reader(page.render(result)).scripts["result"])["verification"]["max_error"] is None


def test_what_was_not_measured_is_left_out(small_plotly):
    result = sample_result(0)
    result |= {"stages": [], "training": {}, "exports": [], "unsupported_ops": {}, "notes": [], "budget": []}
    for network in result["networks"].values():
        network["latency"] = None
    found = Reader(page.render(result))
    assert "39.8 % of the MACs remain." in found.text and "Speed-up" not in found.text
    for words in ("No training took place", "Nothing was exported", "No group is frozen", "Latency \u2013 \u2013 \u2013"):
        assert words in found.text
    assert json.loads(found.scripts["figures"]) == {}
    assert not [attrs for tag, attrs in found.elements if attrs.get("class", "").startswith("plot")]


def poisoned(value):
    """Every string, among them every key that is a name and not part of the schema, with markup in it."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("made", [sample_result, photo_result, lambda: photo_result(3, tuple("abcdefghijklmnopqrstu"))])
def test_markup_in_any_text_stays_text(small_plotly, made):
    result = made()
    harmless = Reader(page.render(result | {"warnings": ["w"]}))
    result = poisoned(result | {"warnings": ["w"]})
    for field in ("training", "unsupported_ops", "environment", "recipe", "request"):
        result[field] = {key + HOSTILE if field != "request" or key == "keep" else key: v for key, v in result[field].items()}
    for stage in result["stages"]:
        stage["split"] = stage["split"].removesuffix(HOSTILE)  # confusion is shown of this split alone
    text = page.render(copy.deepcopy(result))
    found = Reader(text)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in harmless.elements]
    assert not [attrs for _, attrs in found.elements if any(name.startswith("on") for name in attrs)]
    assert json.loads(found.scripts["result"]) == result
    assert "<img src=x" not in text and "onerror=alert(1)&gt;" in text
    figures = found.scripts["figures"]
    assert "<" not in figures
    # Plotly understands a few tags in its texts, so that names are escaped once more for it.
    assert "&lt;img src=x" in json.loads(figures)["plot-widths"]["data"][0]["customdata"][0]
    assert "<img" not in json.dumps(json.loads(figures))


def test_names_of_splits_and_phases_stay_text_too(small_plotly):
    result = photo_result()
    result["data"]["counts"] = {key + HOSTILE: value for key, value in result["data"]["counts"].items()}
    result["data"]["damaged"] = {"train" + HOSTILE: {"count": 1, "names": [HOSTILE]}}
    rates = result["compute"]["training_images_per_second"]
    result["compute"]["training_images_per_second"] = {key + HOSTILE: value for key, value in rates.items()}
    text = page.render(result)
    assert text.count("<img") == text.count('<img src="data:image/png;base64,') == 4


def test_a_picture_that_is_none_is_not_loaded(small_plotly):
    result = photo_result()
    for n, address in enumerate(
        ("https://example.org/a.png", "data:text/html;base64,AAAA", "data:image/svg+xml;base64,AAAA", "")
    ):
        result["samples"]["rows"][n]["image"] = address
    images = [attrs for tag, attrs in Reader(page.render(result)).elements if tag == "img"]
    assert [attrs["src"] for attrs in images] == ["data:,"] * 4


def test_an_old_result_has_none_of_the_newer_parts(reader):
    identifiers = {attrs["id"] for _, attrs in reader.elements if "id" in attrs}
    assert not identifiers & {"data", "pictures", "plot-rounds", "plot-confusion-first"}
    for words in ("Pictures", "Round by round", "confused", "balanced", "top-5", "Speed of training"):
        assert words not in reader.text


def test_sections_and_links_of_a_full_result(small_plotly):
    found = Reader(page.render(photo_result()))
    links = [attrs["href"] for tag, attrs in found.elements if tag == "a" and attrs["href"].startswith("#")]
    assert {"#pictures", "#data"} <= set(links)
    test_headings_and_tables_have_their_structure(found)
    places = {attrs["id"] for _, attrs in found.elements if attrs.get("class", "").startswith("plot")}
    assert places == set(json.loads(found.scripts["figures"]))
    for words in (
        "Accuracy in percent at every stage of the run, of the rounds only the last",
        "Training loss over the epochs, one line per phase",
        "Confusion, round 5: after fine-tuning",
    ):
        assert words in found.text
    found = Reader(page.render(photo_result(1)))
    assert "of the rounds only the last" not in found.text and "one line per phase" not in found.text


def test_balanced_accuracy_is_on_the_card_where_classes_are_uneven(small_plotly):
    result = photo_result()
    result["stages"][0]["balanced_accuracy"], result["stages"][-1]["balanced_accuracy"] = 0.8412, 0.8321
    assert "from 84.1 %" not in Reader(page.render(result)).text
    result["data"]["imbalance"] = 2.4
    assert "balanced 83.2 %, from 84.1 %" in Reader(page.render(result)).text
    for stage in result["stages"]:
        del stage["balanced_accuracy"]
    assert "; balanced 8" not in Reader(page.render(result)).text


def test_the_summary_starts_before_pruning(small_plotly):
    result = sample_result()
    result["stages"].insert(0, result["stages"][0] | {"stage": "after training the head", "accuracy": 0.9})
    assert "accuracy goes from 99.2 % to 98.8 %" in Reader(page.render(result)).text
    result["stages"] = result["stages"][:2]
    assert "accuracy goes" not in Reader(page.render(result)).text  # the end is missing


def test_columns_of_the_evaluations_are_those_that_some_stage_has(small_plotly):
    result = photo_result(1)
    text = Reader(page.render(result)).text
    assert "stage accuracy balanced loss split images time before pruning 97.6 % 97.6 % 0.32375 test 800 14.2 s" in text
    result["stages"][1] |= {"top5": 0.9987, "balanced_accuracy": None}
    text = Reader(page.render(result)).text
    assert "stage accuracy top-5 balanced loss" in text and "after pruning 89.9 % 99.9 % \u2013" in text


def test_a_file_name_cannot_become_a_scheme(small_plotly):
    result = sample_result() | {"files": ["javascript:alert(1)"]}
    links = [attrs["href"] for tag, attrs in Reader(page.render(result)).elements if tag == "a"]
    assert "./javascript%3Aalert%281%29" in links
    assert all(link.startswith(("#", "./")) for link in links)


def test_the_page_loads_nothing(reader):
    for tag, attrs in reader.elements:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base"), tag
        assert not {"src", "srcset", "data", "poster", "action", "background"} & attrs.keys(), (tag, attrs)
    policy = next(attrs["content"] for tag, attrs in reader.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert not re.search(r"url\(|@import", reader.scripts["style"])


def test_headings_and_tables_have_their_structure(reader):
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("h1") == tags.count("main") == 1
    assert tags.count("table") == tags.count("caption") == tags.count("thead")
    identifiers = [attrs["id"] for _, attrs in reader.elements if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    assert {attrs["href"][1:] for tag, attrs in reader.elements if tag == "a" and attrs["href"][0] == "#"} <= set(identifiers)


def test_the_file_is_complete_readable_and_below_6_megabytes(tmp_path, result):
    write_report(result, tmp_path / "new" / "report.html")
    path = tmp_path / "new" / "report.html"
    assert list(path.parent.iterdir()) == [path]
    assert 1_000_000 < path.stat().st_size < 6_000_000
    assert path.stat().st_mode & 0o444 == 0o444
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.endswith("</html>\n")
    assert text.count("plotly.js v") == 1


def test_a_failure_leaves_the_old_report(tmp_path, result, monkeypatch, small_plotly):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match=r"can't be written to .*report\.html: .*No space left on device"):
        write_report(result, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_result_without_a_key_is_a_clear_error(tmp_path, result, small_plotly):
    with pytest.raises(ExportError, match="the result can't be shown as a report: KeyError 'verification'"):
        write_report({k: v for k, v in result.items() if k != "verification"}, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_missing_plotly_names_the_extra(tmp_path, result, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ExportError, match=r"plotly can't be imported .*pip install 'prunus\[report\]'"):
        write_report(result, tmp_path / "report.html")
