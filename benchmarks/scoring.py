"""How long scoring takes: criteria without data in seconds, those of first order beside a plain forward and backward pass.

    python benchmarks/scoring.py [--runs 5] [--threads 2] [--size 64] [--batch 8]

ResNet-50. In every run the plain pass (evaluation mode, gradients of all parameters) and each criterion go over the same batches
in turns. Targets: all criteria without data together under 1 s; a criterion of first order at most 1.3x the plain pass. CPU
seconds stand beside those on the clock: on a machine with other work they say more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import prunus
from prunus.files import write_atomically
from prunus.pipeline.result import environment

RESULT = Path(__file__).parent / "results" / "scoring.json"
FIRST_ORDER: dict[str, tuple[str, dict[str, Any]]] = {
    "taylor": ("taylor", {}),
    "taylor per_example": ("taylor", {"per_example": True}),
    "taylor on weights": ("taylor", {"on": "weights"}),
    "taylor on norms": ("taylor", {"on": "norms"}),
    "taylor_2016": ("taylor_2016", {}),
    "taylor_2016 released": ("taylor_2016", {"variant": "released"}),
    "gradient_mean": ("gradient_mean", {}),
}
TARGETS = {"without data, s": 1.0, "first order / plain pass": 1.3}


def measured(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock and of CPU."""
    begin, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - cpu


def plain_pass(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    for images, labels in batches:
        F.cross_entropy(model(images), labels).backward()
        model.zero_grad(set_to_none=True)


def in_turns(works: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, float]]:
    """Median and standard deviation of each, a first run of all warming up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for run in range(runs + 1):
        for name, work in works.items():
            found = measured(work)
            if run:
                times[name].append(found)
    return {
        name: {
            "median": statistics.median(clock for clock, _ in found),
            "std": statistics.stdev(clock for clock, _ in found),
            "cpu_median": statistics.median(cpu for _, cpu in found),
        }
        for name, found in times.items()
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    for name, default in (("--runs", 5), ("--threads", 2), ("--size", 64), ("--batch", 8), ("--batches", 1)):
        arguments.add_argument(name, type=int, default=default)
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", prunus.PrunusWarning)  # random weights, of course
    model = torchvision.models.resnet50(weights=None).eval()
    shape = (chosen.batch, 3, chosen.size, chosen.size)
    data = [(torch.randn(shape), torch.randint(0, 1000, (chosen.batch,))) for _ in range(chosen.batches)]
    graph = prunus.trace(model, data[0][0][:1])
    free: dict[str, Callable[[], Any]] = {
        name: lambda name=name: prunus.score(model, graph, name) for name, row in prunus.CRITERIA.items() if not row.needs
    }
    without_data = in_turns(free, chosen.runs)
    works: dict[str, Callable[[], Any]] = {"plain pass": lambda: plain_pass(model, data)}
    for label, (name, options) in FIRST_ORDER.items():
        works[label] = lambda name=name, options=options: prunus.score(model, graph, name, data, **options)
    passes = in_turns(works, chosen.runs)
    plain = passes["plain pass"]
    ratios = {
        label: {kind: passes[label][kind] / plain[kind] for kind in ("median", "cpu_median")}
        for label in passes
        if label != "plain pass"
    }
    totals = {kind: sum(found[kind] for found in without_data.values()) for kind in ("median", "cpu_median")}
    tree = {
        "command": "python benchmarks/scoring.py " + " ".join(f"--{name} {value}" for name, value in vars(chosen).items()),
        "settings": vars(chosen),
        "environment": environment(),
        "targets": TARGETS,
        "without data, s": {"together": totals, **without_data},
        "over the same data, s": passes,
        "first order / plain pass": ratios,
    }
    write_atomically(RESULT, (json.dumps(tree, indent=1) + "\n").encode())
    print(json.dumps({"without data, s": totals, "first order / plain pass": ratios}, indent=1))


if __name__ == "__main__":
    main()
