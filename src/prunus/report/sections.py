"""The parts of the page below its head, each a function of the result that returns HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from prunus.report.plots import MOST_STAGES
from prunus.report.wording import (
    MISSING,
    TIMES,
    below,
    bullets,
    count,
    duration,
    error,
    escape,
    folded,
    milliseconds,
    pairs,
    percent,
    plain,
    ratio,
    size,
    speed_up,
    table,
    tag,
)

Result = Mapping[str, Any]


def networks(result: Result) -> str:
    """Both networks, and what is left of each figure."""
    before, after = result["networks"]["before"], result["networks"]["after"]
    titles = {"macs": "MACs", "parameters": "Parameters", "activation_bytes": "Peak activation bytes", "file_bytes": "File bytes"}
    rows = [[escape(t), count(before[k]), count(after[k]), percent(ratio(after[k], before[k]))] for k, t in titles.items()]
    rows += _latency_rows(before["latency"], after["latency"])
    note = (
        "MACs count one multiply-add as one, for one input. Latency is the median of runs that alternate between both networks; "
        "80 % of the runs lie in the range below it."
    )
    return (
        table("Network before and after", ["figure", "before", "after", "left"], rows, (1, 2, 3)) + f'<p class="note">{note}</p>'
    )


def stages(result: Result) -> str:
    """Accuracy and loss at every stage, with top-5 and balanced accuracy where some stage has them; folded where it is long."""
    found = result["stages"]
    extra = {"top5": "top-5", "balanced_accuracy": "balanced"}
    extra = {key: title for key, title in extra.items() if any(s.get(key) is not None for s in found)}
    rows = [
        [
            escape(s["stage"]),
            percent(s["accuracy"]),
            *(percent(s.get(key)) for key in extra),
            plain(s["loss"]),
            escape(s["split"]),
            count(s["count"]),
            duration(s["seconds"]),
        ]
        for s in found
    ]
    head = ["stage", "accuracy", *extra.values(), "loss", "split", "images", "time"]
    numeric = [n for n, title in enumerate(head) if title not in ("stage", "split")]
    listed = table("Every evaluation", head, rows, numeric)
    note = '<p class="note">Balanced accuracy is the mean over the classes of the share that is recognised.</p>'
    listed += note if "balanced_accuracy" in extra else ""
    return listed if len(rows) <= MOST_STAGES else folded("Every evaluation as a table", listed)


def training(result: Result) -> str:
    """Every epoch, folded away."""
    rows = [
        [
            escape(phase),
            count(e["epoch"]),
            plain(e["loss"]),
            percent(e["accuracy"]),
            plain(e["lr"]),
            duration(e["seconds"]),
            count(e["images_per_second"]),
        ]
        for phase, epochs in result["training"].items()
        for e in epochs
    ]
    if not rows:
        return '<p class="note">No training took place in this run.</p>'
    head = ["phase", "epoch", "loss", "accuracy", "learning rate", "time", "images/s"]
    return folded("Every epoch as a table", table("Epochs", head, rows, (1, 2, 3, 4, 5, 6)))


def legend(result: Result) -> str:
    """What the colours of the width plot mean; only those that occur."""
    pruned = [g for g in result["groups"] if not g["frozen_because"]]
    entries = [
        ("before", "channels before", True),
        ("after", "channels left", any(not g["mixing"] for g in pruned)),
        ("mixing", "channels left, mixing group (statistics over its channels)", any(g["mixing"] for g in pruned)),
        ("frozen", "frozen (hover for the reason)", len(pruned) < len(result["groups"])),
    ]
    items = "".join(
        f'<li><span class="swatch {kind}" aria-hidden="true"></span>{escape(text)}</li>' for kind, text, used in entries if used
    )
    return f'<ul class="legend">{items}</ul>'


def widths(result: Result) -> str:
    """Every group as a table, folded away under the plot."""
    rows = [
        [
            f"<code>{escape(g['name'])}</code>",
            count(g["before"]),
            count(g["after"]),
            percent(ratio(g["after"], g["before"])),
            tag("frozen", "plain") if g["frozen_because"] else tag("mixing", "plain") if g["mixing"] else "",
            " ".join(f"<code>{escape(layer)}</code>" for layer in g["layers"]),
        ]
        for g in result["groups"]
    ]
    head = ["group", "before", "after", "left", "state", "layers"]
    return folded("Every group as a table", table("Channel groups", head, rows, (1, 2, 3)))


def frozen(result: Result) -> str:
    """Groups that may not lose channels, one row per reason; and operations without a rule."""
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for group in result["groups"]:
        if group["frozen_because"]:
            by_reason.setdefault(group["frozen_because"], []).append(group)
    rows = [
        [
            escape(reason),
            count(len(groups)),
            count(sum(g["before"] for g in groups)),
            " ".join(f"<code>{escape(g['name'])}</code>" for g in groups),
        ]
        for reason, groups in by_reason.items()
    ]
    text = table("Frozen groups by reason", ["reason", "groups", "channels", "names"], rows, (1, 2)) if rows else ""
    text = text or '<p class="note">No group is frozen: every channel could have been removed.</p>'
    unsupported = [[f"<code>{escape(op)}</code>", count(calls)] for op, calls in result["unsupported_ops"].items()]
    if unsupported:
        text += table("Operations without a rule: everything they touch is frozen", ["operation", "calls"], unsupported, (1,))
    return text + bullets(result["notes"])


def exactness(result: Result) -> str:
    """The figure and what it means."""
    check = result["verification"]
    verdict = tag("passed", "good") if check["passed"] else tag("failed", "bad")
    mixing = sum(1 for g in result["groups"] if g["mixing"] and not g["frozen_because"])
    text = (
        "Removed equals silenced: in float64, the outputs of the small network are compared with those of the original network "
        "in which every weight that reads a removed channel is zero. The figure is the largest difference, relative to the "
        "largest output; at rounding level it shows that the surgery itself changed nothing, so a change of accuracy comes from "
        "the missing channels alone."
    )
    if mixing:
        which = "1 mixing group" if mixing == 1 else f"{mixing} mixing groups"
        text += f" In {which}, where a layer computes statistics over channels, the reference computes them over the kept ones."
    if repaired := result.get("repaired"):
        names = ", ".join(f"<code>{escape(name)}</code>" for name in repaired[:8]) + (", ..." if len(repaired) > 8 else "")
        text += f" Widths that the network's own code holds were set to what is left: {names}."
    detail = f'<p class="note">{escape(check["detail"])}</p>' if check["detail"] else ""
    figure = f'<p class="figure">{error(check["max_error"])} <small>of {error(check["tolerance"])} allowed</small> {verdict}</p>'
    return f"{figure}<p>{text}</p>{detail}"


def exports(result: Result) -> str:
    """Files for other runtimes, compared with the PyTorch network."""
    if not result["exports"]:
        return '<p class="note">Nothing was exported.</p>'
    rows = [
        [
            escape(e["format"]),
            _link(e["file"]),
            size(e["file_bytes"]),
            f"{error(e['max_error'])} (allowed {error(e['tolerance'])})",
            percent(e["agreement"]),
            _latency_pair(e.get("latency_before"), e.get("latency_after")),
            tag("agrees", "good") if e["passed"] else tag("differs", "bad"),
        ]
        for e in result["exports"]
    ]
    head = ["format", "file", "size", "largest difference", "same class", "latency, before → after", "verdict"]
    notes = bullets(note for e in result["exports"] for note in e["notes"])
    return table("Exports, compared with PyTorch", head, rows, (2, 3, 4)) + notes


def environment(result: Result) -> str:
    """What it ran on."""
    return pairs((name, escape(plain(value))) for name, value in {"prunus": result["prunus"], **result["environment"]}.items())


def recipe(result: Result) -> str:
    """The whole recipe, folded away."""
    text = json.dumps(result["recipe"], indent=2, ensure_ascii=False, default=str)
    return folded("The whole recipe", f'<pre tabindex="0"><code>{escape(text)}</code></pre>')


def command(result: Result) -> str:
    """The command line in a block with a copy button."""
    return (
        f'<div class="command"><pre tabindex="0"><code id="command">{escape(result["command"])}</code></pre>'
        '<button type="button" data-copies="command">Copy</button></div><p class="note" id="copied" aria-live="polite"></p>'
    )


def files(result: Result) -> str:
    """Links to the files beside the report."""
    return "<ul>" + "".join(f"<li>{_link(name)}</li>" for name in result["files"]) + "</ul>"


def _latency_rows(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[list[str]]:
    some = after or before
    if some is None:
        return [["Latency", MISSING, MISSING, MISSING]]
    measured = f"{some['runtime']}, batch {some['batch']}, threads {some['threads']}, {some['runs']} runs"
    left = percent(ratio(after["median_ms"], before["median_ms"])) if before and after else MISSING
    return [[f"Latency {below(escape(measured))}", _latency(before), _latency(after), left]]


def _latency(value: Mapping[str, Any] | None) -> str:
    if not value:
        return MISSING
    spread = f"{milliseconds(value['p10_ms'])[: -len(' ms')]} to {milliseconds(value['p90_ms'])}"
    return f"{milliseconds(value['median_ms'])} {below(spread)}"


def _latency_pair(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    speed = speed_up(before, after)
    gain = f", {speed:.2f}{TIMES}" if speed is not None else ""
    if not (before or after):
        return MISSING
    old, new = (milliseconds(value["median_ms"]) if value else MISSING for value in (before, after))
    measured = before or after or {}
    setting = f"{measured['runtime']}, batch {measured['batch']}, threads {measured['threads']}, {measured['runs']} runs"
    return f"{old} → {new}{gain} {below(escape(setting))}"


def _link(name: object) -> str:
    """A file beside the report; "./" and the quoting keep any name from being read as a scheme or as markup."""
    return f'<a href="./{escape(quote(str(name)))}">{escape(name)}</a>'
