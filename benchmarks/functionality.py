"""Functionality-oriented pruning on digits: a quarter of the channels removed, no retraining; and what a bad retraining loses.

    python benchmarks/functionality.py [--seeds 0 1 2 3 4] [--threads 1]

METHODS' rig: 8 x 8 handwritten digits (1300 to train, 497 to test), three convolutions of 16, 32 and 32 channels. For each seed a
network is trained, a quarter of the channels removed by each criterion (of every group, or over all groups), and tested as it
is. The network pruned by functionality is then retrained with a learning rate far too high for a few steps, and, for comparison,
with a low one as long, and not at all. Seeds that are done are kept in the result file and not run again. The page of the first
seed shows every channel's preferred pattern before and after (the ascent goes on from the pattern before). Target (the paper's
claim; the formula is a reconstruction): more accurate than l1. Also how often a channel's pattern from other start noise is
nearest to its own among all of its group: as an image, and by its response profile.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor, nn

import prunus
from prunus.files import write_atomically
from prunus.importance.evidence import DataRun
from prunus.importance.functionality import preference_clusters, preferences, response_profiles
from prunus.importance.functionality_patterns import preferred_patterns
from prunus.pipeline.result import environment
from prunus.report.gallery import LOST, GalleryGroup, write_gallery

RESULT = Path(__file__).parent / "results" / "functionality.json"
PAGE = RESULT.with_suffix(".html")
CRITERIA: dict[str, tuple[str, dict[str, Any]]] = {
    "functionality": ("functionality", {}),
    "functionality by images": ("functionality", {"by": "images"}),
    "contribution alone": ("gradient_mean", {}),
    "l1": ("l1", {}),
    "random": ("random", {}),
}
ALLOCATORS = ("uniform", "global")
REMOVED = 0.25
TRAINING = {"epochs": 15, "batch": 50, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
RETRAINING = {
    "bad retraining": {"steps": 12, "lr": 1.0},
    "careful retraining": {"steps": 12, "lr": 0.01},
    "no retraining": {"steps": 0, "lr": 0.01},
}
SETTINGS = {"removed": REMOVED, "training": TRAINING, "retraining": RETRAINING, "criteria": CRITERIA, "allocators": ALLOCATORS}


def digits() -> tuple[Tensor, Tensor]:
    loaded = load_digits()
    return torch.tensor(loaded.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(loaded.target)


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((1, 16, nn.MaxPool2d(2)), (16, 32, nn.MaxPool2d(2)), (32, 32, nn.AdaptiveAvgPool2d(1))):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), pool]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10))


def fit(model: nn.Module, x: Tensor, y: Tensor, lr: float, steps: int, seed: int) -> nn.Module:
    momentum, weight_decay, batch = (TRAINING[name] for name in ("momentum", "weight_decay", "batch"))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    while steps > 0:
        for rows in torch.randperm(len(x), generator=generator).split(int(batch))[:steps]:
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            steps -= 1
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


class Seed:
    """One trained network and everything that is measured on it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        torch.manual_seed(seed)
        x, y = digits()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        self.train, self.test = (x[order[:1300]], y[order[:1300]]), (x[order[1300:]], y[order[1300:]])
        steps = int(TRAINING["epochs"]) * math.ceil(1300 / TRAINING["batch"])
        self.model = fit(network(), *self.train, TRAINING["lr"], steps, seed)
        self.graph = prunus.trace(self.model, self.train[0][:1])
        self.data = list(zip(*(part.split(100) for part in self.train), strict=True))

    def scored(self, name: str) -> tuple[prunus.Scores, float]:
        begin = time.process_time()
        criterion, options = CRITERIA[name]
        data = self.data if prunus.CRITERIA[criterion].needs else None
        scores = prunus.score(self.model, self.graph, criterion, data, seed=self.seed, **options)
        return scores, time.process_time() - begin

    def pruned(self, scores: prunus.Scores, allocator: str) -> tuple[nn.Module, prunus.PruningPlan]:
        plan = prunus.allocate(self.graph, scores, prunus.Budget(channels=1 - REMOVED), allocator)
        small, _ = prunus.remove(self.model, self.graph, plan)
        report = prunus.verify(prunus.silence(self.model, self.graph, plan), small, self.test[0])
        if not report.passed:
            raise SystemExit(f"the small network isn't the silenced one: {report}")
        return small.eval(), plan

    def measure(self, page: Path | None) -> dict[str, Any]:
        found: dict[str, Any] = {"before": accuracy(self.model, *self.test), "after": {}, "score, s": {}}
        for name in CRITERIA:
            scores, found["score, s"][name] = self.scored(name)
            for allocator in ALLOCATORS:
                small, plan = self.pruned(scores, allocator)
                found["after"][f"{name}, {allocator}"] = accuracy(small, *self.test)
                if (name, allocator) == ("functionality", "uniform"):
                    found |= self.retrained(small, plan, page)
        return found

    def retrained(self, small: nn.Module, plan: prunus.PruningPlan, page: Path | None) -> dict[str, Any]:
        """Accuracy and lost functions after each retraining; clusters; what other start noise changes; the gallery."""
        example = self.data[0][0]
        patterns = preferred_patterns(self.model, self.graph, example, seed=self.seed)
        keep = {name: plan.keep.get(name, torch.ones(len(values), dtype=torch.bool)) for name, values in patterns.items()}
        starts = {name: values[keep[name]] for name, values in patterns.items()}
        found: dict[str, Any] = {"retraining": {}}
        after: dict[str, dict[str, Tensor]] = {}
        state = {name: value.clone() for name, value in small.state_dict().items()}
        for name, how in RETRAINING.items():
            small.load_state_dict(state)
            fit(small, *self.train, how["lr"], int(how["steps"]), self.seed)
            found["retraining"][name] = {"accuracy": accuracy(small, *self.test)}
            after[name] = preferred_patterns(small, prunus.trace(small, example[:1]), example, starts=starts, seed=self.seed)
        evidence, other = (preferences(self.model, self.graph, DataRun(self.data, seed=self.seed + n)) for n in (0, 1000))
        groups = [
            GalleryGroup(
                name=name,
                patterns=values,
                clusters=preference_clusters(evidence[name], seed=self.seed),
                contributions=evidence[name][:, 0],
                removed=~keep[name],
                after={training: patterns_after[name] for training, patterns_after in after.items()},
            )
            for name, values in patterns.items()
        ]
        for name in RETRAINING:
            similarities = torch.cat([group.similarities(name) for group in groups])
            found["retraining"][name] |= {"median similarity": float(similarities.quantile(0.5))}
            found["retraining"][name] |= {"functions lost": int((similarities < LOST).sum()) / len(similarities)}
        found["clusters"] = {group.name: len(group.clusters.unique()) for group in groups}
        found["nearest to itself"] = nearest_to_itself(
            patterns, preferred_patterns(self.model, self.graph, example, seed=self.seed + 1000), evidence, other
        )
        if page is not None:
            self.write(groups, found, page)
        return found

    def write(self, groups: list[GalleryGroup], found: dict[str, Any], page: Path) -> None:
        after = ", ".join(f"{values['accuracy']:.1%} with {name}" for name, values in found["retraining"].items())
        note = (
            f"A small network on handwritten digits, test accuracy {accuracy(self.model, *self.test):.1%}. A quarter of every "
            f"group was removed by functionality: {after}."
        )
        write_gallery(groups, page, title="What each channel prefers", note=note)


