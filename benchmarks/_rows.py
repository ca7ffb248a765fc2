"""Tables made of whole runs: every row is a recipe with a few fields changed, run with several seeds and kept when finished.

Rows of the same seed share their trained network: the stages before pruning are copied from the first row's run. A table that was
stopped goes on where it was. Work can be divided over processes (``--jobs``); what they print and how fast they train is then not
a timing, so latency is measured afterwards, for all networks in turn, by `measure`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.config import Recipe, load_recipe
from prunus.export import export_onnx, measure_latency, measure_onnx_latency
from prunus.files import write_atomically
from prunus.pipeline.images import load_images
from prunus.pipeline.networks import Networks
from prunus.pipeline.result import environment
from prunus.pipeline.run import EXAMPLES, run
from prunus.pipeline.stages import Stages, read_json
from prunus.pipeline.trainer import Compute, Trainer
from prunus.surgery import load

RESULTS = Path(__file__).parent / "results"
RECIPES = Path(__file__).parents[1] / "src" / "prunus" / "recipes"
SHARED_STAGES = ("compute", "transfer", "train")


_PHASE = {"sparse_gradients": 0.0, "first_layer_lr": 1.0, "ema": 0.0, "mixup": 0.0, "patience": None, "keep": "last"}
LATER: dict[str, dict[str, Any]] = {
    "data": {"worker_timeout": 600.0, "shuffle_buffer": None},
    "transfer": _PHASE,
    "train": _PHASE,
    "recover": _PHASE | {"rungs": ["recalibrate", "fine-tune"], "preset": None, "distill_features": 0.0, "sample_batches": 32},
    "prune": {
        "limits": {},
        "allocator_options": {},
        "momentum": 0.0,
        "pace": "geometric",
        "trial_images": 1000,
        "select_inputs": False,
    }
    | {"runtime": "eager", "whole_groups": False}
    | {"timing": {"threads": 1, "batch": 1, "dtype": "float32", "channels_last": False}},
    "compute": {"checkpoint_steps": None, "mixed_precision": "auto", "accumulation_steps": 1},
    "export": {"formats": None},
    "": {"sparsity": None, "log_with": None},
}
"""Fields that recipes got after the first tables were made, with their defaults."""


@dataclass(frozen=True)
class Row:
    """A row of a table: overrides of the recipe; or, with ``kind``, a network trained without pruning.

    ``longer``: the full network, trained as many epochs more as pruned ones are fine-tuned. ``scratch``: the network that the
    first row pruned, from random weights, with the training of ``train`` and ``recover`` together.
    """

    name: str
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    kind: str = "run"


@dataclass(frozen=True)
class Table:
    """A recipe, its rows, and where they are run."""

    name: str
    recipe: str
    rows: Sequence[Row]
    folder: Path
    overrides: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def recipe_of(self, row: Row, seed: int) -> Recipe:
        return load_recipe(RECIPES / f"{self.recipe}.toml", [*self.overrides, *row.overrides, f"seed={seed}"])

    def place(self, row: Row, seed: int) -> Path:
        return self.folder / f"{self.name}-{row.name}-{seed}"


def make(table: Table, jobs: int) -> None:
    """Run what isn't there yet, in the order of the rows, then write the table."""
    first = table.rows[0]
    write(table)
    rest = [(row, seed) for row in table.rows[1:] for seed in row.seeds if f"{row.name}/{seed}" not in finished(table)]
    # The other rows start from the first one's trained networks: those must be here, whatever the table holds.
    missing = [s for s in first.seeds if any(seed == s for _, seed in rest) and not (table.place(first, s) / "stages").exists()]
    _parallel(
        table, [(first, seed) for seed in first.seeds if seed in missing or f"{first.name}/{seed}" not in finished(table)], jobs
    )
    _parallel(table, rest, jobs)
    write(table)


