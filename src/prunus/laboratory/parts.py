"""The parts of one seed of a comparison: network, oracle, every criterion's scores, every removal; each is kept in a file."""

from __future__ import annotations

import math
import re
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prunus.allocation import allocate
from prunus.errors import NothingPruned, PrunusWarning
from prunus.graph import trace
from prunus.importance import score
from prunus.importance.evidence import DataRun
from prunus.laboratory.contenders import REFERENCE, Contender, Scored, score_by
from prunus.laboratory.images import images_in, scoring_batches, test_loader
from prunus.laboratory.reference import sampled_oracle, stratified_sample
from prunus.laboratory.removal import Judge
from prunus.laboratory.settings import Settings, Subject
from prunus.laboratory.summary import SeedResult
from prunus.pipeline.stages import Stages
from prunus.sources import make_loader
from prunus.surgery.prove import Checks, prove
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

EXAMPLES = 2


class Watch:
    """Tells whoever watches what is being computed, and the user what to know: once, not for every seed."""

    def __init__(self, announce: Callable[[str], None], total: int) -> None:
        self._announce, self._total, self._done = announce, total, 0
        self._told: set[str] = set()

    def step(self, text: str) -> None:
        """The next of all steps begins."""
        self._done += 1
        self._announce(f"{self._done} of {self._total}: {text}")

    def warn(self, text: str) -> None:
        """Warn, unless that has been said."""
        if text not in self._told:
            self._told.add(text)
            warnings.warn(text, PrunusWarning, stacklevel=2)


