"""How a row of a head to head makes its network small, and one part of a table: a row at a ratio with a seed."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import prunus
from prunus.config import Recipe, RecoverConfig, SparsityConfig, load_recipe
from prunus.graph import trace
from prunus.pipeline.images import load_images
from prunus.pipeline.ladder import Fall, Ladder
from prunus.pipeline.networks import Networks
from prunus.pipeline.sparsity import Decided, recalled_plan, train_sparse
from prunus.pipeline.trainer import Compute, Trainer
from prunus.pipeline.transfer import train_head
from prunus.recipe_text import read_toml
from prunus.surgery import SurgeryRecord, load, save
from prunus.training_hooks import SparsityTask

RECIPES = Path(__file__).parents[1] / "src" / "prunus" / "recipes"
TOLERANCE = 0.01
"""MACs of all rows of a ratio are equal within this, or the row says that they aren't."""
DISTILLATION = {"distill": 0.9, "temperature": 4.0}


@dataclass(frozen=True)
class Row:
    """See head_to_head.toml."""

    name: str
    by: str
    way: str
    allocator: str = "global"
    options: Mapping[str, Any] = field(default_factory=dict)
    rungs: tuple[str, ...] = ("recalibrate", "fine-tune")
    sparse: float = 0.0
    across_layers: bool = False
    isomorphic: bool = False


@dataclass(frozen=True)
class Table:
    """See head_to_head.toml."""

    name: str
    recipe: str
    rows: tuple[str, ...]
    ratios: tuple[int, ...]
    seeds: tuple[int, ...]
    epochs: int
    ignored: tuple[str, ...]
    scratch_of: str
    data: Mapping[str, str]
    set: tuple[str, ...] = ()
    model: str | None = None
    sparse_lr: float = 0.01
    scratch_lr: float = 0.05

    def recipe_of(self, seed: int, places: Mapping[str, str], more: tuple[str, ...] = ()) -> Recipe:
        """The recipe with what the table, the command line and the seed say; ``places``: name of data -> path."""
        told = [self.data[name].format(path) for name, path in places.items()]
        recipe = load_recipe(RECIPES / f"{self.recipe}.toml", [*self.set, *told, "compute.threads=1", *more, f"seed={seed}"])
        if self.model is None:
            return recipe
        own = recipe.model.model_copy(update={"weights": None, "source": self.model})
        return recipe.model_copy(update={"transfer": None, "model": own})


