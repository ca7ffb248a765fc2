"""`recover`: a network that is pruned already climbs the ladder of recovery, beside the network that it was made from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.config import Recipe
from prunus.errors import ArtifactError
from prunus.graph import trace
from prunus.pipeline.images import load_images
from prunus.pipeline.ladder import TITLES, Fall, Ladder, judged_title, rung_rows
from prunus.pipeline.networks import Networks
from prunus.pipeline.result import environment
from prunus.pipeline.stages import Stages, write_json
from prunus.pipeline.trainer import Compute, Trainer
from prunus.report.ladder import write_recovery
from prunus.surgery import SurgeryRecord, load, save
from prunus.surgery.artifact import read_record
from prunus.types import ChannelGraph

EXAMPLES = 2


def recover(
    recipe: Recipe,
    pruned: Path,
    out: Path,
    *,
    full: Path | None = None,
    resume: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Climb ``recipe.recover`` with the network in the file ``pruned``, in the folder ``out``; returns its JSON.

    The folder gets ``recovered.prunus`` (for `prunus.load`), ``recovery.json``, ``recovery.html`` and the stages' own files. Of
    the recipe, the sections model, data, recover, functions, compute and the seed count.

    Args:
        full: the unpruned network as Prunus saved it (``stages/base.prunus`` of a run), where its weights aren't those of
            ``recipe.model``.

    Raises:
        ArtifactError: a file can't be read, or is of another network.
        PrunusError: what a rung raises; finished rungs stay.
    """
    threads = torch.get_num_threads()
    try:
        return _Recovery(recipe, pruned, out, full, resume, announce).execute()
    finally:
        torch.set_num_threads(threads)


class _Recovery:
    def __init__(
        self, recipe: Recipe, pruned: Path, out: Path, full: Path | None, resume: bool, announce: Callable[[str], None]
    ) -> None:
        self.recipe, self.pruned, self.out, self.full_file = recipe, pruned, out, full
        self.data = load_images(recipe, at_least=EXAMPLES)
        self.examples = torch.stack([self.data.test[i][0] for i in range(EXAMPLES)])
        self.networks = Networks(recipe, self.data, self.examples)
        self.trainer = Trainer(recipe, self.data, out / "checkpoints", resume)
        load(pruned, self.networks.build(weights=False))  # fails now, not after the folder is there
        identity = {"recipe": recipe.model_dump(mode="json"), "pruned": _digest(pruned), "full": full and _digest(full)}
        self.stages = Stages(out, identity, resume, announce)
        self.results: dict[str, dict[str, Any]] = {}

    def execute(self) -> dict[str, Any]:
        (self.out / "checkpoints").mkdir(exist_ok=True)
        self.results["compute"] = self.stages.run("compute", lambda: self.trainer.choose_compute(self._full))
        chosen = self.results["compute"]
        self.trainer.use(Compute(chosen["threads"], chosen["channels_last"]))
        self._do("full", lambda: {"evaluation": self.trainer.evaluate(self._full(), "unpruned")})
        self._do("as-pruned", lambda: {"evaluation": self.trainer.evaluate(self._load(self.pruned)[0], "as pruned")})
        latest = self.pruned
        for rung in self.recipe.recover.rungs:
            before, file = latest, self.stages.file(f"{rung}.prunus")
            self._do(rung, lambda rung=rung, before=before, file=file: self._climb(rung, before, file), file.name)
            latest = file
        model, record = self._load(latest)
        save(model, record, self.out / "recovered.prunus")
        result = self._result()
        write_json(self.out / "recovery.json", result)
        write_recovery(result, self.out / "recovery.html")
        return result

    def _climb(self, rung: str, before: Path, leaves: Path) -> dict[str, Any]:
        model, record = self._load(before)
        full = self._full()
        fall = Fall(lambda: full, lambda: full, SurgeryRecord.nothing_removed(full), self._trace)
        record, found = Ladder(self.trainer, self.recipe.recover).climb(rung, model, record, fall, rung, 0)
        title = judged_title(f"after {TITLES[rung]}", found.get("epochs", []))
        found["evaluation"] = self.trainer.evaluate(model, title)
        save(model, record, leaves)
        return found

    def _do(self, name: str, work: Callable[[], dict[str, Any]], *leaves: str) -> None:
        begin = time.perf_counter()
        self.results[name] = self.stages.run(name, lambda: {**work(), "seconds": time.perf_counter() - begin}, leaves)

    def _load(self, file: Path) -> tuple[nn.Module, SurgeryRecord]:
        return load(file, self.networks.build(weights=False)), read_record(file)

    def _full(self) -> nn.Module:
        return self.networks.build() if self.full_file is None else load(self.full_file, self.networks.build(weights=False))

    def _trace(self, model: nn.Module) -> ChannelGraph:
        asked = self.recipe.prune
        return trace(model, self.examples, asked.keep, asked.mixing, self.trainer.forward_fn, whole_groups=asked.whole_groups)

    def _result(self) -> dict[str, Any]:
        rungs = {TITLES.get(name, "nothing: as given"): r for name, r in self.results.items() if name not in ("compute", "full")}
        recipe = self.recipe
        request = {"model": recipe.model.source, "weights": recipe.model.weights, "pruned": str(self.pruned)}
        request |= {"data": recipe.data.source, "rungs": ", ".join(recipe.recover.rungs), "seed": recipe.seed}
        machine = environment()
        return {
            "prunus": machine["prunus"],
            "request": request,
            "full": self.results["full"]["evaluation"],
            "stages": [r["evaluation"] for r in self.results.values() if "evaluation" in r],
            "ladder": rung_rows(rungs),
            "training": {TITLES[name]: r["epochs"] for name, r in self.results.items() if r.get("epochs")},
            "warnings": [w for r in self.results.values() for w in r["warnings"]],
            "notes": list(self.data.notes),
            "environment": machine,
            "recipe": recipe.model_dump(mode="json"),
            "files": ["recovered.prunus", "recovery.json", "recovery.html"],
        }


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(f"{file} can't be read: {error.strerror or error}") from None
