"""Widths found by a search beside those of other allocators, at equal MACs, before and after fine-tuning.

    python benchmarks/search.py digits
    python benchmarks/search.py resnet20 --data PATH_OF/cifar10_jpeg.zip --weights PATH_OF/resnet20_cifar10.safetensors
    python benchmarks/search.py resnet20 --data ... --weights ... --time      # on a quiet machine of two cores

One trained network; channels ranked by l1 for all rows, so that only the widths differ. 60 trials of the search (TPE) and 60
random draws are judged on validation images after BN recalibration; the test images are seen by the finished rows alone: after
recalibration, and after fine-tuning with three seeds. ``--time``: 60 trials by one process with one thread, two with one
thread each, and one with two threads, each from start to end. Everything is kept in ``--folder``: what was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from prunus.allocation.search import SearchSpace
from prunus.config import Recipe, load_recipe
from prunus.files import write_atomically
from prunus.laboratory import Subject
from prunus.laboratory.search import SearchSettings, search_network
from prunus.pipeline.images import load_images
from prunus.pipeline.networks import Networks
from prunus.pipeline.result import environment
from prunus.pipeline.trainer import Trainer
from prunus.reconstruction import recalibrate
from prunus.surgery import SurgeryRecord
from prunus.types import Budget, PruningPlan

RESULTS = Path(__file__).parent / "results"
RECIPES = Path(__file__).parents[1] / "src" / "prunus" / "recipes"
SEEDS = (0, 1, 2)
ROWS = ("uniform", "global", "knapsack", "random", "search")
MODES = {"one process, one thread": (1, 1), "two processes, one thread each": (2, 1), "one process, two threads": (1, 2)}
TIMED_TRIALS = 60


@dataclass(frozen=True)
class Task:
    """A recipe with what is changed in it, and how it is searched."""

    recipe: str
    overrides: tuple[str, ...]
    settings: SearchSettings


TASKS = {
    "digits": Task(
        "digits",
        ("data.image_size=8", "recover.epochs=5"),
        SearchSettings(budget=Budget(macs=0.4), images=None, recalibration_images=512, baseline=True),
    ),
    "resnet20": Task(
        "cifar_resnet20",
        ("data.train_limit=10000", "compute.channels_last=false"),
        SearchSettings(budget=Budget(macs=0.6), images=1000, recalibration_images=1024, batch_size=128, baseline=True),
    ),
}


class Work:
    """One task in one folder."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.name, self.folder = chosen.task, chosen.folder / f"search-{chosen.task}"
        self.task = TASKS[chosen.task]
        own = {"data.source": chosen.data and f"cifar10:{chosen.data}", "model.weights": chosen.weights}
        self.overrides = [*self.task.overrides, *(f"{key}={value}" for key, value in own.items() if value)]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe = self.recipe_of(0)
        self.data = load_images(self.recipe, at_least=2)
        self.examples = torch.stack([self.data.test[i][0] for i in range(2)])

    def recipe_of(self, seed: int) -> Recipe:
        return load_recipe(RECIPES / f"{self.task.recipe}.toml", [*self.overrides, f"seed={seed}"])

    def trainer(self, seed: int, name: str) -> Trainer:
        return Trainer(self.recipe_of(seed), self.data, self.folder / "checkpoints" / name, resume=True)

    def base(self) -> nn.Module:
        """The trained network, trained once."""
        path, model = self.folder / "base.prunus", Networks(self.recipe, self.data, self.examples).build()
        if not path.exists():
            self.kept("base", lambda: {"epochs": self._train(model)})
            prunus.save(model, SurgeryRecord.nothing_removed(model), path)
        return prunus.load(path, model).eval()

    def _train(self, model: nn.Module) -> list[dict[str, Any]]:
        (self.folder / "checkpoints" / "base").mkdir(parents=True, exist_ok=True)
        return self.trainer(0, "base").fit(model, self.recipe.train, "train")

    def kept(self, name: str, work: Any) -> dict[str, Any]:
        """The result of a part, made once."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            print(f"{self.name}: {name}", flush=True)
            write_atomically(path, json.dumps(work()).encode())
        return json.loads(path.read_text())

    def search(self, folder: str, settings: SearchSettings, **options: Any) -> dict[str, Any]:
        model, about = self.base(), {"model": self.recipe.model.source, "data": self.recipe.data.source.rpartition("/")[2]}
        return search_network(Subject(lambda _: model, self.data, about), self.folder / folder, settings, **options)

    def plans(self, result: Mapping[str, Any]) -> dict[str, PruningPlan]:
        """A plan for every row, of the same channels' ranking."""
        model, budget = self.base(), self.task.settings.budget
        graph = prunus.trace(model, self.examples)
        scores = prunus.score(model, graph, "l1")
        found = {row: prunus.allocate(graph, scores, budget, row) for row in ROWS[:3]}
        space = SearchSpace.of(graph, scores, budget)
        for row, trials in (("random", result["baseline"]), ("search", result["trials"])):
            best = max(trials, key=lambda trial: (trial["accuracy"], -trial["number"]))
            found[row] = space.widths.plan(space.levels_of(best["kept"]), row)
        return found

    def row(self, name: str, plan: PruningPlan, seed: int) -> dict[str, Any]:
        """Test accuracies of one plan: after recalibration, after fine-tuning."""
        model = self.base()
        small, _ = prunus.remove(model, prunus.trace(model, self.examples), plan)
        trainer = self.trainer(seed, f"{name}-{seed}")
        trainer.checkpoints.mkdir(parents=True, exist_ok=True)
        recover = trainer.recipe.recover
        recalibrate(small, trainer.calibration(recover.recalibrate_batches))
        before = trainer.evaluate(small, "before")["accuracy"]
        trainer.fit(small, recover, "fine-tune", 1)
        after = trainer.evaluate(small, "after")["accuracy"]
        return {"before": before, "after": after, "macs": plan.predicted.macs, "kept": plan.counts()}