def _parallel(table: Table, waiting: list[tuple[Row, int]], jobs: int) -> None:
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            row, seed = waiting.pop(0)
            running.append(subprocess.Popen([*sys.orig_argv, "--part", row.name, str(seed)]))
        running[0].wait()
        if any(process.returncode for process in running if process.poll() is not None):
            raise SystemExit("a part failed: its message is above; the same command goes on where this one stopped")
        running = [process for process in running if process.poll() is None]
        write(table)


def make_part(table: Table, name: str, seed: int) -> None:
    """One row with one seed."""
    row = next(r for r in table.rows if r.name == name)
    recipe, out = table.recipe_of(row, seed), table.place(row, seed)
    print(f"{table.name}: {name}, seed {seed}", flush=True)
    if row.kind != "run":
        _without_pruning(table, row, recipe, out)
        return
    first = table.place(table.rows[0], seed)
    if row is not table.rows[0] and not (out / "stages").exists():
        _share(first, out, recipe)
    run(recipe, out, resume=(out / "stages").exists(), announce=lambda stage: print(f"  {name} {seed}: {stage}", flush=True))


def _share(first: Path, out: Path, recipe: Recipe) -> None:
    own, other = recipe.model_dump(mode="json"), read_json(first / "recipe.json")
    differing = [
        part for part in ("seed", "model", "data", "transfer", "train", "functions", "compute") if own[part] != other[part]
    ]
    assert not differing, f"rows of one table differ in {differing}: their trained networks can't be shared"
    (out / "stages").mkdir(parents=True)
    for name in [f"{stage}.json" for stage in SHARED_STAGES] + ["transfer.prunus", "base.prunus"]:
        if (first / "stages" / name).exists():
            shutil.copy(first / "stages" / name, out / "stages" / name)
    (out / "recipe.json").write_text(json.dumps(own))


def _without_pruning(table: Table, row: Row, recipe: Recipe, out: Path) -> None:
    first = table.place(table.rows[0], recipe.seed)
    data = load_images(recipe, at_least=EXAMPLES)
    examples = torch.stack([data.test[i][0] for i in range(EXAMPLES)])
    stages = Stages(first, read_json(first / "recipe.json"), True, lambda _: None)
    trainer, networks = Trainer(recipe, data, out, resume=True), Networks(recipe, data, examples)
    chosen = json.loads(stages.file("compute.json").read_text())
    trainer.use(Compute(chosen["threads"], chosen["channels_last"]))
    settings = recipe.recover
    if row.kind == "longer":
        model, _ = networks.load(stages, "base")
    else:
        model, _ = networks.load(stages, "round-1-fine-tune")
        torch.manual_seed(recipe.seed)
        model.apply(_reset)
        settings = settings.model_copy(update={"epochs": settings.epochs + recipe.train.epochs, "steps": None})
    epochs = trainer.fit(model, settings, row.kind)
    judged = trainer.evaluate(model, row.kind)
    before = json.loads((first / "result.json").read_text())
    network = before["networks"]["before" if row.kind == "longer" else "after"]
    found = {
        "recipe": recipe.model_dump(mode="json"),
        "stages": [next(s for s in before["stages"] if s["stage"] == "before pruning"), judged],
        "networks": {"after": network},
        "training": {row.kind: epochs},
    }
    write_atomically(out / "result.json", json.dumps(found).encode())


def _reset(module: nn.Module) -> None:
    reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()


def write(table: Table) -> None:
    """The table so far under benchmarks/results: figures of every finished part, and of every row over its seeds."""
    path = RESULTS / f"{table.name}.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    parts = dict(old.get("parts", {}))
    for row in table.rows:
        for seed in row.seeds:
            if (found := table.place(row, seed) / "result.json").exists():
                result = json.loads(found.read_text())
                parts[f"{row.name}/{seed}"] = {"recipe": _fingerprint(result["recipe"]), **_figures(result)}
    wanted = _wanted(table)
    parts = {name: part for name, part in parts.items() if part["recipe"] == wanted.get(name)}
    if not parts:  # a table of which no row is finished
        return
    rows = [found for row in table.rows if (found := _summary(row, parts))]
    command = f"python benchmarks/{table.name}.py"
    _store(
        path, {"command": command, "environment": environment(), **table.extra, "rows": rows, "parts": parts, **kept_latency(old)}
    )


