"""The units that a laboratory of tickets is made of: each is computed in one process, its parts kept in files of their own."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from prunus.errors import ArtifactError
from prunus.laboratory.pruned_runs import PrunedRun
from prunus.pipeline.stages import read_json, write_checked
from prunus.ticket_recipe import TicketNetwork, TicketRecipe
from prunus.tickets import KEPT_ACTIONS, MASK_CRITERIA, PRUNED_ACTIONS
from prunus.tickets.actions import KEEP_SIGN

RETHINKING_RUN = "rethinking-run"
"""Kind of the jobs that take up a pruned run."""
FRESH = 1_000_003
"""Added to a seed for the weights of networks that are drawn afresh."""


@dataclass(frozen=True, eq=False)
class Job:
    """One cell of a section's grid on one network and seed.

    ``cell`` is what its results depend on beside the network; ``parts`` what is asked of it, which may grow later. Of a pruned
    run, ``name`` is the folder, and ``network`` says only which network and images it had.
    """

    kind: str
    name: str
    network: TicketNetwork
    seed: int
    cell: Mapping[str, Any]
    parts: Mapping[str, Any]

    @property
    def stem(self) -> str:
        """Name of its folder; another setting has another folder, so that nothing is mixed up."""
        about = json.dumps([self.network.model_dump(mode="json"), dict(self.cell)], sort_keys=True)
        return f"{self.kind}-{Path(self.name).name}-seed{self.seed}-{zlib.crc32(about.encode()):08x}"

    def __str__(self) -> str:
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.cell.items() if not isinstance(value, dict))
        return f"{self.kind}, {self.name}, seed {self.seed}, {told}"


class Parts:
    """The finished parts of one job, files in its folder; ``seconds`` of one core that all of them took, whenever that was."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds, self._within = folder, 0.0, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"can't make the folder {folder}: {error.strerror or error}") from error

    def file(self, name: str) -> Path:
        """Path of a file that parts leave for one another."""
        return self.folder / name

    def run(self, name: str, work: Callable[[], dict[str, Any]], leaves: tuple[str, ...] = ()) -> dict[str, Any]:
        """The result of ``work``, or of the earlier run that finished it and whose files (``leaves``) are still there."""
        path = self.file(f"{name}.json")
        if path.exists() and all(self.file(one).exists() for one in leaves):
            result = read_json(path)
        else:
            begin = time.process_time()
            self._within += 1
            result = work()
            self._within -= 1
            result["core_seconds"] = time.process_time() - begin
            write_checked(path, result)
        if not self._within:  # a part within another is in its seconds already
            self.seconds += result["core_seconds"]
        return result


def jobs_of(recipe: TicketRecipe) -> list[Job]:
    """All jobs of a recipe: first every seed's longest, so that processes end together."""
    found = [*_rethinking(recipe), *_lottery(recipe), *_deconstruction(recipe), *_supermasks(recipe)]
    jobs = [
        Job(kind, name, recipe.networks[name], seed, cell, parts)
        for kind, names, cell, parts in found
        for name in names
        for seed in recipe.seeds
    ]
    return [*_rethinking_of_runs(recipe), *jobs]


_Cells = list[tuple[str, tuple[str, ...], dict[str, Any], dict[str, Any]]]


def _lottery(recipe: TicketRecipe) -> _Cells:
    asked = recipe.lottery
    if asked is None:
        return []
    fixed = {"rates": asked.rates, "controls": list(asked.controls), "early": asked.early}
    return [
        (
            "lottery",
            asked.networks,
            {"scope": scope, "schedule": schedule, "rewind_step": step, **fixed},
            {"rounds": asked.rounds},
        )
        for scope, schedule, step in product(asked.scopes, asked.schedules, asked.rewind_steps)
    ]


def _deconstruction(recipe: TicketRecipe) -> _Cells:
    asked = recipe.deconstruction
    if asked is None:
        return []
    signed = [f"{name}{KEEP_SIGN}" for name in KEPT_ACTIONS if name != "rewind"]
    every = {"criteria": [*MASK_CRITERIA], "kept_actions": [*KEPT_ACTIONS, *signed], "pruned_actions": [*PRUNED_ACTIONS]}
    parts = {name: known if getattr(asked, name) == "all" else list(getattr(asked, name)) for name, known in every.items()}
    cells: list[dict[str, Any]] = []
    for schedule, kept in product(asked.schedules, asked.kept):
        cells.append({"kept": kept, "schedule": schedule, **({"rate": asked.rate} if schedule == "iterative" else {})})
    return [("deconstruction", asked.networks, cell, parts) for cell in cells]


def _supermasks(recipe: TicketRecipe) -> _Cells:
    asked = recipe.supermasks
    if asked is None:
        return []
    fixed = asked.model_dump(include={"epochs", "batch_size", "lr", "samples"})
    return [
        ("supermasks", asked.networks, {"rescale": rescale, "signed_constant": constant, **fixed}, {})
        for rescale, constant in product(asked.rescale, asked.signed_constant)
    ]


def _rethinking(recipe: TicketRecipe) -> _Cells:
    asked = recipe.rethinking
    if asked is None:
        return []
    fixed = asked.model_dump(include={"channels", "criterion", "fine_tune_epochs", "fine_tune_lr"})
    return [("rethinking", asked.networks, {"lr": lr, **fixed}, {}) for lr in asked.lrs]


def _rethinking_of_runs(recipe: TicketRecipe) -> list[Job]:
    asked = recipe.rethinking
    if asked is None:
        return []
    fixed = asked.model_dump(include={"fine_tune_epochs", "fine_tune_lr"})
    found: list[Job] = []
    for folder in asked.runs:
        run = PrunedRun.read(Path(folder))
        network = TicketNetwork.model_validate({"model": run.recipe.model.source, "data": run.recipe.data.source})
        about = {"channels": run.channels, "criterion": run.criterion, "epochs": run.epochs(asked.epochs), "file": run.digest}
        found += [
            Job(RETHINKING_RUN, folder, network, seed, {"lr": lr, **fixed, **about}, {})
            for lr, seed in product(asked.lrs, recipe.seeds)
        ]
    return found
