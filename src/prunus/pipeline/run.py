"""`run`: a whole recipe, from images to a small, recovered, exported and explained network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.allocation import allocate
from prunus.config import OptimizerConfig, Recipe
from prunus.errors import DataError
from prunus.export import export_onnx, measure_latency, measure_onnx_latency
from prunus.graph import trace
from prunus.importance import score
from prunus.importance.criteria import resolve_criterion
from prunus.pipeline.prune import PruneResult, prune
from prunus.pipeline.result import assemble, stage_title
from prunus.pipeline.stages import Stages, write_json
from prunus.reconstruction import recalibrate
from prunus.report import write_report
from prunus.sources import DataBundle, load_data, load_function, load_model, make_loader
from prunus.surgery import SurgeryRecord, load, save
from prunus.surgery.artifact import read_record
from prunus.training import evaluate, train
from prunus.types import Amount, Budget, ChannelGraph, ForwardFn

EXAMPLES = 2  # images in the batch that is traced and verified


def run(recipe: Recipe, out: Path, *, resume: bool = False, announce: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Carry out ``recipe`` in the folder ``out`` and return what ``result.json`` holds.

    The folder gets ``result.json``, ``report.html``, ``small.prunus`` (for `prunus.load`), ``small.onnx`` if asked for, and the
    stages' own files. With ``resume`` a run that was killed continues: finished stages are skipped, training goes on at its last
    epoch.

    Raises:
        PrunusError: whatever a stage raises; files of finished stages stay.
    """
    return _Run(recipe, out, resume, announce).execute()