def finished(table: Table) -> set[str]:
    """Parts whose figures the table holds; their runs may be gone."""
    path = RESULTS / f"{table.name}.json"
    parts = json.loads(path.read_text()).get("parts", {}) if path.exists() else {}
    wanted = _wanted(table)
    return {name for name, part in parts.items() if part["recipe"] == wanted.get(name)}


def _wanted(table: Table) -> dict[str, str]:
    """The fingerprint of every part's recipe: figures of a recipe that was changed since don't count."""
    parts = ((row, seed) for row in table.rows for seed in row.seeds)
    return {f"{row.name}/{seed}": _fingerprint(table.recipe_of(row, seed).model_dump(mode="json")) for row, seed in parts}


def _fingerprint(recipe: dict[str, Any]) -> str:
    """A short hash of a recipe, wherever its files lie, and whichever fields came later: figures from before are of defaults."""
    recipe = {
        section: {key: value for key, value in fields.items() if LATER.get(section, {}).get(key, ...) != value}
        if isinstance(fields, dict)
        else fields
        for section, fields in recipe.items()
        if LATER[""].get(section, ...) != fields
    }
    placeless = {**recipe, "data": {**recipe["data"], "source": ""}, "model": {**recipe["model"], "weights": ""}}
    return hashlib.sha256(json.dumps(placeless, sort_keys=True).encode()).hexdigest()[:12]


def kept_latency(old: Mapping[str, Any]) -> dict[str, Any]:
    """Latencies of an older tree with the machine they were taken on: figures made anew don't void them."""
    return {name: old[name] for name in ("latency", "latency_environment") if name in old}


