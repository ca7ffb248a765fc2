"""Accuracy after every rung of the ladder of recovery, right after pruning, and of two ways to fine-tune.

    python benchmarks/recovery.py --cifar PATH_OF/cifar10_jpeg.zip --weights PATH_OF/resnet20_cifar10.safetensors
    python benchmarks/recovery.py --cifar ... --weights ... --train          # also fine-tuning against distillation
    python benchmarks/recovery.py --cats PATH_OF/cats_dogs.zip --train       # the VGG-style network and MobileNetV2, one seed

Compared, for every network, share of the MACs kept and criterion: removal alone; then, one on top of the other, compensation by
mean activations, least-squares reconstruction and batch-norm recalibration, none of which trains; beside them recalibration right
after removal. With --train, from the recalibrated network: plain fine-tuning and distillation, equal epochs in the same order.
ResNet-20 was adapted to the JPEGs for three epochs, once: seeds vary what comes after that (images measured on, points drawn,
order of training). 10,000 training images; accuracies on 5,000 test images, the same for every row; training in bfloat16 mixed
precision, everything else in float32. CIFAR-10 (JPEG) is never comparable with CIFAR-10. The command goes on where it was
stopped; parts are kept in benchmarks/results/recovery.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import prunus
from prunus.config import Recipe, RecoverConfig, load_recipe
from prunus.files import write_atomically
from prunus.graph import trace
from prunus.pipeline.images import load_images
from prunus.pipeline.ladder import Fall, Ladder
from prunus.pipeline.networks import Networks
from prunus.pipeline.result import environment
from prunus.pipeline.trainer import Compute, Trainer
from prunus.pipeline.transfer import train_head
from prunus.sources import make_loader
from prunus.surgery import SurgeryRecord, load, save
from prunus.training import evaluate

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "recovery.json"
RECIPES = HERE.parent / "src" / "prunus" / "recipes"
FREE = ("compensate", "reconstruct", "recalibrate")
EPOCHS = 3
LOSS = 0.1
"""Removal must have cost so much accuracy for shares of the loss to say anything."""
TEST_IMAGES = 5000
SAMPLE_BATCHES = 8  # 1,024 images of CIFAR-10, ten points of each


@dataclass(frozen=True)
class Subject:
    name: str
    recipe: str
    overrides: tuple[str, ...]
    keeps: tuple[float, ...]
    criteria: tuple[str, ...]
    seeds: tuple[int, ...]


SUBJECTS = (
    Subject("resnet20", "cifar_resnet20", ("data.train_limit=10000",), (0.5, 0.25), ("l1", "taylor"), (0, 1, 2)),
    Subject(
        "vgg",
        "cats_dogs",
        (
            f"model.source={HERE}/_vgg.py:vgg",
            *("data.image_size=64", "data.batch_size=64", "data.augment=crop-flip", "data.min_area=0.08"),
            *("train.epochs=30", "train.lr=0.05"),
            *("train.freeze_batch_norm=false", "recover.optimizer=sgd", "recover.lr=0.01", "recover.weight_decay=0.0005"),
        ),
        (0.5,),
        ("l1", "taylor"),
        (0,),
    ),
    Subject("mobilenet_v2", "cats_dogs", (), (0.5,), ("l1", "taylor"), (0,)),
)


class Bench:
    """One subject: its images, decoded once, and its trained network."""

    def __init__(self, subject: Subject, overrides: list[str], folder: Path) -> None:
        self.subject, self.folder = subject, folder
        tree: list[str] = [*subject.overrides, *overrides, "compute.threads=1", "compute.mixed_precision=bf16"]
        recipe = load_recipe(RECIPES / f"{subject.recipe}.toml", tree)
        if subject.name == "vgg":
            recipe = recipe.model_copy(
                update={
                    "transfer": None,
                    "model": recipe.model.model_copy(update={"weights": None, "source": f"{HERE}/_vgg.py:vgg"}),
                }
            )
        self.recipe = recipe
        self.data = load_images(recipe, at_least=2)
        self.examples = torch.stack([self.data.test[i][0] for i in range(2)])
        self.networks = Networks(recipe, self.data, self.examples)
        some = range(0, len(self.data.test), max(1, len(self.data.test) // TEST_IMAGES))
        pairs = [self.data.test[i] for i in some]
        self.test = TensorDataset(torch.stack([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs]))

    def base(self) -> nn.Module:
        file = self.folder / f"recovery-{self.subject.name}.prunus"
        if not file.exists():
            model, trainer = self.networks.build(), self.trainer(self.recipe)
            record = SurgeryRecord.nothing_removed(model)
            if self.recipe.transfer is not None:
                assert self.networks.head is not None
                train_head(model, self.networks.head, self.recipe.transfer, trainer)
            trainer.fit(model, self.recipe.train, f"recovery-{self.subject.name}-train")
            save(model, record, file)
        return load(file, self.networks.build(weights=False))

    def trainer(self, recipe: Recipe) -> Trainer:
        trainer = Trainer(recipe, self.data, self.folder / "checkpoints", resume=True)
        trainer.use(Compute(threads=1, channels_last=True))
        return trainer

    def accuracy(self, model: nn.Module) -> float:
        return evaluate(model, make_loader(self.test, batch_size=500, shuffle=False)).accuracy

    def part(self, keep: float, criterion: str, seed: int, old: Mapping[str, Any], train: bool) -> dict[str, Any]:
        """Accuracies and seconds of every rung that ``old`` lacks."""
        recipe = self.recipe.model_copy(update={"seed": seed})
        trainer, full = self.trainer(recipe), self.base()
        needs = criterion != "l1"
        result = prunus.prune(
            full,
            self.examples,
            prunus.Budget(macs=keep, tolerance=0.03),
            criterion,
            trainer.calibration(16, augment=True) if needs else None,
            allocator="global_per_cost" if needs else "uniform",
            verify=False,
        )
        found: dict[str, Any] = dict(old) or {
            "macs": result.after.macs / result.before.macs,
            "full": self.accuracy(full),
            "rungs": {"removal": {"accuracy": self.accuracy(result.model), "seconds": 0.0}},
        }
        rungs = found["rungs"]
        fall = Fall(lambda: full, lambda: full, SurgeryRecord.nothing_removed(full), lambda model: trace(model, self.examples))
        ladder = Ladder(trainer, recipe.recover.model_copy(update={"recalibrate_batches": 32, "sample_batches": SAMPLE_BATCHES}))
        alone = copy.deepcopy(result.model)
        begin = time.perf_counter()
        ladder.recalibrate(alone)
        _note(rungs, "recalibrate alone", begin, lambda: self.accuracy(alone))
        model, record = result.model, result.record
        for rung in FREE:
            begin = time.perf_counter()
            record, _ = ladder.climb(rung, model, record, fall, "", 0)
            _note(rungs, rung, begin, lambda: self.accuracy(model))
        for rung in ("fine-tune", "distill") if train else ():
            if rung in rungs:
                continue
            given = {**recipe.recover.model_dump(), "rungs": (rung,), "epochs": EPOCHS, "distill": 0.0, "warmup_epochs": 0.2}
            if rung == "distill":
                given |= {"distill": 0.9, "temperature": 4.0, "distill_features": 0.1}
            settings = RecoverConfig.model_validate(given)
            copied, own = copy.deepcopy(model), self.trainer(recipe.model_copy(update={"recover": settings}))
            begin = time.perf_counter()
            name = f"recovery-{self.subject.name}-{keep}-{criterion}-{seed}-{rung}"
            Ladder(own, settings).climb(rung, copied, record, fall, name, 0)
            _note(rungs, rung, begin, lambda copied=copied: self.accuracy(copied))
        return found


def _note(rungs: dict[str, Any], rung: str, begin: float, judge: Any) -> None:
    seconds = time.perf_counter() - begin
    if rung not in rungs:
        rungs[rung] = {"accuracy": judge(), "seconds": seconds}
        print(f"  {rung}: {rungs[rung]['accuracy']:.2%}, {seconds:.0f} s", flush=True)


def summary(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every network, share, criterion and rung: mean and standard deviation over the seeds."""
    cells: dict[tuple[str, ...], list[Any]] = {}
    for name, part in parts.items():
        subject, keep, criterion, _ = name.split("/")
        lost = part["full"] - part["rungs"]["removal"]["accuracy"]
        for rung, at in part["rungs"].items():
            back = (at["accuracy"] - part["rungs"]["removal"]["accuracy"]) / lost if lost >= LOSS else None
            cells.setdefault((subject, keep, criterion, rung), []).append((part["full"], at["accuracy"], back, at["seconds"]))
    rows: list[dict[str, Any]] = []
    for key, values in cells.items():
        full, accuracy, back, seconds = zip(*values, strict=True)
        known = [value for value in back if value is not None]
        rows.append(
            {
                **dict(zip(("network", "macs kept", "criterion", "rung"), key, strict=True)),
                "seeds": len(values),
                "full": statistics.mean(full),
                "accuracy": statistics.mean(accuracy),
                "std": statistics.stdev(accuracy) if len(values) > 1 else None,
                "recovered": statistics.mean(known) if known else None,
                "seconds": statistics.mean(seconds),
            }
        )
    return rows


