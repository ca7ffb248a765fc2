"""What plans are tried on in the laboratory: a network, its scored groups and images that aren't its test images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from prunus.errors import DataError, NothingPruned, PrunusWarning, RecipeError, VerificationFailed
from prunus.graph import trace
from prunus.graph.trace import Keep
from prunus.importance import score
from prunus.importance.criteria import resolve_criterion
from prunus.laboratory.images import images_in, scoring_batches, test_loader
from prunus.laboratory.settings import Subject
from prunus.pipeline.images import evaluation_images
from prunus.pipeline.stages import Stages
from prunus.pipeline.trying import provable
from prunus.surgery import remove, silence, verify
from prunus.surgery.prove import Checks
from prunus.types import ChannelGraph, PruningPlan, Scores

EXAMPLES = 2
SPLITS = ("validation", "training")


@dataclass(frozen=True)
class WorkbenchSettings:
    """How plans are tried.

    ``criterion`` with its ``options`` ranks the channels, on ``scoring_images`` training images where it needs any; accuracy is
    measured on ``images`` images (None: all) of ``split``, ``validation`` or ``training`` (without augmentation), ``batch_size``
    at a time. ``keep``, ``mixing`` and ``whole_groups``: see `prunus.trace`.
    """

    criterion: str = "l1"
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    images: int | None = 1000
    split: str = "validation"
    scoring_images: int = 512
    batch_size: int = 64
    keep: Keep = ()
    mixing: str = "allow"
    whole_groups: bool = False
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {**asdict(self), "keep": list(self.keep) if isinstance(self.keep, tuple) else self.keep}


def check_subject(subject: Subject, settings: WorkbenchSettings) -> None:
    """Raise `DataError` for too few images, `RecipeError` for a split that doesn't exist."""
    if images_in(subject.data.calibration) < EXAMPLES:
        raise DataError(f"the data have fewer than {EXAMPLES} training images: a network can't be traced and checked on them")
    if settings.split not in SPLITS:
        raise RecipeError(f"split {settings.split!r} is none of {' and '.join(SPLITS)}: a scan never looks at test images")


class Workbench:
    """Tries plans in one folder. What is expensive is made when something that isn't finished needs it."""

    def __init__(self, subject: Subject, settings: WorkbenchSettings, stages: Stages, announce: Callable[[str], None]) -> None:
        self.subject, self.settings, self.stages, self.announce = subject, settings, stages, announce

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
        by_group = {name: torch.tensor(values, dtype=torch.float64) for name, values in self.scored["by_group"].items()}
        return Scores(by_group, self.scored["criterion"], self.scored["comparable"])

    @cached_property
    def scored(self) -> dict[str, Any]:
        return self.stages.run("scores", self._score)

    def _score(self) -> dict[str, Any]:
        asked = self.settings
        needs = resolve_criterion(asked.criterion, asked.options).needs
        batches = scoring_batches(self.subject.data, asked.scoring_images, asked.batch_size, asked.seed) if needs else None
        functions: dict[str, Any] = {"loss_fn": self.subject.loss_fn, "forward_fn": self.subject.forward_fn}
        found = score(self.model, self.graph, asked.criterion, batches, seed=asked.seed, **functions, **asked.options)
        by_group = {name: values.tolist() for name, values in found.by_group.items()}
        return {"criterion": found.criterion, "comparable": found.comparable, "by_group": by_group}

    def describe(self) -> dict[str, Any]:
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

    def without(self, plan: PruningPlan, what: str) -> nn.Module:
        """The network without the plan's channels, verified."""
        small, _ = remove(self.model, self.graph, plan)
        silent = silence(self.model, self.graph, plan)
        report = verify(silent, small, self.examples, forward_fn=self.subject.forward_fn)
        if not report.passed:
            raise VerificationFailed(
                f"removing {what} isn't the same as silencing them (relative error "
                f"{report.max_error:.1e}, tolerance {report.tolerance:.0e}). {report.detail} List the group under keep, in "
                "another folder",
                report,
            )
        return small