def _store(path: Path, tree: dict[str, Any]) -> None:
    """The figures as JSON and, beside it, as a table to read."""
    write_atomically(path, (json.dumps(tree, indent=1) + "\n").encode())
    head = [
        "row",
        "seeds",
        "test accuracy, %",
        "balanced, %",
        "MACs, M",
        "parameters, M",
        *(f"ms, {k}" for k in tree.get("latency", {})),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    first = tree["rows"][0]
    for found in [{**first, "row": "before pruning", "before": True}, *tree["rows"]]:
        suffix = "_before" if "before" in found else ""
        cells = [
            found["row"],
            str(len(found["seeds"])),
            *(_cell(found.get(f"{n}{suffix}"), 100) for n in ("test_accuracy", "balanced_accuracy")),
        ]
        cells += [_cell(found.get(f"{n}{suffix}"), 1e-6, spread=False) for n in ("macs", "parameters")]
        name = "full" if suffix or found["row"] == "longer" else found["row"]
        cells += [f"{times[name]['median_ms']:.1f}" if name in times else "" for times in tree.get("latency", {}).values()]
        lines.append("| " + " | ".join(cells) + " |")
    about = f"Made by `{tree['command']}` on {tree['environment']['cpu']}, torch {tree['environment']['torch']}."
    spread = "Mean and standard deviation over the seeds, last epoch."
    write_atomically(path.with_suffix(".md"), ("\n".join([about, spread, "", *lines]) + "\n").encode())


def _cell(figure: dict[str, Any] | None, scale: float, *, spread: bool = True) -> str:
    if figure is None:
        return ""
    mean = f"{figure['mean'] * scale:.2f}"
    return f"{mean} ± {figure['std'] * scale:.2f}" if spread and "std" in figure else mean


def _summary(row: Row, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    seeds = [seed for seed in row.seeds if f"{row.name}/{seed}" in parts]
    if not seeds:
        return None
    found: dict[str, Any] = {"row": row.name, "overrides": list(row.overrides), "seeds": seeds}
    for name in _FIGURES:
        values = [value for seed in seeds if (value := parts[f"{row.name}/{seed}"][name]) is not None]
        if values:
            found[name] = {"values": values, "mean": statistics.mean(values)}
            found[name] |= {"std": statistics.stdev(values)} if len(values) > 1 else {}
    return found


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    return {name: pick(result) for name, pick in _FIGURES.items()}


_FIGURES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "test_accuracy_before": lambda r: next(
        s["accuracy"] for s in r["stages"] if s["stage"] in ("before pruning", "longer", "scratch")
    ),
    "test_accuracy": lambda r: r["stages"][-1]["accuracy"],
    "balanced_accuracy_before": lambda r: next((s for s in r["stages"] if s["stage"] == "before pruning"), {}).get(
        "balanced_accuracy"
    ),
    "balanced_accuracy": lambda r: r["stages"][-1].get("balanced_accuracy"),
    "macs": lambda r: r["networks"]["after"]["macs"],
    "parameters": lambda r: r["networks"]["after"]["parameters"],
    "macs_before": lambda r: r["networks"].get("before", {}).get("macs"),
    "last_epoch_validation_accuracy": lambda r: (list(r["training"].values())[-1] or [{"accuracy": None}])[-1]["accuracy"],
    "rounds": lambda r: len(r.get("rounds", [])) - 1 if r.get("rounds") else None,
    "parameters_before": lambda r: r["networks"].get("before", {}).get("parameters"),
}


def measure(table: Table, runs: int) -> None:
    """Latency of every row's first network and of the full one, alternating in one process; run it on a quiet machine."""
    path = RESULTS / f"{table.name}.json"
    tree = json.loads(path.read_text())
    one, models = _networks(table)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in models}
        for name, file in files.items():
            export_onnx(models[name], one, file)
        found = {
            **{f"eager, threads={n}": measure_latency(models, one, runs=runs, threads=n) for n in (1, 2)},
            **{f"onnxruntime, threads={n}": measure_onnx_latency(files, one, runs=runs, threads=n) for n in (1, 2)},
        }
    tree["latency"] = {
        case: {name: {"median_ms": times.median_ms, "runtime": times.runtime} for name, times in times_of.items()}
        for case, times_of in found.items()
    }
    tree["latency_environment"] = environment()
    _store(path, tree)


def _networks(table: Table) -> tuple[Tensor, dict[str, nn.Module]]:
    """One image, and the small network of every row that has one, after the full one."""
    models: dict[str, nn.Module] = {}
    one = torch.empty(0)
    for row in table.rows:
        out = table.place(row, row.seeds[0])
        if row.kind != "run" or not (out / "small.prunus").exists():
            continue
        recipe = table.recipe_of(row, row.seeds[0])
        data = load_images(recipe, at_least=EXAMPLES)
        one = data.test[0][0][None]
        networks = Networks(recipe, data, torch.stack([data.test[i][0] for i in range(EXAMPLES)]))
        if not models:
            stages = Stages(out, read_json(out / "recipe.json"), True, lambda _: None)
            models["full"] = networks.load(stages, "base")[0].eval()
        models[row.name] = load(out / "small.prunus", networks.build(weights=False)).eval()
    return one, models


def main(table: Callable[[argparse.Namespace], Table], arguments: argparse.ArgumentParser) -> None:
    """The command line that all tables share."""
    arguments.add_argument("--jobs", type=int, default=1, help="rows that run at the same time")
    arguments.add_argument("--part", nargs=2, metavar=("ROW", "SEED"), help="run one row with one seed")
    arguments.add_argument("--measure", action="store_true", help="only measure latencies of finished rows, on a quiet machine")
    chosen = arguments.parse_args()
    made = table(chosen)
    if chosen.part:
        make_part(made, chosen.part[0], int(chosen.part[1]))
    elif chosen.measure:
        measure(made, runs=100)
    else:
        make(made, chosen.jobs)