class Part:
    """One row at one ratio with one seed, behind the trained network of its seed, which all rows share."""

    def __init__(self, table: Table, row: Row, ratio: int, recipe: Recipe, folder: Path) -> None:
        self.table, self.row, self.ratio, self.recipe, self.folder = table, row, ratio, recipe, folder
        self.name = f"{row.name}-{ratio}x-{recipe.seed}"
        self.data = load_images(recipe, at_least=2)
        self.examples = torch.stack([self.data.test[i][0] for i in range(2)])
        self.networks = Networks(recipe, self.data, self.examples)

    def trainer(self, recipe: Recipe) -> Trainer:
        """Checkpoints of an earlier try are no part of this one."""
        place = self.folder / "checkpoints" / self.name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        trainer = Trainer(recipe, self.data, place, resume=False)
        trainer.use(Compute(threads=1, channels_last=recipe.compute.channels_last is True))
        return trainer

    def base(self) -> nn.Module:
        """The trained network of this seed: from its file, or trained and kept."""
        file = self.folder / f"base-{self.recipe.seed}.prunus"
        if not file.exists():
            model, trainer = self.networks.build(), self.trainer(self.recipe)
            if self.recipe.transfer is not None:
                assert self.networks.head is not None
                train_head(model, self.networks.head, self.recipe.transfer, trainer)
            trainer.fit(model, self.recipe.train, "base")
            save(model, SurgeryRecord.nothing_removed(model), file)
        return load(file, self.networks.build(weights=False)).eval()

    def made(self) -> dict[str, Any]:
        """Figures of the part; its network is kept beside them."""
        full = self.base()
        macs, base = prunus.trace(full, self.examples).cost().macs, digest(full)
        begin = time.perf_counter()
        small, record, epochs = self._small(full, macs)
        pruning = time.perf_counter() - begin
        before = None if self.row.way.startswith("scratch") else self.trainer(self.recipe).evaluate(small, self.name)["accuracy"]
        settings = self._recovery(epochs)
        trainer = self.trainer(self.recipe.model_copy(update={"recover": settings}))
        fall = Fall(lambda: full, lambda: full, SurgeryRecord.nothing_removed(full), lambda model: trace(model, self.examples))
        begin, told = time.perf_counter(), list[Any]()
        for rung in settings.rungs:
            record, found = Ladder(trainer, settings).climb(rung, small, record, fall, self.name, 1)
            told = found.get("epochs", told)
        seconds = time.perf_counter() - begin
        cost = prunus.trace(small.eval(), self.examples).cost()
        save_file({k: v.contiguous() for k, v in small.state_dict().items()}, self.folder / f"{self.name}.safetensors")
        shutil.rmtree(self.folder / "checkpoints" / self.name, ignore_errors=True)
        return {
            "before": before,
            "after": trainer.evaluate(small, self.name)["accuracy"],
            "validation": told[-1]["accuracy"],
            "macs": cost.macs,
            "macs_kept": cost.macs / macs,
            "parameters": cost.parameters,
            "epochs": epochs,
            "base": base,
            "seconds": {"pruning": pruning, "recovery": seconds},
        }

    def _recovery(self, epochs: int) -> RecoverConfig:
        rungs = ("fine-tune",) if self.row.by == "control" else self.row.rungs
        given = {**self.recipe.recover.model_dump(), "rungs": rungs, "epochs": epochs, "steps": None, "distill": 0.0}
        if self.row.way.startswith("scratch"):
            given |= {"lr": self.table.scratch_lr, "optimizer": "sgd", "weight_decay": 5e-4}
        if "distill" in rungs:  # feature maps need a record of what went, which torch-pruning doesn't give
            given |= {**DISTILLATION, "distill_features": 0.1 if self.row.by == "prunus" else 0.0}
        return RecoverConfig.model_validate(given)

    def _small(self, full: nn.Module, macs: int) -> tuple[nn.Module, SurgeryRecord, int]:
        """The network before recovery, its record, and how many epochs of the budget are left for recovery."""
        epochs, sparse = self.table.epochs, round(self.row.sparse * self.table.epochs)
        if self.row.by == "control":
            return self._control(full, macs)
        if self.row.by == "torch-pruning":
            small = self._by_peer(full, macs, sparse)
            return small, SurgeryRecord.nothing_removed(small), epochs - sparse
        small, record = self._sparsely(full, sparse) if sparse else self._by_criterion(full)
        return small, record, epochs - sparse

    def _budget(self) -> prunus.Budget:
        limits = self.recipe.prune
        return prunus.Budget(macs=1 / self.ratio, tolerance=max(TOLERANCE, limits.tolerance), multiple_of=limits.multiple_of)

    def _batches(self) -> list[Any]:
        return self.trainer(self.recipe).calibration(self.recipe.prune.batches or 16, augment=True)

    def _by_criterion(self, full: nn.Module) -> tuple[nn.Module, SurgeryRecord]:
        data = self._batches() if prunus.CRITERIA[self.row.way].needs else None
        given = {**self.row.options, "allocator": self.row.allocator, "seed": self.recipe.seed}
        result = prunus.prune(full, self.examples, self._budget(), self.row.way, data, **given)
        return result.model, result.record

    def _sparse_recipe(self, epochs: int, method: str, **more: float) -> Recipe:
        given = {"epochs": epochs, "lr": self.table.sparse_lr, "warmup_epochs": 0.2, **more}
        sparsity = SparsityConfig.model_validate({"method": method, "preset": "short", **given})
        return self.recipe.model_copy(update={"sparsity": sparsity})

    def _sparsely(self, full: nn.Module, epochs: int) -> tuple[nn.Module, SurgeryRecord]:
        recipe, graph = self._sparse_recipe(epochs, self.row.way), prunus.trace(full, self.examples)
        trainer, task = self.trainer(recipe), SparsityTask(self._budget(), self.examples, recipe.seed)
        copied = load(self.folder / f"base-{recipe.seed}.prunus", self.networks.build(weights=False))
        trained, told = train_sparse(recipe, trainer, copied, graph, task, 1)
        plan = recalled_plan(told["plan"], graph)
        decided = Decided(plan, self.row.way)
        batches = trainer.calibration(8)
        result = prunus.prune(trained, self.examples, self._budget(), decided, batches, allocator=decided, compensate="mean")
        return result.model, result.record

    def _by_peer(self, full: nn.Module, macs: int, epochs: int) -> nn.Module:
        from _peer_pruning import PeerTraining, pruned

        target, limits = macs // self.ratio, self.recipe.prune
        model = full
        if epochs:
            recipe = self._sparse_recipe(epochs, "slimming", weight_decay=0.0)  # its schedule; the method is the peer's
            model = load(self.folder / f"base-{recipe.seed}.prunus", self.networks.build(weights=False))
            method = PeerTraining(self.row.way, self.table.ignored)
            task = SparsityTask(self._budget(), self.examples, recipe.seed)
            method.prepare(model, prunus.trace(model, self.examples), task)
            assert recipe.sparsity is not None
            self.trainer(recipe).fit(model, recipe.sparsity, "sparse", 0, method=method)
            model = method.finish().eval()
        options = {"global_pruning": self.row.across_layers, "isomorphic": self.row.isomorphic}
        options["round_to"] = limits.multiple_of if isinstance(limits.multiple_of, int) and limits.multiple_of > 1 else None
        return pruned(model, self.examples, self.row.way, target, self.table.ignored, self._batches(), **options)

    def _control(self, full: nn.Module, macs: int) -> tuple[nn.Module, SurgeryRecord, int]:
        if self.row.way == "longer":
            return full, SurgeryRecord.nothing_removed(full), self.table.epochs
        file = self.folder / f"{self.table.scratch_of}-{self.ratio}x-{self.recipe.seed}.safetensors"
        small = shaped(self.networks.build(weights=False), file)
        torch.manual_seed(self.recipe.seed)
        for module in small.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()
        epochs = self.recipe.train.epochs + self.table.epochs
        if self.row.way == "scratch-b":  # as much computation as the full network would take for as many epochs
            epochs = round(epochs * macs / prunus.trace(small.eval(), self.examples).cost().macs)
        return small, SurgeryRecord.nothing_removed(small), epochs


