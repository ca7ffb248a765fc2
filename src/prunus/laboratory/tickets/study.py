"""`study_tickets`: a whole laboratory of tickets from a recipe, its jobs shared by processes; what is finished isn't repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from prunus.laboratory.tickets.deconstruction import Deconstruction
from prunus.laboratory.tickets.jobs import RETHINKING_RUN, Job, Parts, jobs_of
from prunus.laboratory.tickets.lottery import Lottery
from prunus.laboratory.tickets.rethinking import Rethinking
from prunus.laboratory.tickets.rethinking_run import RethinkingRun
from prunus.laboratory.tickets.summary import summarise
from prunus.laboratory.tickets.supermasks import Supermasks
from prunus.pipeline.result import environment
from prunus.pipeline.stages import write_json
from prunus.report.tickets import write_tickets
from prunus.ticket_recipe import TicketRecipe

KINDS: dict[str, Any] = {
    "lottery": Lottery,
    "deconstruction": Deconstruction,
    "supermasks": Supermasks,
    "rethinking": Rethinking,
    RETHINKING_RUN: RethinkingRun,
}
Progress = Callable[[int, int, str], None]


def quiet(done: int, jobs: int, last: str) -> None:
    """Tells nobody how many jobs are done."""


def study_tickets(recipe: TicketRecipe, out: Path, processes: int = 1, progress: Progress = quiet) -> dict[str, Any]:
    """Carry out a laboratory of lottery tickets; returns what ``tickets.json`` in ``out`` holds.

    Every job (a cell of a section's grid, on one network and seed) and within it every part (a round, a criterion, an arm) is
    kept in ``out`` when it is finished: the same call goes on where a killed one stopped. Seeds, networks, cells, rounds and
    criteria can be added; with other settings a job has another folder. ``processes`` run at once, each with one thread, so that
    the figures don't depend on how many there are. ``progress`` is told how many jobs are done, of how many, and the last one.

    Raises:
        PrunusError: what networks, images, pruning or training raise; ``ArtifactError`` for files that can't be written.
    """
    jobs = jobs_of(recipe)
    begin = time.perf_counter()
    done = dict(_execute(jobs, out, processes, progress))
    machine = environment()
    result = {
        "prunus": machine["prunus"],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "name": recipe.name,
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "seconds": time.perf_counter() - begin,
        "core_seconds": sum(seconds for _, seconds in done.values()),
        "processes": processes,
        **summarise([(job, done[place][0]) for place, job in enumerate(jobs)]),
        "environment": {**machine, "threads": 1},
    }
    write_json(out / "tickets.json", result)
    write_tickets(json.loads(json.dumps(result)), out / "tickets.html")
    return result


def _execute(jobs: list[Job], out: Path, processes: int, progress: Progress) -> list[tuple[int, Any]]:
    """(place of the job, what `carry_out` returns)."""
    progress(0, len(jobs), "")
    found: list[tuple[int, Any]] = []
    if processes == 1:
        for place, job in enumerate(jobs):
            found.append((place, carry_out(job, out)))
            progress(len(found), len(jobs), str(job))
        return found
    # Forked processes would inherit torch's threads in whatever state they are; spawned ones start clean.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(carry_out, job, out): place for place, job in enumerate(jobs)}
        try:
            for done in as_completed(waiting):
                found.append((waiting[done], done.result()))
                progress(len(found), len(jobs), str(jobs[waiting[done]]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def carry_out(job: Job, out: Path) -> tuple[Any, float]:
    """One job, with one thread: what it found, and the seconds of one core that took; parts that are finished are read."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parts = Parts(out / "jobs" / job.stem)
        return KINDS[job.kind](job, parts).execute(), parts.seconds
    finally:
        torch.set_num_threads(threads)