def write(parts: Mapping[str, Any]) -> None:
    rows = summary(parts)
    tree = {"command": "python benchmarks/recovery.py", "environment": environment(), "rows": rows, "parts": parts}
    write_atomically(RESULTS, (json.dumps(tree, indent=1) + "\n").encode())
    head = ("network", "MACs kept", "criterion", "rung", "seeds", "accuracy, %", "of the loss, %", "seconds")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        spread = "" if r["std"] is None else f" ± {100 * r['std']:.1f}"
        back = "" if r["recovered"] is None else f"{100 * r['recovered']:.0f}"
        cells = (r["network"], r["macs kept"], r["criterion"], r["rung"], str(r["seeds"]), f"{100 * r['accuracy']:.1f}{spread}")
        lines.append("| " + " | ".join((*cells, back, f"{r['seconds']:.0f}")) + " |")
    fulls = ", ".join(f"{n} {100 * f:.1f} %" for n, f in dict.fromkeys((r["network"], r["full"]) for r in rows))
    about = [
        f"Accuracy after every rung of recovery (`{tree['command']}`), on {tree['environment']['cpu']}, one thread, other work "
        f"beside it: seconds are an upper bound. Unpruned: {fulls}.",
        "Compensation, reconstruction and recalibration stand on one another and train nothing; fine-tuning and distillation "
        f"both start behind them, {EPOCHS} epochs each, in bfloat16 mixed precision. *Of the loss*: share of the accuracy lost "
        f"by removal that is back, where that was {100 * LOSS:.0f} points at least.",
    ]
    write_atomically(RESULTS.with_suffix(".md"), ("\n\n".join(about) + "\n\n" + "\n".join(lines) + "\n").encode())


