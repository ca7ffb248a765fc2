"""`scan_network`: how much every group of a network bears on images that aren't its test images; every point is kept."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

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
from prunus.errors import DataError, NothingPruned, PrunusWarning, RecipeError, VerificationFailed
from prunus.graph import trace
from prunus.graph.trace import Keep
from prunus.importance import score
from prunus.importance.criteria import resolve_criterion
from prunus.laboratory.images import images_in, scoring_batches, test_loader
from prunus.laboratory.settings import Subject
from prunus.pipeline.images import evaluation_images
from prunus.pipeline.result import environment
from prunus.pipeline.stages import Stages, read_json, write_json
from prunus.pipeline.trying import provable
from prunus.report.sensitivity import write_sensitivity
from prunus.surgery import remove, silence, verify
from prunus.surgery.prove import Checks
from prunus.training import evaluate
from prunus.types import ChannelGraph, PruningPlan, Scores

EXAMPLES = 2
SPLITS = ("validation", "training")


@dataclass(frozen=True)
class ScanSettings:
    """How a scan is made.

    ``criterion`` with its ``options`` ranks the channels, on ``scoring_images`` training images where it needs any; ``shares`` of
    each group's channels are removed; accuracy is measured on ``images`` images (None: all) of ``split``, ``validation`` or
    ``training`` (without augmentation), ``batch_size`` at a time. ``keep``, ``mixing`` and ``whole_groups``: see `prunus.trace`.
    """

    criterion: str = "l1"
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    shares: tuple[float, ...] = SHARES
    images: int | None = 1000
    split: str = "validation"
    scoring_images: int = 512
    batch_size: int = 64
    keep: Keep = ()
    mixing: str = "allow"
    whole_groups: bool = False
    seed: int = 0

    def of_points(self) -> dict[str, Any]:
        """What the accuracy of a point depends on: all but the shares, each of which is a point of its own."""
        parts = {name: value for name, value in asdict(self).items() if name != "shares"}
        return {**parts, "keep": list(self.keep) if isinstance(self.keep, tuple) else self.keep}


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

    Raises:
        RecipeError: ``out`` holds a scan of something else or with other settings; no such split.
        NothingPruned: every group is frozen, or too narrow for these shares.
        PrunusError: what tracing, scoring, removal or the images raise.
    """
    if images_in(subject.data.calibration) < EXAMPLES:
        raise DataError(f"the data have fewer than {EXAMPLES} training images: a network can't be traced and checked on them")
    if settings.split not in SPLITS:
        raise RecipeError(f"split {settings.split!r} is none of {' and '.join(SPLITS)}: a scan never looks at test images")
    recipe = json.loads(json.dumps({"subject": dict(subject.about), "settings": settings.of_points()}, default=str))
    work = _Scan(subject, settings, Stages(out, recipe, True, lambda _: None), announce)
    points = work.execute()
    machine = environment()
    result = {
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
    write_json(out / "sensitivity.json", result)
    write_sensitivity(result, out / "sensitivity.html")
    return result


class _Scan:
    """One scan in one folder. What is expensive is made when a point that isn't finished needs it."""

    def __init__(self, subject: Subject, settings: ScanSettings, stages: Stages, announce: Callable[[str], None]) -> None:
        self.subject, self.settings, self.stages, self.announce = subject, settings, stages, announce

    def execute(self) -> tuple[SensitivityPoint, ...]:
        """All points, first that of the whole network; those that are there already aren't evaluated again."""
        network = self.stages.run("network", self._network)
        self.images = {name: network[name] for name in ("images", "split")}
        self.notes = [*network["warnings"], *network["notes"], *self._scored["warnings"]]
        stored = [read_json(path) for path in sorted(self.stages.file("").glob("point-*.json"))]
        known, _ = read_points(stored)
        return scan(self.graph, self.scores, self._accuracy, self.settings.shares, known=known, finished=self._keep)

    def _keep(self, point: SensitivityPoint) -> None:
        names = [group.name for group in self.graph.groups]
        name = "whole" if point.group == WHOLE else f"{names.index(point.group):04d}-{point.removed:05d}"
        write_json(self.stages.file(f"point-{name}.json"), point.to_json())

    # -- made when needed

    @cached_property
    def model(self) -> nn.Module:
        return self.subject.network(self.settings.seed).eval()

    @cached_property
    def examples(self) -> Tensor:
        return torch.stack([self.subject.data.calibration[i][0] for i in range(EXAMPLES)])

    @cached_property
    def graph(self) -> ChannelGraph:
        """The traced groups that can be shown to be removed exactly."""
        asked, forward_fn = self.settings, self.subject.forward_fn
        mixing: Any = asked.mixing
        graph = trace(self.model, self.examples, asked.keep, mixing, forward_fn, whole_groups=asked.whole_groups)
        if not graph.prunable:
            shown = "; ".join(f"`{g.name}`: {g.frozen_because}" for g in graph.frozen[:3])
            raise NothingPruned(f"all {len(graph.groups)} groups are frozen, so there is nothing to scan. {shown}")
        return provable(self.model, graph, Checks(self.model, self.examples, forward_fn=forward_fn))

    @cached_property
    def scores(self) -> Scores:
        """Kept as well, so that every point ranks the channels alike."""
        by_group = {name: torch.tensor(values, dtype=torch.float64) for name, values in self._scored["by_group"].items()}
        return Scores(by_group, self._scored["criterion"], self._scored["comparable"])

    @cached_property
    def _scored(self) -> dict[str, Any]:
        return self.stages.run("scores", self._score)

    def _score(self) -> dict[str, Any]:
        asked = self.settings
        needs = resolve_criterion(asked.criterion, asked.options).needs
        batches = scoring_batches(self.subject.data, asked.scoring_images, asked.batch_size, asked.seed) if needs else None
        functions: dict[str, Any] = {"loss_fn": self.subject.loss_fn, "forward_fn": self.subject.forward_fn}
        found = score(self.model, self.graph, asked.criterion, batches, seed=asked.seed, **functions, **asked.options)
        by_group = {name: values.tolist() for name, values in found.by_group.items()}
        return {"criterion": found.criterion, "comparable": found.comparable, "by_group": by_group}

    def _network(self) -> dict[str, Any]:
        """Everything that may warn is made here, so that a scan that goes on tells the same as one that wasn't stopped."""
        _, split, _ = evaluation_images(self.subject.data, self.settings.split)
        return {"images": images_in(self.loader.dataset), "split": split, "notes": list(self.graph.notes)}

    @cached_property
    def loader(self) -> DataLoader[Any]:
        chosen, _, notes = evaluation_images(self.subject.data, self.settings.split)
        for note in notes:
            warnings.warn(note, PrunusWarning, stacklevel=2)
        # The images of an evaluation are drawn and held in memory as test images are; here they are others.
        return test_loader(replace(self.subject.data, test=chosen), self.settings.images, self.settings.batch_size)

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
        network = self._without(plan, name) if plan.keep else self.model
        return evaluate(network, self.loader, description=text, **functions).accuracy

    def _without(self, plan: PruningPlan, name: str) -> nn.Module:
        small, _ = remove(self.model, self.graph, plan)
        silent = silence(self.model, self.graph, plan)
        report = verify(silent, small, self.examples, forward_fn=self.subject.forward_fn)
        if not report.passed:
            raise VerificationFailed(
                f"removing {plan.num_removed} channels of `{name}` isn't the same as silencing them (relative error "
                f"{report.max_error:.1e}, tolerance {report.tolerance:.0e}). {report.detail} List the group under keep, in "
                "another folder",
                report,
            )
        return small


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
