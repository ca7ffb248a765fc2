"""The head of the page: what came out, in ten seconds, and what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunus.report.data import is_uneven
from prunus.report.stages import first_and_last
from prunus.report.wording import (
    MISSING,
    TIMES,
    below,
    bullets,
    count,
    duration,
    error,
    escape,
    is_number,
    milliseconds,
    moment,
    pairs,
    percent,
    plain,
    points,
    ratio,
    short,
    size,
    speed_up,
    table,
    tag,
)

Result = Mapping[str, Any]


def subtitle(result: Result) -> str:
    """Model, data, date and duration under the title."""
    request = result["request"]
    facts = [request["model"], f"on {request['data']}", moment(result["created"]), f"{duration(result['seconds'])} in all"]
    return " · ".join(escape(fact) for fact in facts)


def warnings(result: Result) -> str:
    """A prominent box, or nothing."""
    if not result["warnings"]:
        return ""
    heading = "1 warning" if len(result["warnings"]) == 1 else f"{len(result['warnings'])} warnings"
    return f'<section class="alert" aria-label="Warnings"><h2>⚠ {heading}</h2>{bullets(result["warnings"])}</section>'


def lead(result: Result) -> str:
    """The outcome in one sentence and the two verdicts."""
    before, after = result["networks"]["before"], result["networks"]["after"]
    sentence = f"{escape(percent(ratio(after['macs'], before['macs'])))} of the MACs remain"
    speeds = [f"{speed:.2f}{TIMES} as fast in {escape(runtime)}" for runtime, speed in _speeds(result).items()]
    if speeds:
        sentence += f", the network runs {' and '.join(speeds)}"
    first, last = end_points(result)
    if first is not None and last is not None:
        sentence += f", and accuracy goes from {percent(first['accuracy'])} to {percent(last['accuracy'])}"
    met = all(entry["met"] for entry in result["budget"])
    exact = result["verification"]["passed"]
    verdicts = tag("budget met" if met else "budget not met", "good" if met else "bad") + " "
    verdicts += tag("exact surgery" if exact else "surgery NOT exact", "good" if exact else "bad")
    bad_exports = [e["format"] for e in result["exports"] if not e["passed"]]
    verdicts += "".join(f" {tag(f'{name} export differs', 'bad')}" for name in bad_exports)
    return f'<p class="lead">{sentence}.</p><p class="verdicts">{verdicts}</p>'


def _speeds(result: Result) -> dict[str, float]:
    """How many times as fast the small network is, by runtime: as it is, and as the first export of each other runtime."""
    networks = result["networks"]
    measured = [(networks["before"]["latency"], networks["after"]["latency"])]
    measured += [(e.get("latency_before"), e.get("latency_after")) for e in result["exports"] if e["passed"]]
    found: dict[str, float] = {}
    for before, after in measured:
        speed = speed_up(before, after)
        if speed is not None:
            found.setdefault(str(after["runtime"]), speed)
    return found


def cards(result: Result) -> str:
    """The big figures."""
    before, after = result["networks"]["before"], result["networks"]["after"]
    first, last = end_points(result)
    boxes: list[str] = []
    if first is not None and last is not None:
        sub = f"from {percent(first['accuracy'])} on {escape(last['split'])}, {points(last['accuracy'] - first['accuracy'])}"
        if is_uneven(result) and is_number(first.get("balanced_accuracy")) and is_number(last.get("balanced_accuracy")):
            sub += f"; balanced {percent(last['balanced_accuracy'])}, from {percent(first['balanced_accuracy'])}"
        boxes.append(_card("Accuracy", percent(last["accuracy"]), sub, last["accuracy"]))
    shares = (("MACs left", "macs", short), ("Parameters left", "parameters", short), ("File size left", "file_bytes", size))
    for title, key, write in shares:
        left = ratio(after[key], before[key])
        boxes.append(_card(title, percent(left), f"{write(before[key])} → {write(after[key])}", left))
    speed = speed_up(before["latency"], after["latency"])
    if speed is not None:
        old, new = before["latency"], after["latency"]
        sub = f"{milliseconds(old['median_ms'])} → {milliseconds(new['median_ms'])}"
        sub += f", {escape(new['runtime'])}, batch {count(new['batch'])}"
        sub += "".join(
            f"; {other:.2f}{TIMES} in {escape(name)}" for name, other in _speeds(result).items() if name != new["runtime"]
        )
        boxes.append(_card("Speed-up", f"{speed:.2f}{TIMES}", sub, ratio(new["median_ms"], old["median_ms"])))
    check = result["verification"]
    sub = f"relative difference; {error(check['tolerance'])} allowed"
    boxes.append(_card("Exactness", error(check["max_error"]), sub, None))
    return f'<div class="cards">{"".join(boxes)}</div>'


def budget(result: Result) -> str:
    """Requested against achieved."""
    rows = [
        [
            escape(e["target"]),
            _amount(e, "full"),
            f"{_amount(e, 'requested')} {below(percent(ratio(e['requested'], e['full'])))}",
            f"{_amount(e, 'achieved')} {below(percent(ratio(e['achieved'], e['full'])) + _predicted(e))}",
            tag("met", "good") if e["met"] else tag("not met", "bad"),
        ]
        for e in result["budget"]
    ]
    head = ["target", "full network", "requested, at most", "achieved", "verdict"]
    return table("Budget: requested and achieved", head, rows, (1, 2, 3))


def _amount(row: Mapping[str, Any], what: str) -> str:
    return milliseconds(row[what]) if row["target"] == "latency" else count(row[what])


def _predicted(row: Mapping[str, Any]) -> str:
    """Behind a measured latency: what had been predicted."""
    return f", {milliseconds(row['predicted'])} predicted" if row.get("predicted") else ""


def request(result: Result) -> str:
    """What the user asked for."""
    return pairs((name.replace("_", " "), _setting(value)) for name, value in result["request"].items())


def end_points(result: Result) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The evaluation before pruning and the last one, on the split of the former; (None, None) where there aren't both."""
    known = [s for s in result["stages"] if is_number(s["accuracy"])]
    ends = first_and_last(known)
    same = first_and_last([s for s in known if s["split"] == ends[0]["split"]]) if ends else []
    return (same[0], same[1]) if len(same) > 1 else (None, None)


def _card(title: str, figure: str, below: str, share: float | None) -> str:
    bar = ""
    if share is not None:
        bar = f'<div class="meter" aria-hidden="true"><span style="width:{min(max(share, 0.0), 1.0) * 100:.1f}%"></span></div>'
    return f'<div class="card"><h3>{escape(title)}</h3><p class="big">{figure}</p>{bar}<p class="sub">{below}</p></div>'


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(k)} = {_setting(v)}" for k, v in value.items()) or MISSING
    if isinstance(value, list | tuple):
        return ", ".join(_setting(v) for v in value) or MISSING
    return escape(plain(value))
