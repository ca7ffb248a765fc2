"""How long a whole prune takes without verification, beside torch-pruning 1.6.1 in the same run.

    python benchmarks/surgery.py [--runs 5] [--threads 2] [--size 224]

Both sides remove half the channels of every layer by the L1 norm from a fresh copy, in turns (ours, theirs, ours, ...); the copy
isn't
timed. Targets: resnet50 at most 1.0x the peer, densenet121 at most 0.33x, a plan's cost under 1 ms, tracing adds at most 1.0x a
forward pass.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import prunus
from prunus.pipeline.result import environment

RESULT = Path(__file__).parent / "results" / "surgery.json"
NETWORKS = ("resnet50", "densenet121", "mobilenet_v2")


def ours(model: nn.Module, x: Tensor) -> nn.Module:
    return prunus.prune(model, x, prunus.Budget(channels=0.5), criterion="l1", allocator="uniform", verify=False).model


def theirs(model: nn.Module, x: Tensor) -> nn.Module:
    import torch_pruning

    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=1)
    torch_pruning.pruner.BasePruner(model, x, importance=importance, pruning_ratio=0.5, ignored_layers=[last]).step()
    return model


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def summary(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "mean": statistics.mean(times), "std": statistics.stdev(times)}


def measure(name: str, runs: int, size: int) -> dict[str, Any]:
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, size, size)
    times: dict[str, list[float]] = {"prunus": [], "torch-pruning": [], "forward": [], "trace": [], "score": [], "remove": []}
    graph = prunus.trace(model, x)
    plan = prunus.allocate(graph, prunus.score(model, graph, "l1"), prunus.Budget(channels=0.5), "uniform")
    for run in range(runs + 1):  # the first run warms up
        mine, peer = copy.deepcopy(model), copy.deepcopy(model)
        with torch.no_grad():
            row = {"forward": seconds(lambda: model(x))}
        row["prunus"] = seconds(lambda m=mine: ours(m, x))
        row["torch-pruning"] = seconds(lambda m=peer: theirs(m, x))
        row["trace"] = seconds(lambda: prunus.trace(model, x))
        row["score"] = seconds(lambda: prunus.score(model, graph, "l1"))
        row["remove"] = seconds(lambda: prunus.remove(model, graph, plan))
        if run:
            for key, value in row.items():
                times[key].append(value)
    cost = statistics.median(seconds(lambda: graph.cost(plan)) for _ in range(200))
    medians = {key: statistics.median(values) for key, values in times.items()}
    return {
        "seconds": {key: summary(values) for key, values in times.items()},
        "prunus / torch-pruning": medians["prunus"] / medians["torch-pruning"],
        "trace / forward": medians["trace"] / medians["forward"],
        "cost of a plan, ms": 1e3 * cost,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    header = {"command": "python benchmarks/surgery.py", **vars(args), "environment": environment()}
    rows = {name: measure(name, args.runs, args.size) for name in NETWORKS}
    print(json.dumps(header))
    for name, row in rows.items():
        mine, peer = row["seconds"]["prunus"], row["seconds"]["torch-pruning"]
        print(
            f"{name}: {mine['mean']:.3f} +- {mine['std']:.3f} s against {peer['mean']:.3f} +- {peer['std']:.3f} s "
            f"({row['prunus / torch-pruning']:.2f}x), trace / forward {row['trace / forward']:.2f}, "
            f"cost {row['cost of a plan, ms']:.3f} ms"
        )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"header": header, "results": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