def main(chosen: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = json.loads(RESULTS.read_text())["parts"] if RESULTS.exists() else {}
    for subject in SUBJECTS:
        cifar = subject.name == "resnet20"
        data = chosen.cifar if cifar else chosen.cats
        if data is None or (chosen.only and subject.name not in chosen.only):
            continue
        overrides = [f"data.source={'cifar10' if cifar else 'folder'}:{data}"]
        bench = Bench(subject, [*overrides, f"model.weights={chosen.weights}"] if cifar else overrides, chosen.folder)
        for keep in subject.keeps:
            for seed in subject.seeds:
                for criterion in subject.criteria:
                    name = f"{subject.name}/{keep}/{criterion}/{seed}"
                    wanted = {"removal", "recalibrate alone", *FREE, *(("fine-tune", "distill") if chosen.train else ())}
                    if wanted <= parts.get(name, {"rungs": {}})["rungs"].keys():
                        continue
                    print(name, flush=True)
                    parts[name] = bench.part(keep, criterion, seed, parts.get(name, {}), chosen.train)
                    write(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", help="CIFAR-10 as JPEGs: a folder or a .zip of class folders")
    parser.add_argument("--weights", help="ResNet-20's trained weights as safetensors")
    parser.add_argument("--cats", help="cats and dogs: a folder or a .zip with train, validation and test")
    parser.add_argument("--only", nargs="*", help="networks: resnet20, vgg, mobilenet_v2")
    parser.add_argument("--train", action="store_true", help="also fine-tune and distill")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where trained networks and checkpoints are kept")
    main(parser.parse_args())
