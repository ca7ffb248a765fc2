"""`scan_network`: how much every group of a network bears on images that aren't its test images; every point is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunus.allocation.sensitivity import (
    A_POINT,
    SHARES,
    WHOLE,
    SensitivityPoint,
    largest_shares,
    read_points,
    scan,
    scan_plans,
)
from prunus.laboratory.settings import Subject
from prunus.laboratory.workbench import Workbench, WorkbenchSettings, check_subject
from prunus.pipeline.networks import digest
from prunus.pipeline.result import environment
from prunus.pipeline.stages import Stages, read_json, write_checked, write_json
from prunus.report.sensitivity import write_sensitivity
from prunus.training import evaluate
from prunus.types import ChannelGraph, PruningPlan, Scores


@dataclass(frozen=True)
class ScanSettings(WorkbenchSettings):
    """How a scan is made: as `WorkbenchSettings` say, without ``shares`` of each group's channels."""

    shares: tuple[float, ...] = SHARES

    def of_points(self) -> dict[str, Any]:
        """What the accuracy of a point depends on: all but the shares, each of which is a point of its own."""
        return {name: value for name, value in self.to_json().items() if name != "shares"}


def scan_network(
    subject: Subject,
    out: Path,
    settings: ScanSettings = ScanSettings(),
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Scan the sensitivity of every group (Li et al. 2016); returns what ``sensitivity.json`` in ``out`` holds.

    Channels are really removed, every removal is verified, nothing is trained. Every point is kept in ``out`` when it is
    finished: the same call goes on where a stopped one ended, with the same result, and shares can be added. The test images
    are never looked at: where the validation images are the test images, training images are taken, and a note says so.
    ``announce`` is told what is being evaluated. The file serves the allocator ``sensitivity`` as its option ``points``.
    Several processes (torchrun) share the images of every evaluation; the first one writes.

    Raises:
        RecipeError: ``out`` holds a scan of something else or with other settings; no such split.
        NothingPruned: every group is frozen, or too narrow for these shares.
        PrunusError: what tracing, scoring, removal or the images raise.
    """
    check_subject(subject, settings)
    recipe = json.loads(json.dumps({"subject": dict(subject.about), "settings": settings.of_points()}, default=str))
    work = _Scan(subject, settings, Stages(out, recipe, True, lambda _: None), announce)
    points = work.execute()
    machine = environment()
    result: dict[str, Any] = {
        "prunus": machine["prunus"],
        "subject": recipe["subject"],
        "settings": {**recipe["settings"], "shares": list(settings.shares)},
        "criterion": work.scores.criterion,
        "network": {"accuracy": points[0].accuracy, "cost": asdict(work.graph.cost()), **work.images},
        "groups": _groups(work.graph, work.scores, points),
        "points": [point.to_json() for point in points],
        "notes": work.notes,
        "environment": machine,
    }
    work.stages.processes.by_main(lambda: _written(result, out))
    return result


def _written(result: dict[str, Any], out: Path) -> None:
    write_json(out / "sensitivity.json", result)
    write_sensitivity(result, out / "sensitivity.html")


class _Scan(Workbench):
    """One scan in one folder."""

    settings: ScanSettings

    def execute(self) -> tuple[SensitivityPoint, ...]:
        """All points, first that of the whole network; those that are there already aren't evaluated again."""
        network = self.stages.run("network", self.describe)
        self.images = {name: network[name] for name in ("images", "split")}
        self.notes = [*network["warnings"], *network["notes"], *self.scored["warnings"]]
        processes = self.stages.processes
        processes.agree("the network", lambda: digest(self.model))
        stored = processes.by_main(lambda: [read_json(path) for path in sorted(self.stages.file("").glob("point-*.json"))])
        known, _ = read_points(stored)
        return scan(self.graph, self.scores, self._accuracy, self.settings.shares, known=known, finished=self._keep)

    def _keep(self, point: SensitivityPoint) -> None:
        if not self.stages.processes.main:
            return
        names = [group.name for group in self.graph.groups]
        name = "whole" if point.group == WHOLE else f"{names.index(point.group):04d}-{point.removed:05d}"
        write_checked(self.stages.file(f"point-{name}.json"), point.to_json())

    # -- one point

    @cached_property
    def _places(self) -> dict[tuple[str, int], int]:
        plans = scan_plans(self.graph, self.scores, self.settings.shares)
        return {(next(iter(plan.keep), WHOLE), plan.num_removed): n for n, plan in enumerate(plans, start=1)}

    def _accuracy(self, plan: PruningPlan) -> float:
        name = next(iter(plan.keep), WHOLE)
        what = f"{name}, {plan.num_removed} of {len(plan.keep[name])} channels removed" if plan.keep else "the whole network"
        text = f"{self._places[name, plan.num_removed]} of {len(self._places)}: {what}"
        self.announce(text)
        functions: dict[str, Any] = {"loss_fn": self.subject.loss_fn, "forward_fn": self.subject.forward_fn}
        network = self.without(plan, f"{plan.num_removed} channels of `{name}`") if plan.keep else self.model
        return evaluate(network, self.loader, description=text, **functions).accuracy


def _groups(graph: ChannelGraph, scores: Scores, points: Sequence[SensitivityPoint]) -> list[dict[str, Any]]:
    """Every group with the largest share that costs at most a point (None: the smallest costs more), or why it wasn't scanned."""
    largest = largest_shares(points)
    rows: list[dict[str, Any]] = []
    for group in graph.groups:
        row: dict[str, Any] = {"name": group.name, "channels": group.num_channels, "unscanned": None, "largest": None}
        if group.name not in largest:
            scored = group.name in scores.by_group
            row["unscanned"] = group.frozen_because or ("too narrow for these shares" if scored else "has no scores")
        elif (point := largest[group.name]) is not None:
            macs = graph.cost_model.cost({group.name: group.num_channels - point.removed}).macs
            row["largest"] = {"epsilon": A_POINT, "macs": macs, **point.to_json()}
        rows.append(row)
    return rows
