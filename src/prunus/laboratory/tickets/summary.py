"""From what every job found to one result: means and spreads over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prunus.laboratory.summary import Figure, figure
from prunus.laboratory.tickets.claims import claims
from prunus.laboratory.tickets.jobs import RETHINKING_RUN, Job

Found = list[tuple[Job, Any]]


def summarise(found: Found) -> dict[str, Any]:
    """Every section of the result, and what became of the literature's claims."""
    sections = {
        "lottery": [_lottery(job, seeds) for job, seeds in _cells(found, "lottery")],
        "deconstruction": [_deconstruction(job, seeds) for job, seeds in _cells(found, "deconstruction")],
        "supermasks": [_supermask(job, seeds) for job, seeds in _cells(found, "supermasks")],
        "rethinking": [_rethinking(job, seeds) for kind in ("rethinking", RETHINKING_RUN) for job, seeds in _cells(found, kind)],
    }
    return {**sections, "claims": claims(sections)}


def _cells(found: Found, kind: str) -> list[tuple[Job, list[Any]]]:
    """One job of every cell with what all seeds found there, in the order of the seeds."""
    cells: dict[str, tuple[Job, list[Any]]] = {}
    for job, result in found:
        if job.kind == kind:
            cells.setdefault(f"{job.name} {dict(job.cell)}", (job, []))[1].append(result)
    return list(cells.values())


def _head(job: Job) -> dict[str, Any]:
    return {"network": job.name, "model": job.network.model, "data": job.network.data, **job.cell}


def _accuracies(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = ("untrained", "early", "accuracy")
    return {name: figure(run[name] for run in runs) for name in names if name in runs[0]}


def curve(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A learning curve's points: step, and mean and standard deviation of the accuracy over the seeds."""
    steps: list[int] = [step for step, _ in runs[0]["curve"]]
    points = [{step: value for step, value in run["curve"]} for run in runs]
    figures = [figure(one.get(step) for one in points) for step in steps]
    return [{"step": step, "mean": f["mean"], "std": f["std"]} for step, f in zip(steps, figures, strict=True)]


def _each(seeds: Sequence[Any], take: Callable[[Any], float | None]) -> Figure:
    return figure(take(one) for one in seeds)


def _lottery(job: Job, seeds: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    rounds: list[dict[str, Any]] = []
    for runs in zip(*seeds, strict=True):
        arms = {name: [run["arms"][name] for run in runs] for name in runs[0]["arms"]}
        rounds.append(
            {
                **{name: runs[0][name] for name in ("round", "kept", "total", "density")},
                "layers": {name: _each(runs, lambda run, name=name: run["layers"][name]) for name in runs[0]["layers"]},
                "arms": {name: {**_accuracies(of), "curve": curve(of)} for name, of in arms.items()},
                **{
                    name: _each(runs, lambda run, name=name: run[name])
                    for name in ("sign_agreement", "overlap_one_shot", "overlap_random")
                },
            }
        )
    return {**_head(job), "rounds": rounds}


def _deconstruction(job: Job, seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    families = ("criteria", "kept_actions", "pruned_actions")
    return {
        **_head(job),
        "classes": seeds[0]["whole"]["classes"],
        "whole": _accuracies([one["whole"] for one in seeds]),
        **{family: {name: _accuracies([one[family][name] for one in seeds]) for name in seeds[0][family]} for family in families},
    }


def _supermask(job: Job, seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    more = {name: _each(seeds, lambda one, name=name: one[name]) for name in ("sampled", "density")}
    return {**_head(job), **_accuracies(seeds), **more, "curve": curve(seeds)}


def _rethinking(job: Job, seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    full = [one["full"] for one in seeds]
    names: Iterable[str] = seeds[0]["arms"]
    costs = {name: full[0][name] for name in ("macs", "small_macs", "parameters", "small_parameters", "ratio")}
    return {
        **_head(job),
        **costs,
        "full": _accuracies(full),
        "pruned": figure(one["pruned"] for one in full),
        "arms": {
            name: {
                "epochs": seeds[0]["arms"][name]["epochs"],
                "lr": seeds[0]["arms"][name]["lr"],
                **_accuracies([one["arms"][name] for one in seeds]),
            }
            for name in names
        },
    }
