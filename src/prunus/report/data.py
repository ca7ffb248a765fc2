"""The images of the run: how many of which class, which were damaged, how they reach the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from prunus.report.wording import TIMES, count, escape, is_number, pairs, plain, table

MOST_CLASSES = 20  # with a row each
MOST_NAMES = 10
UNEVEN = 1.5  # classes differ so much that balanced accuracy belongs beside accuracy
Counts = Mapping[str, Sequence[int]]


def data(result: Mapping[str, Any]) -> str:
    """The section; empty for a result that says nothing about its images."""
    found = result.get("data")
    if not found:
        return ""
    names, counts = [str(name) for name in found["classes"]], found["counts"]
    sizes = [f"{count(sum(numbers))} {_PURPOSE.get(split, escape(split))}" for split, numbers in counts.items()]
    images = f"; images: {', '.join(sizes)}" if sizes else ""
    text = f"<p>{count(len(names))} classes{images}. {_balance(names, counts, found.get('imbalance'))}</p>"
    listed = _every_class(names, counts) if len(names) <= MOST_CLASSES else _extremes(names, counts)
    columns = f'<div class="columns">{listed if counts else ""}{_preparation(found)}</div>'
    return f'<section id="data"><h2>Data</h2>{text}{_damaged(found)}{columns}</section>'


def is_uneven(result: Mapping[str, Any]) -> bool:
    """Whether the largest class has more than `UNEVEN` times as many training images as the smallest."""
    imbalance: Any = (result.get("data") or {}).get("imbalance")
    return is_number(imbalance) and imbalance > UNEVEN


_PURPOSE = {"train": "for training", "validation": "for validation", "test": "for the test"}


def _balance(names: Sequence[str], counts: Counts, imbalance: Any) -> str:
    train = counts.get("train")
    if not train or not is_number(imbalance):
        return ""
    if imbalance < 1.05:
        return "The classes are about equally large."
    least, most = min(train), max(train)
    text = (
        f"The largest class has {imbalance:.1f}{TIMES} as many training images as the smallest: "
        f"{escape(names[train.index(most)])} {count(most)}, {escape(names[train.index(least)])} {count(least)}."
    )
    if imbalance > UNEVEN:
        text += " Accuracy leans towards the large classes; balanced accuracy counts every class the same."
    return text


def _damaged(found: Mapping[str, Any]) -> str:
    texts: list[str] = []
    for split, files in (found.get("damaged") or {}).items():
        names = [str(name) for name in files["names"]]
        if files["count"]:
            shown = ", ".join(f"<code>{escape(name)}</code>" for name in names[:MOST_NAMES])
            rest = files["count"] - min(len(names), MOST_NAMES)
            more = f" and {count(rest)} more" if rest > 0 and shown else ""
            word = "image" if files["count"] == 1 else "images"
            texts.append(f"<li>{count(files['count'])} damaged {word} of {escape(split)} left out: {shown}{more}</li>")
    return f'<ul class="damaged">{"".join(texts)}</ul>' if texts else ""


def _every_class(names: Sequence[str], counts: Counts) -> str:
    rows = [[escape(name), *(count(numbers[n]) for numbers in counts.values())] for n, name in enumerate(names)]
    rows.append(["all", *(count(sum(numbers)) for numbers in counts.values())])
    return table("Images per class", ["class", *map(str, counts)], rows, range(1, 1 + len(counts)))


def _extremes(names: Sequence[str], counts: Counts) -> str:
    rows: list[list[str]] = []
    for split, numbers in counts.items():
        least, most = min(numbers), max(numbers)
        cells = [f"{count(n)} <small>{escape(names[list(numbers).index(n)])}</small>" for n in (least, most)]
        rows.append([escape(split), count(sum(numbers)), cells[0], count(median(numbers)), cells[1]])
    title = f"Images per class, of {count(len(names))} classes"
    return table(title, ["split", "images", "smallest class", "median", "largest class"], rows, (1, 2, 3, 4))


def _preparation(found: Mapping[str, Any]) -> str:
    entries: list[tuple[str, str]] = []
    shape = found.get("input_shape")
    if shape:
        channels = {1: "grey", 3: "RGB"}.get(shape[0], f"{count(shape[0])} channels")
        entries.append(("network input", f"{channels}, {f' {TIMES} '.join(count(side) for side in shape[1:])} pixels"))
    if found.get("augment"):
        entries.append(("augmentation", escape(found["augment"])))
    for name in ("mean", "std"):
        if found.get(name):
            entries.append((name, ", ".join(escape(plain(value)) for value in found[name])))
    if found.get("normalised_by"):
        entries.append(("normalised by", escape(found["normalised_by"])))
    return f"<div>{pairs(entries)}</div>" if entries else ""