def compare(work: Work) -> None:
    """All parts that aren't there yet, and the table."""
    result = work.search("trials", work.task.settings)
    whole = work.kept("whole", lambda: {"accuracy": work.trainer(0, "base").evaluate(work.base(), "whole")["accuracy"]})
    parts: dict[str, dict[str, Any]] = {}
    for name, plan in work.plans(result).items():
        for seed in SEEDS:
            parts[f"{name}/{seed}"] = work.kept(f"{name}-{seed}", lambda n=name, p=plan, s=seed: work.row(n, p, s))
    rows = []
    for name in ROWS:
        own = [parts[f"{name}/{seed}"] for seed in SEEDS]
        judged = {when: _spread([part[when] for part in own]) for when in ("before", "after")}
        rows.append({"row": name, "macs": own[0]["macs"], "kept": own[0]["kept"], **judged})
    search = {name: result[name] for name in ("settings", "network", "chosen", "front", "importances", "trials", "baseline")}
    _store(work.name, {"rows": rows, "whole": whole["accuracy"], "parts": parts, "search": search})


def _spread(values: list[float]) -> dict[str, Any]:
    return {"values": values, "mean": statistics.mean(values), "std": statistics.stdev(values)}


def measure(work: Work, chosen: argparse.Namespace) -> None:
    """Wall time of the same number of trials by processes and threads, each mode in a fresh process and folder."""
    work.base()
    seconds: dict[str, float] = {}
    for name, (processes, threads) in MODES.items():
        folder = f"timed-{processes}-{threads}-{time.time_ns()}"
        command = [*_again(chosen), "--timed", folder, "--processes", str(processes), "--threads", str(threads)]
        begin = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        seconds[name] = time.perf_counter() - begin
        print(f"{name}: {seconds[name]:.0f} s", flush=True)
    _store(work.name, {"timing": {"trials": TIMED_TRIALS, "load": os.getloadavg()[0], "seconds": seconds}})


def timed(work: Work, chosen: argparse.Namespace) -> None:
    """One mode, or one of its workers."""
    torch.set_num_threads(chosen.threads)
    settings = replace(work.task.settings, trials=TIMED_TRIALS, sampler="random", baseline=False)
    mode = ["--timed", chosen.timed, "--processes", str(chosen.processes), "--threads", str(chosen.threads)]
    numbers = range(1, chosen.processes) if chosen.worker is None else ()
    helpers = [[*_again(chosen), *mode, "--worker", str(number)] for number in numbers]
    work.search(chosen.timed, settings, worker=chosen.worker, helpers=helpers)


def _again(chosen: argparse.Namespace) -> list[str]:
    own = [
        part for name in ("data", "weights", "folder") if (value := getattr(chosen, name)) for part in (f"--{name}", str(value))
    ]
    return [sys.executable, __file__, chosen.task, *own]


def _store(name: str, new: dict[str, Any]) -> None:
    path = RESULTS / f"search_{name}.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    tree = {**old, "command": f"python benchmarks/search.py {name}", "environment": environment(), **new}
    write_atomically(path, (json.dumps(tree, indent=1) + "\n").encode())
    lines = [f"Made by `{tree['command']}` on {tree['environment']['cpu']}, torch {tree['environment']['torch']}.", ""]
    if "rows" in tree:
        about = (
            f"Whole network: {100 * tree['whole']:.2f} % of the test images. Mean and standard deviation over {len(SEEDS)} seeds "
            "of fine-tuning; before it, BN statistics are recalibrated."
        )
        lines += [about, "", "| row | MACs, M | before, % | after fine-tuning, % |", "|---|---:|---:|---:|"]
        for row in tree["rows"]:
            before, after = (f"{100 * row[w]['mean']:.2f} ± {100 * row[w]['std']:.2f}" for w in ("before", "after"))
            lines.append(f"| {row['row']} | {row['macs'] / 1e6:.3f} | {before} | {after} |")
    if "timing" in tree:
        seconds = tree["timing"]["seconds"]
        lines += ["", f"| {tree['timing']['trials']} trials by | seconds | beside one |", "|---|---:|---:|"]
        lines += [f"| {mode} | {s:.0f} | {s / next(iter(seconds.values())):.2f} |" for mode, s in seconds.items()]
    write_atomically(path.with_suffix(".md"), ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--data", help="resnet20: CIFAR-10 as class folders, or a .zip of them")
    parser.add_argument("--weights", help="resnet20: the trained weights as safetensors")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where all parts are kept")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--time", action="store_true", help="only measure wall times, on a quiet machine")
    for hidden in ("--timed", "--processes", "--worker"):
        parser.add_argument(hidden, type=str if hidden == "--timed" else int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.timed:
        timed(Work(chosen), chosen)
    elif chosen.time:
        measure(Work(chosen), chosen)
    else:
        compare(Work(chosen))
