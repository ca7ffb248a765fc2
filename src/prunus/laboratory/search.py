"""`search_network`: many plans at one budget tried on images held out, by one process or several; every trial is kept."""

from __future__ import annotations

import copy
import json
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prunus.allocation.reach import check_reach
from prunus.allocation.search import LOWEST, SearchSpace, chosen, search_trials
from prunus.allocation.trials import SAMPLERS, Outcome, front, importances, run_trials, stored_trials
from prunus.errors import EvidenceError, InvalidBudget, UnknownName
from prunus.laboratory.images import scoring_batches
from prunus.laboratory.settings import Subject
from prunus.laboratory.workbench import Workbench, WorkbenchSettings, check_subject
from prunus.pipeline.result import environment
from prunus.pipeline.stages import Stages, write_json
from prunus.reconstruction import recalibrate
from prunus.report.search import write_search
from prunus.surgery import remove
from prunus.training import evaluate
from prunus.types import Budget, PruningPlan

JOURNAL, BASELINE = "trials.journal", "random.journal"
_POLL = 0.5


@dataclass(frozen=True)
class SearchSettings(WorkbenchSettings):
    """How a search is made: as `WorkbenchSettings` say, at ``budget``.

    ``trials`` plans are drawn by ``sampler`` (see `prunus.allocation.search.search`) from keep fractions of at least ``lowest``,
    and judged after BN statistics are estimated anew on ``recalibration_images`` training images (0: as they are). With
    ``baseline`` as many plans are drawn at random beside them.
    """

    budget: Budget = field(default_factory=lambda: Budget(macs=0.5))
    trials: int = 60
    sampler: str = "tpe"
    lowest: float = LOWEST
    recalibration_images: int = 1024
    baseline: bool = False

    def of_trials(self) -> dict[str, Any]:
        """What the outcome of a trial depends on: all but how many there are, and what is drawn beside them."""
        return {name: value for name, value in self.to_json().items() if name not in ("trials", "baseline")}


