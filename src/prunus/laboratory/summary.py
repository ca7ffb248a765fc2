"""From what every seed found to one result: means and spreads over the seeds, as plain values."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prunus.laboratory.agreement import agreement, correlations
from prunus.laboratory.contenders import REFERENCE, Contender, Scored
from prunus.laboratory.removal import RECOVERIES

Figure = dict[str, Any]


@dataclass(frozen=True, eq=False)
class SeedResult:
    """What one seed found. ``oracle``: of the channels in ``sample``; ``scored`` and ``removal`` by the criteria's labels."""

    seed: int
    network: Mapping[str, Any]
    sample: Mapping[str, Tensor]
    oracle: Mapping[str, Tensor]
    oracle_seconds: float
    scored: Mapping[str, Scored]
    removal: Mapping[str, Sequence[Mapping[str, Any]]]


def figure(values: Iterable[float | None]) -> Figure:
    """One number a seed as ``values``, with ``mean`` and ``std`` (of the sample) of those that are defined, else None."""
    found = list(values)
    known = [value for value in found if value is not None]
    return {
        "values": found,
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
    }


def summarise(contenders: Sequence[Contender], seeds: Sequence[SeedResult]) -> dict[str, Any]:
    """The parts ``criteria``, ``correlations``, ``removal`` and ``network`` of the result."""
    return {
        "network": _network(seeds),
        "criteria": [_reference_row(seeds), *(_row(contender, seeds) for contender in contenders)],
        "correlations": _correlations(contenders, seeds),
        "removal": _removal(seeds),
    }


def _network(seeds: Sequence[SeedResult]) -> dict[str, Any]:
    first = seeds[0]
    sampled = {name: len(channels) for name, channels in first.sample.items()}
    groups = [{**group, "sampled": sampled.get(group["name"], 0)} for group in first.network["groups"]]
    return {
        **first.network,
        "groups": groups,
        "channels": sum(g["channels"] for g in groups if g["frozen_because"] is None),
        "sampled": sum(sampled.values()),
        "accuracy": figure(seed.network["accuracy"] for seed in seeds),
    }


def _reference_row(seeds: Sequence[SeedResult]) -> dict[str, Any]:
    """The oracle beside itself: what it costs is worth telling."""
    contender = Contender(REFERENCE)
    return {**_about(contender), "reference": True, "seconds": figure(seed.oracle_seconds for seed in seeds), "notes": []}


def _about(contender: Contender) -> dict[str, Any]:
    row = contender.row
    return {
        "name": contender.label,
        "criterion": contender.criterion,
        "options": dict(contender.options),
        "family": contender.family,
        "summary": row.summary,
        "paper": row.paper,
        "needs_data": bool(row.needs),
        "reference": False,
        "not_applicable": None,
    }


def _row(contender: Contender, seeds: Sequence[SeedResult]) -> dict[str, Any]:
    about = _about(contender)
    scored = [seed.scored[contender.label] for seed in seeds]
    refused = [one.not_applicable for one in scored if one.not_applicable is not None]
    about["seconds"] = figure(one.seconds for one in scored)
    about["notes"] = list(dict.fromkeys(note for one in scored for note in one.notes))
    if refused:
        return {**about, "not_applicable": refused[0]}
    found = [agreement(one.plain, seed.oracle, seed.sample) for one, seed in zip(scored, seeds, strict=True)]
    layers = dict.fromkeys(name for one in found for name in one.layers)
    return {
        **about,
        "groups_scored": len(scored[0].plain),
        "channels_compared": found[0].channels,
        "spearman": {kind: figure(getattr(one, kind) for one in found) for kind in ("raw", "l2", "within")},
        "overlap": {kind: figure(getattr(one, f"overlap_{kind}") for one in found) for kind in ("raw", "l2")},
        "layers": {name: figure(one.layers.get(name) for one in found) for name in layers},
    }


def _correlations(contenders: Sequence[Contender], seeds: Sequence[SeedResult]) -> dict[str, Any]:
    """Mean over the seeds of the global Spearman of every criterion with every other one, raw and L2-normalised."""
    names = [c.label for c in contenders if all(seed.scored[c.label].not_applicable is None for seed in seeds)]
    tables: dict[str, Any] = {"names": [REFERENCE, *names]}
    for kind, normalisation in (("raw", "none"), ("l2", "l2")):
        found = [correlations(_on_sample(seed, names), normalisation) for seed in seeds]
        size = range(len(names) + 1)
        tables[kind] = [[figure(one[i][j] for one in found)["mean"] for j in size] for i in size]
    return tables


def _on_sample(seed: SeedResult, names: Sequence[str]) -> dict[str, Mapping[str, Tensor]]:
    known = seed.oracle.keys()
    others = {name: {g: v[seed.sample[g]] for g, v in seed.scored[name].plain.items() if g in known} for name in names}
    return {REFERENCE: seed.oracle, **others}


def _removal(seeds: Sequence[SeedResult]) -> dict[str, Any] | None:
    """Accuracy by criterion and recovery: a point for every share that was asked for."""
    names = dict.fromkeys(name for seed in seeds for name in seed.removal)
    if not names:
        return None
    curves = {name: {recovery: _curve(name, recovery, seeds) for recovery in RECOVERIES} for name in names}
    used = [r for r in RECOVERIES if any(point["mean"] is not None for one in curves.values() for point in one[r])]
    refused = [
        {"criterion": name, "seed": seed.seed, "share": point["share"], "why": point.get("refused") or point["failed"]}
        for seed in seeds
        for name, points in seed.removal.items()
        for point in points
        if "refused" in point or "failed" in point
    ]
    return {"recoveries": used, "curves": {n: {r: one[r] for r in used} for n, one in curves.items()}, "refused": refused}


def _curve(name: str, recovery: str, seeds: Sequence[SeedResult]) -> list[Figure]:
    known = [seed.removal[name] for seed in seeds if name in seed.removal]
    return [
        {"share": points[0]["share"], **figure(point.get("accuracy", {}).get(recovery) for point in points)}
        for points in zip(*known, strict=True)
    ]