class _Run:
    def __init__(self, recipe: Recipe, out: Path, resume: bool, announce: Callable[[str], None]) -> None:
        self.recipe, self.out, self.resume = recipe, out, resume
        named = recipe.functions
        self.loss_fn, self.metric, self.forward_fn = (
            load_function(source) if source else None for source in (named.loss, named.metric, named.forward)
        )
        self.data = _load_data(recipe)
        self.examples = torch.stack([self.data.test[i][0] for i in range(EXAMPLES)])
        self._check_before_training()
        self.stages = Stages(out, recipe.model_dump(mode="json"), resume, announce)
        self.results: dict[str, dict[str, Any]] = {}

    def _check_before_training(self) -> None:
        """Whatever can be known to fail later fails now, before anything is trained or written: names, weights, the budget."""
        settings, model = self.recipe.prune, self._fresh()
        criterion = resolve_criterion(settings.criterion, settings.criterion_options)
        self.batches = settings.batches if criterion.needs else 0
        graph = trace(model, self.examples, settings.keep, settings.mixing, self.forward_fn)
        budget = replace(settings.to_budget(), tolerance=0.99)  # how close it comes depends on the scores
        allocate(graph, score(model, graph, "random"), budget, settings.allocator)

    def execute(self) -> dict[str, Any]:
        rounds = self.recipe.prune.rounds
        self._do("train", self._train, "base.prunus")
        self._do("evaluate-before", lambda: {"evaluation": self._evaluate(self._base(), "before pruning")})
        for number in range(1, rounds + 1):
            for stage, work in (("prune", self._prune), ("recalibrate", self._recalibrate), ("fine-tune", self._fine_tune)):
                name = f"round-{number}-{stage}"
                self._do(name, lambda n=number, w=work: w(n), f"{name}.prunus")
        self._do("export", self._export, "../small.prunus")
        result = assemble(
            self.recipe, self.results, self._graph(), self._record(rounds, "fine-tune"), self.out, self.stages.file("base.prunus")
        )
        result["notes"] = [*self.data.notes, *result["notes"]]
        write_json(self.out / "result.json", result)
        write_report(result, self.out / "report.html")
        return result

    def _do(self, name: str, work: Callable[[], dict[str, Any]], *leaves: str) -> None:
        begin = time.perf_counter()
        self.results[name] = self.stages.run(name, lambda: {**work(), "seconds": time.perf_counter() - begin}, leaves)

    # -- networks at the different stages

    def _fresh(self) -> nn.Module:
        model = self.recipe.model
        classes, channels = self.data.num_classes, self.data.input_shape[0]
        return load_model(
            model.source,
            weights=model.weights,
            num_classes=classes,
            in_channels=channels,
            arguments=model.arguments,
            seed=self.recipe.seed,
        )

    def _base(self) -> nn.Module:
        return load(self.stages.file("base.prunus"), self._fresh())

    def _after(self, number: int, stage: str) -> nn.Module:
        return self._base() if number == 0 else load(self.stages.file(f"round-{number}-{stage}.prunus"), self._fresh())

    def _save(self, model: nn.Module, record: SurgeryRecord, number: int, stage: str) -> None:
        save(model, record, self.stages.file(f"round-{number}-{stage}.prunus"))

    def _record(self, number: int, stage: str) -> SurgeryRecord:
        return read_record(self.stages.file("base.prunus" if number == 0 else f"round-{number}-{stage}.prunus"))

    # -- stages

    def _fit(self, model: nn.Module, settings: OptimizerConfig, name: str) -> list[dict[str, Any]]:
        data = self.recipe.data
        loader = make_loader(self.data.train, batch_size=data.batch_size, shuffle=True, workers=data.workers)
        validation = make_loader(self.data.validation, batch_size=data.eval_batch_size, shuffle=False, workers=data.workers)
        log = train(
            model,
            loader,
            settings,
            seed=self.recipe.seed,
            checkpoint=self.out / "checkpoints" / f"{name}.safetensors",
            resume=self.resume,
            evaluation_loader=validation,
            loss_fn=self.loss_fn,
            metric=self.metric,
            forward_fn=self.forward_fn,
            description=name,
        )
        return [asdict(epoch) for epoch in log.epochs]

    def _train(self) -> dict[str, Any]:
        (self.out / "checkpoints").mkdir(exist_ok=True)
        model = self._fresh()
        epochs = self._fit(model, self.recipe.train, "train")
        save(model, SurgeryRecord.nothing_removed(model), self.stages.file("base.prunus"))
        return {"epochs": epochs}

    def _evaluate(self, model: nn.Module, stage: str) -> dict[str, Any]:
        data = self.recipe.data
        loader = make_loader(self.data.test, batch_size=data.eval_batch_size, shuffle=False, workers=data.workers)
        found = evaluate(
            model,
            loader,
            loss_fn=self.loss_fn,
            metric=self.metric,
            forward_fn=self.forward_fn,
            description=f"evaluate {stage}",
        )
        return {"stage": stage, "split": "test", **asdict(found)}

    def _named(self, number: int, stage: str) -> str:
        return stage_title(number, self.recipe.prune.rounds, stage)

    def _calibration(self, batches: int) -> list[Any]:
        """The same seeded batches of training images, without augmentation, whichever stage asks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            loader = make_loader(self.data.calibration, batch_size=self.recipe.data.batch_size, shuffle=True)
            return [batch for batch, _ in zip(loader, range(batches), strict=False)]

    def _prune(self, number: int) -> dict[str, Any]:
        settings = self.recipe.prune
        model = self._after(number - 1, "fine-tune")
        budget = settings.to_budget()
        if settings.rounds > 1:
            budget = round_budget(budget, self._graph(), number, settings.rounds)
        result = prune(
            model,
            self.examples,
            budget,
            settings.criterion,
            self._calibration(self.batches) if self.batches else None,
            self.loss_fn,
            allocator=settings.allocator,
            keep=settings.keep,
            mixing=settings.mixing,
            forward_fn=self.forward_fn,
            seed=self.recipe.seed,
            **settings.criterion_options,
        )
        self._save(result.model, self._record(number - 1, "fine-tune").compose(result.record), number, "prune")
        return {"evaluation": self._evaluate(result.model, self._named(number, "after pruning")), **_describe(result)}

    def _graph(self) -> ChannelGraph:
        """The groups of the full network."""
        return trace(self._base(), self.examples, self.recipe.prune.keep, self.recipe.prune.mixing, self.forward_fn)

    def _recalibrate(self, number: int) -> dict[str, Any]:
        model = self._after(number, "prune")
        batches = self.recipe.recover.recalibrate_batches
        images = recalibrate(model, self._calibration(batches), forward_fn=self.forward_fn) if batches else 0
        self._save(model, self._record(number, "prune"), number, "recalibrate")
        return {"images": images, "evaluation": self._evaluate(model, self._named(number, "after recalibration"))}

    def _fine_tune(self, number: int) -> dict[str, Any]:
        model = self._after(number, "recalibrate")
        epochs = self._fit(model, self.recipe.recover, f"round-{number}-fine-tune")
        self._save(model, self._record(number, "recalibrate"), number, "fine-tune")
        return {"epochs": epochs, "evaluation": self._evaluate(model, self._named(number, "after fine-tuning"))}

    def _export(self) -> dict[str, Any]:
        settings, rounds = self.recipe.export, self.recipe.prune.rounds
        base, small = self._base().eval(), self._after(rounds, "fine-tune").eval()
        save(small, self._record(rounds, "fine-tune"), self.out / "small.prunus")
        one = self.examples[:1]
        base, small = (Called(model, self.forward_fn) if self.forward_fn else model for model in (base, small))
        latency = measure_latency({"before": base, "after": small}, one, runs=settings.latency_runs, threads=settings.threads)
        exports: list[dict[str, Any]] = []
        if settings.onnx:
            check = export_onnx(small, one, self.out / "small.onnx", check_inputs=[self.examples])
            export_onnx(base, one, self.stages.file("full.onnx"))
            files = {"before": self.stages.file("full.onnx"), "after": self.out / "small.onnx"}
            times = measure_onnx_latency(files, one, runs=settings.latency_runs, threads=settings.threads)
            row = {k: v for k, v in asdict(check).items() if k != "path"}
            exports.append(
                {
                    **row,
                    "file": check.path.name,
                    "latency_before": asdict(times["before"]),
                    "latency_after": asdict(times["after"]),
                }
            )
        return {"latency": {name: asdict(value) for name, value in latency.items()}, "exports": exports}


class Called(nn.Module):
    """A network with the user's way of calling it, for timing and export."""

    def __init__(self, model: nn.Module, forward_fn: ForwardFn) -> None:
        super().__init__()
        self.model, self.forward_fn = model, forward_fn

    def forward(self, inputs: Any) -> Any:
        return self.forward_fn(self.model, inputs)