class SeedParts:
    """All parts of one seed. What is expensive is made when a part that isn't finished needs it."""

    def __init__(
        self,
        subject: Subject,
        contenders: Sequence[Contender],
        seed: int,
        settings: Settings,
        stages: Stages,
        watch: Watch,
    ) -> None:
        self.subject, self.contenders, self.seed, self.settings = subject, contenders, seed, settings
        self.stages, self.watch = stages, watch

    def execute(self) -> SeedResult:
        """Make what isn't there yet, and return everything."""
        network = self._part("network", self._network)
        for note in network["notes"]:
            self.watch.warn(note)
        sample = {name: torch.tensor(channels) for name, channels in network.pop("sample").items()}
        oracle = self._part(REFERENCE, lambda: self._oracle(sample))
        scored = {
            c.label: Scored.from_json(self._part(f"{_file_name(c.label)}-scores", lambda c=c: self._score(c).to_json(), c.label))
            for c in self.contenders
        }
        changes = {name: torch.tensor(values, dtype=torch.float64) for name, values in oracle["changes"].items()}
        removal = self._removal(scored, changes, whole=len(sample) > 0 and self._is_whole(network, sample))
        return SeedResult(self.seed, network, sample, changes, oracle["seconds"], scored, removal)

    def _part(self, name: str, work: Callable[[], dict[str, Any]], title: str = "") -> dict[str, Any]:
        self.watch.step(f"seed {self.seed}, {title or name}")
        return self.stages.run(f"seed-{self.seed}-{name}", work)

    def _removed(self, label: str, ranking: Scores, share: float) -> dict[str, Any]:
        name = f"seed-{self.seed}-{_file_name(label)}-remove-{share:.4g}"
        return self.stages.run(name, lambda: self.judge.after_removal(ranking, share))

    def _is_whole(self, network: Mapping[str, Any], sample: Mapping[str, Tensor]) -> bool:
        return all(len(sample.get(g["name"], ())) == g["channels"] for g in network["groups"] if g["frozen_because"] is None)

    # -- made when needed

    @cached_property
    def model(self) -> nn.Module:
        return self.subject.network(self.seed).eval()

    @cached_property
    def examples(self) -> Tensor:
        return torch.stack([self.subject.data.test[i][0] for i in range(EXAMPLES)])

    @cached_property
    def graph(self) -> ChannelGraph:
        """The traced groups; where channels will be removed, those that can be shown to be removed exactly."""
        asked = self.settings
        graph = trace(
            self.model,
            self.examples,
            asked.keep,
            asked.mixing,  # pyright: ignore[reportArgumentType]
            self.subject.forward_fn,
            whole_groups=asked.whole_groups,
        )
        if not graph.prunable:
            shown = "; ".join(f"`{g.name}`: {g.frozen_because}" for g in graph.frozen[:3])
            raise NothingPruned(f"all {len(graph.groups)} groups are frozen, so there is nothing to compare. {shown}")
        scores = score(self.model, graph, "random", seed=0)
        checks = Checks(self.model, self.examples, forward_fn=self.subject.forward_fn)
        return prove(checks, graph, lambda graph: _half(graph, scores)).graph

    @cached_property
    def batches(self) -> list[Any]:
        return scoring_batches(self.subject.data, self.settings.images, self.settings.batch_size, self.seed)

    @cached_property
    def judge(self) -> Judge:
        data, asked = self.subject.data, self.settings
        return Judge(
            self.model,
            self.graph,
            self.examples,
            self.batches,
            make_loader(data.train, batch_size=asked.batch_size, shuffle=True),
            test_loader(data, asked.test_images, asked.batch_size),
            asked.recovery,
            self.seed,
            self.subject.loss_fn,
            self.subject.forward_fn,
        )

    # -- parts

    def _network(self) -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", PrunusWarning)
            graph, accuracy = self.graph, self.judge.accuracy(self.model)
        images, classes = images_in(self.judge.test.dataset), self.subject.data.num_classes
        doubt = _no_better_than_guessing(accuracy, images, classes)
        sample = stratified_sample(graph.prunable, self.settings.channels, self.seed)
        groups = [{"name": g.name, "channels": g.num_channels, "frozen_because": g.frozen_because} for g in graph.groups]
        return {
            "accuracy": accuracy,
            "test_images": images,
            "classes": classes,
            "cost": asdict(graph.cost()),
            "groups": groups,
            "notes": [*(str(w.message) for w in caught if issubclass(w.category, PrunusWarning)), *([doubt] if doubt else [])],
            "sample": {name: channels.tolist() for name, channels in sample.items()},
        }

    def _oracle(self, sample: Mapping[str, Tensor]) -> dict[str, Any]:
        run = DataRun(self.batches, self.subject.loss_fn, self.subject.forward_fn, seed=self.seed)
        begin = time.perf_counter()
        changes, evaluations = sampled_oracle(self.model, self.graph, run, sample)
        return {
            "seconds": time.perf_counter() - begin,
            "evaluations": evaluations,
            "changes": {name: values.tolist() for name, values in changes.items()},
        }

    def _score(self, contender: Contender) -> Scored:
        functions: dict[str, Any] = {"loss_fn": self.subject.loss_fn, "forward_fn": self.subject.forward_fn}
        return score_by(contender, self.model, self.graph, self.batches, seed=self.seed, **functions)

    def _removal(
        self, scored: Mapping[str, Scored], oracle: Mapping[str, Tensor], whole: bool
    ) -> dict[str, list[Mapping[str, Any]]]:
        """Of the oracle itself only where it knows all channels."""
        if not self.settings.shares:
            return {}
        rankings = {REFERENCE: Scores(oracle, REFERENCE, True)} if whole else {}
        rankings |= {label: one.ranking(label) for label, one in scored.items() if one.not_applicable is None}
        found: dict[str, list[Mapping[str, Any]]] = {}
        for label in (REFERENCE, *scored):
            self.watch.step(f"seed {self.seed}, {label}, accuracy after removal")
            if label in rankings:
                found[label] = [self._removed(label, rankings[label], share) for share in self.settings.shares]
        return found


def _half(graph: ChannelGraph, scores: Scores) -> PruningPlan:
    """A plan that takes something from as many groups as it can."""
    known = Scores({g.name: scores.by_group[g.name] for g in graph.prunable}, scores.criterion, scores.comparable)
    return allocate(graph, known, Budget(channels=0.5, max_pruning_ratio=1.0, tolerance=0.99), "uniform")


def _no_better_than_guessing(accuracy: float, images: int, classes: int) -> str | None:
    chance = 1 / max(classes, 1)
    if classes < 2 or accuracy > chance + 3 * math.sqrt(chance * (1 - chance) / images):
        return None
    return (
        f"the network is right on {accuracy:.1%} of {images} test images, no better than guessing among {classes} classes: what "
        "criteria say of an untrained network tells nothing about a trained one; give it trained weights"
    )


def _file_name(label: str) -> str:
    """A name for files; labels that had to be changed for it are told apart by a number."""
    plain = re.sub(r"[^\w.+-]+", "_", label)
    return plain if plain == label else f"{plain.strip('_')}-{zlib.crc32(label.encode()):08x}"