def digest(model: nn.Module) -> str:
    """Twelve digits that tell trained networks apart: parts of a seed made on different days should stand on the same one."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def shaped(model: nn.Module, file: Path) -> nn.Module:
    """``model`` with the weights of a file, its layers as narrow as these are; layers get a bias where the file has one."""
    state = load_file(file)
    for name, module in model.named_modules():
        for key in ("weight", "bias", "running_mean", "running_var"):
            value = state.get(f"{name}.{key}")
            if value is None:
                continue
            if key in module._parameters:
                setattr(module, key, nn.Parameter(value))
            else:
                setattr(module, key, value)
        weight = state.get(f"{name}.weight")
        if isinstance(module, nn.Conv2d) and weight is not None:
            depthwise = module.groups > 1
            module.out_channels, module.groups = len(weight), len(weight) if depthwise else 1
            module.in_channels = weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear) and weight is not None:
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, nn.BatchNorm2d) and weight is not None:
            module.num_features = len(weight)
    model.load_state_dict(state)
    return model.eval()


def read_tables(path: Path) -> tuple[dict[str, Table], dict[str, Row]]:
    """Tables and rows of head_to_head.toml by name."""
    tree = read_toml(path)
    tables = {name: Table(name=name, **_tuples(about)) for name, about in tree["tables"].items()}
    return tables, {name: Row(name=name, **_tuples(about)) for name, about in tree["rows"].items()}


def _tuples(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in about.items()}