def _load_data(recipe: Recipe) -> DataBundle:
    data = recipe.data
    bundle = load_data(
        data.source,
        image_size=data.image_size,
        augment=data.augment,
        mean=data.mean,
        std=data.std,
        validation_fraction=data.validation_fraction,
        train_limit=data.train_limit,
        seed=recipe.seed,
    )
    if len(bundle.test) < EXAMPLES:  # pyright: ignore[reportArgumentType]
        raise DataError(f"{data.source} has fewer than {EXAMPLES} test images: nothing could be judged on them")
    return bundle


def _describe(result: PruneResult) -> dict[str, Any]:
    assert result.verification is not None
    return {
        "before": asdict(result.before),
        "after": asdict(result.after),
        "budget": result.plan.provenance["budget"],
        "verification": asdict(result.verification),
        "frozen": {g.name: g.frozen_because for g in result.graph.frozen},
        "notes": list(result.notes),
    }


def round_budget(budget: Budget, full: ChannelGraph, number: int, rounds: int) -> Budget:
    """The budget of round ``number``: absolute, on a geometric path from the full network's cost to the final limit."""
    costs = {**asdict(full.cost()), "channels": full.num_prunable_channels}
    amounts: dict[str, Amount] = {}
    for target in budget.targets:
        whole = float(costs[target])
        amounts[target] = max(1, int(whole * (budget.limit(target, whole) / whole) ** (number / rounds)))
    return replace(budget, **amounts)
