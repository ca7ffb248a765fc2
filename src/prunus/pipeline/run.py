"""`run`: a whole recipe, from images to a small, recovered, exported and explained network."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from prunus.allocation import allocate, check_reach
from prunus.config import Recipe
from prunus.errors import PrunusError, PrunusWarning
from prunus.export import route_of
from prunus.graph import trace
from prunus.importance import score
from prunus.importance.criteria import resolve_criterion
from prunus.importance.evidence import DataRun
from prunus.pipeline.controls import CONTROLS, Controls
from prunus.pipeline.deliver import deliver, export_formats
from prunus.pipeline.images import load_images
from prunus.pipeline.judge import Judge
from prunus.pipeline.ladder import TITLES, Fall, Ladder, judged_title
from prunus.pipeline.layers import layer_rows
from prunus.pipeline.networks import Networks
from prunus.pipeline.pace import carried
from prunus.pipeline.preferences import PAGE, write_preferences
from prunus.pipeline.prune import PruneResult, prune
from prunus.pipeline.result import assemble, stage_title
from prunus.pipeline.result_hash import result_hash
from prunus.pipeline.rounds import meets, plan_round, recalled, remembered, removed_channels, tries_plans
from prunus.pipeline.score_rows import score_rows
from prunus.pipeline.shared_timer import SharedTimer
from prunus.pipeline.sparsity import Decided, check_method, recalled_plan, train_sparse
from prunus.pipeline.stages import Stages, write_json
from prunus.pipeline.timer import Timer
from prunus.pipeline.trainer import Compute, Trainer
from prunus.pipeline.transfer import train_head
from prunus.pipeline.trying import PlansAreTried, stop_at_the_first_plan
from prunus.report import write_report
from prunus.surgery import SurgeryRecord, save, select_streams
from prunus.training.processes import Processes
from prunus.training_hooks import SparsityTask
from prunus.types import Budget, ChannelGraph

EXAMPLES = 2  # images in the batch that is traced and verified
Left: TypeAlias = "tuple[nn.Module, SurgeryRecord, dict[str, Any]]"
"""What a stage leaves: a network, the surgery it has been through, and what the result says about the stage."""


def run(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    announce: Callable[[str], None] = lambda _: None,
    controls: bool = False,
) -> dict[str, Any]:
    """Carry out ``recipe`` in the folder ``out`` and return what ``result.json`` holds.

    The folder gets ``result.json``, ``report.html``, ``small.prunus`` (for `prunus.load`), ``small.onnx`` if asked for, and the
    stages' own files. With ``resume`` a run that was killed continues: finished stages are skipped, training goes on at its last
    epoch. ``controls`` adds the rows of `CONTROLS` to the result, each a training of its own; a finished run gets them with
    ``resume``.

    Raises:
        PrunusError: whatever a stage raises; files of finished stages stay.
    """
    threads = torch.get_num_threads()
    try:
        return _Run(recipe, out, resume, announce).execute(controls)
    finally:
        torch.set_num_threads(threads)


class _Run:
    def __init__(self, recipe: Recipe, out: Path, resume: bool, announce: Callable[[str], None]) -> None:
        self.recipe, self.out = recipe, out
        self.processes = Processes()
        self.data = self.processes.main_first(lambda: load_images(recipe, at_least=EXAMPLES))
        self.examples = torch.stack([self.data.test[i][0] for i in range(EXAMPLES)])
        self.trainer = Trainer(recipe, self.data, out / "checkpoints", resume)
        self.ladder = Ladder(self.trainer, recipe.recover)
        self.networks = Networks(recipe, self.data, self.examples)
        self._check_before_training()
        self.stages = Stages(out, recipe.model_dump(mode="json"), resume, announce, self.processes)
        self.results: dict[str, dict[str, Any]] = {}
        self.latest = ""  # the stage that left the network that the next one takes up

    def _check_before_training(self) -> None:
        """Whatever can be known to fail later fails now, before anything is trained or written: names, weights, the budget."""
        settings, model = self.recipe.prune, self.networks.build()
        for name in export_formats(self.recipe):
            route_of(name).require()
        self._select_inputs(model, SurgeryRecord.nothing_removed(model))
        if self.recipe.sparsity is not None:
            self.needs, self.batches = frozenset[str](), 0
            graph = self._trace(model)
            check_method(self.recipe, model, graph, self._task(settings.to_budget()))
            check_reach(graph, settings.to_budget())
            return
        criterion = resolve_criterion(settings.criterion, settings.criterion_options)
        self.needs = criterion.needs
        self.batches = settings.batches if criterion.needs else 0
        graph = self._trace(model)
        budget = replace(settings.to_budget(), tolerance=0.99)  # how close it comes depends on the scores
        if budget.measured:
            counted = {**budget.targets, "latency": None}
            if not any(counted.values()):
                return  # what is fast is measured once there is something to prune
            budget = replace(budget, latency=None, multiple_of=None)
        scores, options = score(model, graph, "random"), settings.allocator_options
        with suppress(PlansAreTried):
            allocate(graph, scores, budget, settings.allocator, evaluate=stop_at_the_first_plan, **options)

    def execute(self, controls: bool) -> dict[str, Any]:
        (self.out / "checkpoints").mkdir(exist_ok=True)
        self._set_compute()
        if self.recipe.transfer is not None:
            self._step("transfer", self._transfer)
        self._step("train", self._train, "base")
        self.full = self._trace(self._base())
        rounds = self._rounds()
        if self.recipe.recover.final_epochs:
            self._step("final-fine-tune", lambda model, record: self._final_fine_tune(model, record, rounds))
        if "preferences" in self.needs:
            self._do("gallery", self._gallery, f"../{PAGE}", alone=True)
        self._do("export", self._export, "../small.prunus", alone=True)
        self._controls(controls, rounds)
        return self.processes.by_main(lambda: self._finish(rounds))

    def _finish(self, rounds: int) -> dict[str, Any]:
        record = self.networks.record(self.stages, self.latest)
        result = assemble(
            self.recipe, self.results, rounds, self.full, record, self.out, self.stages.file("base.prunus"), self.data
        )
        result["hash"] = result_hash(result)
        write_json(self.out / "result.json", result)
        write_report(result, self.out / "report.html")
        return result

    def _rounds(self) -> int:
        """All rounds of pruning, each with its recovery; returns how many there were."""
        number, last = 0, False
        while not last:
            number += 1
            prune_stage = self._prune
            if self.recipe.sparsity is not None:
                self._step(f"round-{number}-sparsity", lambda model, record, n=number: self._sparsity(model, record, n))
                prune_stage = self._prune_as_decided
            before = self.latest
            self._step(f"round-{number}-prune", lambda model, record, n=number, p=prune_stage: p(model, record, n))
            for rung in self.recipe.recover.rungs:
                self._step(
                    f"round-{number}-{rung}",
                    lambda model, record, n=number, r=rung, b=before: self._climb(model, record, n, r, b),
                )
            last = self.results[f"round-{number}-prune"]["last"]
        return number

    def _do(self, name: str, work: Callable[[], dict[str, Any]], *leaves: str, alone: bool = False) -> None:
        begin = time.perf_counter()

        def timed() -> dict[str, Any]:
            return {**work(), "seconds": time.perf_counter() - begin}

        self.results[name] = self.stages.run(name, timed, leaves, alone=alone)

    def _step(self, name: str, work: Callable[[nn.Module, SurgeryRecord], Left], leaves: str = "") -> None:
        """A stage that takes up the latest network and leaves another under its own name, or under ``leaves``."""
        before, leaves = self.latest, leaves or name

        def stage() -> dict[str, Any]:
            if before:
                model, record = self.networks.load(self.stages, before)
            else:
                model = self.networks.build()
                record = SurgeryRecord.nothing_removed(model)
            model, record, found = work(model, record)
            self.networks.save(self.stages, leaves, model, record)
            return found

        self._do(name, stage, f"{leaves}.prunus")
        self.latest = leaves

    def _trace(self, model: nn.Module) -> ChannelGraph:
        asked = self.recipe.prune
        return trace(model, self.examples, asked.keep, asked.mixing, self.trainer.forward_fn, whole_groups=asked.whole_groups)

    def _base(self) -> nn.Module:
        return self.networks.load(self.stages, "base")[0]

    def _set_compute(self) -> None:
        """Fixed settings, or the fastest measured; a resumed run keeps what was chosen, for the last digits depend on it."""
        self._do("compute", lambda: self.trainer.choose_compute(self.networks.build), alone=True)
        chosen = self.results["compute"]
        self.trainer.use(Compute(chosen["threads"], chosen["channels_last"]))

    # -- stages

    def _transfer(self, model: nn.Module, record: SurgeryRecord) -> Left:
        settings, head = self.recipe.transfer, self.networks.head
        assert settings is not None and head is not None
        found = train_head(model, head, settings, self.trainer)
        if self.recipe.train.epochs or self.recipe.train.steps:
            found["evaluation"] = self.trainer.evaluate(model, "after training the head")
        return model, record, found

    def _train(self, model: nn.Module, record: SurgeryRecord) -> Left:
        epochs = self.trainer.fit(model, self.recipe.train, "train")
        record = self._select_inputs(model, record)
        return model, record, {"epochs": epochs, "evaluation": self.trainer.evaluate(model, "before pruning")}

    def _select_inputs(self, model: nn.Module, record: SurgeryRecord) -> SurgeryRecord:
        """Where the recipe asks for it, norms that read a stream choose their channels from here on: all, until one goes."""
        asked = self.recipe.prune
        if not asked.select_inputs:
            return record
        return select_streams(model, record, self.examples, keep=asked.keep, forward_fn=self.trainer.forward_fn)

    def _titled(self, number: int, stage: str) -> str:
        settings = self.recipe.prune
        return stage_title(number, iterative=settings.rounds > 1 or settings.channels_per_round is not None, stage=stage)

    def _prune(self, model: nn.Module, record: SurgeryRecord, number: int) -> Left:
        settings = self.recipe.prune
        before_bytes = carried(record, number)
        asked = plan_round(settings, self.full, number, before_bytes)
        before = self.results.get(f"round-{number - 1}-prune", {}).get("scores")
        folder = self.stages.file(f"round-{number}-accuracies")
        judge = Judge(self.trainer, settings.trial_images, folder) if tries_plans(asked.allocator) else None
        with self._timer(asked.budget) as timer:
            result = prune(
                model,
                self.examples,
                asked.budget,
                settings.criterion,
                self.trainer.calibration(self.batches, settings.augment) if self.batches else None,
                self.trainer.loss_fn,
                allocator=asked.allocator,
                keep=settings.keep,
                mixing=settings.mixing,
                whole_groups=settings.whole_groups,
                forward_fn=self.trainer.forward_fn,
                seed=self.recipe.seed,
                previous=None if before is None else recalled(before),
                momentum=settings.momentum,
                evaluate=judge,
                timing=settings.to_timing(),
                timer=timer,
                **settings.criterion_options,
            )
        found: dict[str, Any] = {**_describe(result), "spread": score_rows(result.scores, result.plan)}
        if judge is not None:
            found["tried"] = judge.about()
            found["notes"] += judge.notes
        if settings.momentum:
            found["scores"] = remembered(result.scores, result.plan)
        found["last"] = last = meets(settings, self.full, result.after, found["channels"]["after"], before_bytes)
        if last or not self.recipe.recover.rungs:
            found["evaluation"] = self.trainer.evaluate(result.model, self._titled(number, "after pruning"))
        return result.model, record.compose(result.record), found

    def _timer(self, budget: Budget) -> AbstractContextManager[Timer | None]:
        """What measures latency: nothing special, or one process for all."""
        if self.processes.count == 1 or not budget.measured:
            return nullcontext(None)
        return SharedTimer(self.processes, self.examples, budget.runtime, self.recipe.prune.to_timing())

    def _task(self, budget: Budget) -> SparsityTask:
        return SparsityTask(budget, self.examples, self.recipe.seed, self.trainer.forward_fn)

    def _sparsity(self, model: nn.Module, record: SurgeryRecord, number: int) -> Left:
        asked = plan_round(self.recipe.prune, self.full, number, carried(record, number))
        trained, found = train_sparse(self.recipe, self.trainer, model, self._trace(model), self._task(asked.budget), number)
        return (
            trained,
            record,
            {**found, "evaluation": self.trainer.evaluate(trained, self._titled(number, "after sparsity training"))},
        )

    def _prune_as_decided(self, model: nn.Module, record: SurgeryRecord, number: int) -> Left:
        settings, sparsity = self.recipe.prune, self.recipe.sparsity
        assert sparsity is not None
        before_bytes = carried(record, number)
        graph = self._trace(model)
        plan = recalled_plan(self.results[f"round-{number}-sparsity"]["plan"], graph)
        decided = Decided(plan, sparsity.method)
        result = prune(
            model,
            self.examples,
            plan_round(settings, self.full, number, before_bytes).budget,
            decided,
            self.trainer.calibration(sparsity.fold_batches) if sparsity.fold_batches else None,
            allocator=decided,
            keep=settings.keep,
            mixing=settings.mixing,
            whole_groups=settings.whole_groups,
            forward_fn=self.trainer.forward_fn,
            compensate="mean" if sparsity.fold_batches else None,
        )
        found = _describe(result)
        found["last"] = last = meets(settings, self.full, result.after, found["channels"]["after"], before_bytes)
        if last or not self.recipe.recover.rungs:
            found["evaluation"] = self.trainer.evaluate(result.model, self._titled(number, "after pruning"))
        return result.model, record.compose(result.record), found

    def _climb(self, model: nn.Module, record: SurgeryRecord, number: int, rung: str, before: str) -> Left:
        """One rung of recovery. Within the rounds only what comes last is evaluated, for the rest is soon overtaken."""
        fall = Fall(
            self._base,
            lambda: self.networks.load(self.stages, before)[0],
            self.networks.record(self.stages, before),
            self._trace,
        )
        record, found = self.ladder.climb(rung, model, record, fall, f"round-{number}-{rung}", number - 1)
        if self.results[f"round-{number}-prune"]["last"] or rung == self.recipe.recover.rungs[-1]:
            title = judged_title(f"after {TITLES[rung]}", found.get("epochs", []))
            found["evaluation"] = self.trainer.evaluate(model, self._titled(number, title))
        return model, record, found

    def _final_fine_tune(self, model: nn.Module, record: SurgeryRecord, phase: int) -> Left:
        settings = self.recipe.recover
        last = settings.model_copy(update={"epochs": settings.final_epochs, "steps": None, "schedule": "cosine"})
        epochs = self.trainer.fit(model, last, "final-fine-tune", phase, teacher=self.ladder.teacher(self._base, record))
        title = judged_title("after the final fine-tuning", epochs)
        return model, record, {"epochs": epochs, "evaluation": self.trainer.evaluate(model, title)}

    def _controls(self, wanted: bool, rounds: int) -> None:
        """Rows beside the pruned network's, where they are asked for or there already."""
        last = self.results[f"round-{rounds}-prune"]
        macs = self.full.cost().macs, last["after"]["macs"]
        controls = Controls(
            self.recipe,
            self.trainer,
            lambda: self.networks.load(self.stages, self.latest)[0],
            self._base,
            macs,
            rounds,
        )
        for name in CONTROLS:
            stage = f"control-{name}"
            if wanted or self.stages.file(f"{stage}.json").exists():
                self._do(stage, lambda name=name: controls.run(name))

    def _gallery(self) -> dict[str, Any]:
        """What channels prefer, before pruning and now."""
        small, record = self.networks.load(self.stages, self.latest)
        settings, trainer = self.recipe.prune, self.trainer
        batches = trainer.calibration(self.batches, settings.augment)
        run = DataRun(batches, trainer.loss_fn, trainer.forward_fn, seed=self.recipe.seed)
        options = {name: value for name, value in settings.criterion_options.items() if name in ("clusters", "by")}
        full = self._base(), self.full
        return write_preferences(full, (small, self._trace(small)), record, run, options, self.out / PAGE)

    def _export(self) -> dict[str, Any]:
        small, record = self.networks.load(self.stages, self.latest)
        save(small, record, self.out / "small.prunus")
        files = self.stages.file("full.onnx"), self.out / "small.onnx"  # other formats by other suffixes
        found = deliver(self.recipe, self._base(), small, self.data, self.examples, self.trainer.forward_fn, *files)
        return found | self._layers(small)

    def _layers(self, small: nn.Module) -> dict[str, Any]:
        """Every layer before and after; a network that can't be traced again is delivered without them."""
        threads = self.recipe.export.threads
        try:
            return {"layers": {"threads": threads, "rows": layer_rows(self.full, self._trace(small), self.examples, threads)}}
        except PrunusError as error:
            warnings.warn(f"the report has no picture of the layers: {error}", PrunusWarning, stacklevel=2)
            return {}


def _describe(result: PruneResult) -> dict[str, Any]:
    assert result.verification is not None
    channels = result.graph.num_prunable_channels
    return {
        "before": asdict(result.before),
        "after": asdict(result.after),
        "channels": {"before": channels, "after": channels - removed_channels(result.plan)},
        "allocator": result.plan.provenance.get("allocator"),
        "budget": result.plan.provenance["budget"],
        "latency": result.plan.provenance.get("latency"),
        "verification": asdict(result.verification),
        "frozen": {g.name: g.frozen_because for g in result.graph.frozen},
        "notes": list(result.notes),
    }