def search_network(
    subject: Subject,
    out: Path,
    settings: SearchSettings = SearchSettings(),
    announce: Callable[[str], None] = lambda _: None,
    *,
    storage: str | None = None,
    worker: int | None = None,
    helpers: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Search the groups' widths at a budget (AMC's space, drawn by Optuna); returns what ``search.json`` in ``out`` holds.

    Every trial is kept: the same call goes on where a stopped one ended (a single process to the same trials), and ``trials`` can
    be raised. The test images are never looked at. ``announce`` is told of every trial. The file serves the allocator ``search``
    as its option ``result``; its plan is verified.

    Args:
        storage: where trials are shared: the URL of a database that several machines reach; None: a journal file in ``out``.
        worker: number, from 1, of a process that helps with the trials of another one and writes no result.
        helpers: commands of such processes on this machine, which are started here and work beside this one.

    Raises:
        RecipeError: ``out`` holds a search of something else or with other settings; no such split.
        BudgetNotMet: the budget can't be reached, or no trial comes within its tolerance.
        EvidenceError: a helper failed, or Optuna isn't installed.
        PrunusError: what tracing, scoring, removal or the images raise.
    """
    check_subject(subject, settings)
    if settings.sampler not in SAMPLERS:
        raise UnknownName.among("sampler", settings.sampler, SAMPLERS)
    if settings.trials < 1:
        raise InvalidBudget(f"search: trials={settings.trials} is no number of plans to try out")
    recipe = json.loads(json.dumps({"subject": dict(subject.about), "settings": settings.of_trials()}, default=str))
    work = _Search(subject, settings, Stages(out, recipe, True, lambda _: None), announce)
    begin = time.perf_counter()
    network = work.prepare()
    studies = work.studies(storage, out)
    if helpers:  # what a stopped process left is finished before others are at work
        for journal, sampler in studies:
            work.carry_out(sampler, journal, worker, alone=storage is None, count=0)
    with _at_work(helpers):
        for journal, sampler in studies:
            work.carry_out(sampler, journal, worker, alone=storage is None and not helpers, count=settings.trials)
    if worker is not None:
        return {}
    result = {**recipe, **_result(work, storage, out, network), "seconds": time.perf_counter() - begin}
    write_json(out / "search.json", result)
    write_search(result, out / "search.html")
    return result


class _Search(Workbench):
    """One search in one folder."""

    settings: SearchSettings

    def prepare(self) -> dict[str, Any]:
        """What all processes share, once the budget is known to be reachable: images and the whole network's accuracy."""
        whole = PruningPlan({}, self.graph.cost())
        if not self.stages.file("network.json").exists():
            check_reach(self.graph, self.settings.budget)
        return self.stages.run("network", lambda: {**self.describe(), "accuracy": self.judged(whole)})

    def studies(self, storage: str | None, out: Path) -> list[tuple[str, str]]:
        """Storage and sampler of the search, and of the random baseline if there is one."""
        own = storage or str(out / JOURNAL)
        beside = [(str(out / BASELINE), "random")] if self.settings.baseline else []
        return [(own, self.settings.sampler), *beside]

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace.of(
            self.graph, self.scores, self.settings.budget, self.settings.lowest, clipped=self.settings.sampler != "nsga2"
        )

    def judged(self, plan: PruningPlan) -> float:
        """Accuracy of the network without the plan's channels, after recalibration."""
        small = remove(self.model, self.graph, plan)[0] if plan.num_removed else copy.deepcopy(self.model)
        functions: dict[str, Any] = {"forward_fn": self.subject.forward_fn}
        if self.settings.recalibration_images:
            recalibrate(small, self._calibration, **functions)
        return evaluate(small, self.loader, loss_fn=self.subject.loss_fn, description="plan", **functions).accuracy

    @cached_property
    def _calibration(self) -> list[Any]:
        asked = self.settings
        return scoring_batches(self.subject.data, asked.recalibration_images, asked.batch_size, asked.seed)

    def carry_out(self, sampler: str, storage: str, worker: int | None, *, alone: bool, count: int) -> None:
        """The trials that ``sampler`` draws, up to ``count``; without any, only what a stopped process left is finished."""
        work = search_trials(self.space, self.graph, self.scores, sampler, self.settings.seed, self.judged)

        def announced(fractions: Mapping[str, float]) -> Outcome:
            outcome = work.try_out(fractions)
            self.announce(f"a plan by {sampler}: accuracy {outcome.accuracy:.1%} at {outcome.cost:.1%} of the budget")
            return outcome

        told = replace(work, try_out=announced)
        run_trials(told, storage, count, worker=worker or 0, alone=alone and worker is None)


@contextmanager
def _at_work(commands: Sequence[Sequence[str]]) -> Generator[None, None, None]:
    """Run commands beside what is done within, then wait for them; if one fails, or this process is stopped, all are ended."""
    running = [subprocess.Popen(command) for command in commands]
    try:
        yield
        while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
            time.sleep(_POLL)
        if any(process.poll() for process in running):
            raise EvidenceError("a worker of the search failed: its own message is above. The same command goes on from here")
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _result(work: _Search, storage: str | None, out: Path, network: dict[str, Any]) -> dict[str, Any]:
    """The content of ``search.json``, but for what was asked."""
    (own, _), *beside = work.studies(storage, out)
    trials = stored_trials(own)
    plan = chosen(work.space, trials, {"sampler": work.settings.sampler})
    work.without(plan, "the channels of the chosen plan")
    sizes = {group.group.name: group.group.num_channels for group in work.space.widths.groups}
    machine, cost = environment(), work.graph.cost()
    return {
        "prunus": machine["prunus"],
        "criterion": work.scores.criterion,
        "settings": json.loads(json.dumps(work.settings.to_json(), default=str)),
        "widths": sizes,
        "network": {**{name: network[name] for name in ("accuracy", "images", "split")}, "cost": asdict(cost)},
        "budget": plan.provenance["budget"],
        "chosen": {"trial": plan.provenance["trial"], "kept": plan.counts(), "cost": asdict(plan.predicted)},
        "trials": [trial.to_json() for trial in trials],
        "baseline": [trial.to_json() for storage, _ in beside for trial in stored_trials(storage)],
        "front": [trial.number for trial in front(trials)],
        "importances": importances(trials, sizes, work.settings.seed),
        "notes": [*network["warnings"], *network["notes"], *work.scored["warnings"]],
        "environment": machine,
    }