def nearest_to_itself(
    patterns: dict[str, Tensor], others: dict[str, Tensor], evidence: dict[str, Tensor], other: dict[str, Tensor]
) -> dict[str, float]:
    """Share of channels whose pattern of one seed is nearest to its own of the other seed, as an image and by its profile."""

    def hits(one: Tensor, two: Tensor) -> Tensor:
        cosines = F.normalize(one.flatten(1).double()) @ F.normalize(two.flatten(1).double()).T
        return cosines.argmax(1) == torch.arange(len(one))

    def profiles(found: Tensor) -> Tensor:
        return response_profiles(found[:, 1 : 1 + len(found)], found[:, 1 + len(found) :].any(1))

    images = torch.cat([hits(patterns[name], others[name]) for name in patterns])
    responses = torch.cat([hits(profiles(evidence[name]), profiles(other[name])) for name in evidence])
    return {"images": float(images.double().mean()), "responses": float(responses.double().mean())}


def summary(seeds: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds."""

    def over(values: list[float]) -> dict[str, float]:
        return {"mean": statistics.mean(values), **({"std": statistics.stdev(values)} if len(values) > 1 else {})}

    rows = list(seeds.values())
    found: dict[str, Any] = {"seeds": len(rows), "before": over([row["before"] for row in rows])}
    found["after"] = {name: over([row["after"][name] for row in rows]) for name in rows[0]["after"]}
    found["retraining"] = {
        name: {what: over([row["retraining"][name][what] for row in rows]) for what in rows[0]["retraining"][name]}
        for name in RETRAINING
    }
    for name in ("score, s", "clusters", "nearest to itself"):
        found[name] = {key: over([row[name][key] for row in rows]) for key in rows[0][name]}
    return found


def earlier() -> dict[str, Any]:
    """Seeds measured before with the same settings."""
    tree = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    same = tree.get("header", {}).get("settings") == json.loads(json.dumps(SETTINGS))
    return dict(tree["results"]["by seed"]) if same else {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seeds = earlier()
    missing = [seed for seed in args.seeds if str(seed) not in seeds]
    for seed in track(missing, "seeds", disable=not sys.stderr.isatty()):
        seeds[str(seed)] = Seed(seed).measure(PAGE if seed == args.seeds[0] else None)
        header = {"command": "python benchmarks/functionality.py", "settings": SETTINGS, "threads": args.threads}
        results = {"summary": summary(seeds), "by seed": dict(sorted(seeds.items(), key=lambda item: int(item[0])))}
        tree = {"header": header | {"environment": environment()}, "results": results}
        write_atomically(RESULT, (json.dumps(tree, indent=2) + "\n").encode())
    for name, values in summary(seeds)["after"].items():
        print(f"{name}: {values['mean']:.1%}")


if __name__ == "__main__":
    main()
