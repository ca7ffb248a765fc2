"""How much of the multiply-adds' share comes out as time? MobileNetV2 at 50 % and 30 % of its MACs, ResNet-18 at 50 %, at 160 px.

`prunus bench` of each pruned network beside the full one: eager and compiled PyTorch, onnxruntime and OpenVINO, one thread, batch
1 and 8. Three plans of each network, in all of which widths are multiples of 16 as far as groups have room for that: ``uniform``
(every group keeps the same share), ``global_per_cost`` (the most importance per multiply-add), and one that is made for the
purpose, ``latency-aware``: ``knapsack`` with the latency of onnxruntime as a second limit, the least that still uses up the MACs.
Time doesn't depend on weights: they are random, importance is each group's L1 norm. A network has arrived where its measured
speed-up is at least 0.9 times the ratio of MACs on one runtime; the reasons that the bench tells stand below the table.

    python benchmarks/bench.py                     everything, about 75 minutes on a quiet machine; finished parts are kept
    python benchmarks/bench.py resnet18 uniform    parts of that name
    python benchmarks/bench.py --page              only the table, from what is there
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision

import prunus
from prunus import Budget, BudgetNotMet, PruningPlan, PrunusWarning
from prunus.files import write_atomically
from prunus.laboratory.bench import BenchSettings, bench
from prunus.pipeline.machine import environment

RESULT = Path(__file__).parent / "results" / "bench.json"
NETWORKS = {
    "mobilenet_v2 50 %": ("mobilenet_v2", 0.5),
    "mobilenet_v2 30 %": ("mobilenet_v2", 0.3),
    "resnet18 50 %": ("resnet18", 0.5),
}
PLANS = ("uniform", "global_per_cost", "latency-aware")
SETTINGS = BenchSettings(runtimes=("eager", "compile", "onnxruntime", "openvino"), batches=(1, 8), processes=3, seconds=4.0)
PIXELS = 160
NEAR = 0.9


def planned(model: torch.nn.Module, inputs: torch.Tensor, share: float, kind: str) -> tuple[prunus.ChannelGraph, PruningPlan]:
    """A plan that keeps this share of the MACs."""
    graph = prunus.trace(model, inputs)
    scores = prunus.score(model, graph, "l1")
    budget = Budget(macs=share, multiple_of=16, tolerance=0.05)
    if kind != "latency-aware":
        return graph, prunus.allocate(graph, scores, budget, kind)
    timed = prunus.time_network(model, graph, inputs, "onnxruntime")
    best = prunus.allocate(graph, scores, budget, "uniform")
    for percent in range(round(120 * share), round(60 * share), -1):  # less and less latency, as long as the MACs are used up
        try:
            plan = prunus.allocate(timed, scores, replace(budget, latency=percent / 100), "knapsack")
        except BudgetNotMet:
            break
        if plan.predicted.macs < 0.95 * share * graph.cost().macs:
            break
        best = plan
    return graph, best


def part(case: str, kind: str, pixels: int, settings: BenchSettings) -> dict[str, Any]:
    """One pruned network beside the full one in every setting: what the bench found, without its layers."""
    name, share = NETWORKS[case]
    torch.manual_seed(0)
    model, inputs = getattr(torchvision.models, name)().eval(), torch.randn(1, 3, pixels, pixels)
    graph, plan = planned(model, inputs, share, kind)
    small = prunus.remove(model, graph, plan)[0]
    with tempfile.TemporaryDirectory() as folder:
        found = bench(
            {"full": model, "small": small}, inputs, Path(folder) / "bench", settings, announce=lambda text: print(f"  {text}")
        )
    macs = {row["name"]: row["macs"] for row in found["networks"]}
    rows = [{key: value for key, value in row.items() if key != "layers"} for row in found["cases"]]
    return {"case": case, "plan": kind, "pixels": pixels, "macs": macs, "widths": plan.counts(), "cases": rows}


def best(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The setting in which most of the ideal came out."""
    measured = [(case, case["compared"]["small"]) for case in row["cases"] if case["error"] is None]
    return max(measured, key=lambda pair: pair[1]["of_ideal"])


def page(tree: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    machine = tree["environment"]
    lines = [
        f"Made by `python benchmarks/bench.py` on {machine.get('cpu')}, torch {machine.get('torch')}. One thread; speed-up over",
        "the full network, in brackets where the 95 % intervals of all processes lie, and its share of the ideal (MACs ratio).",
        "",
        "| network | plan | MACs left | setting | full, ms | small, ms | speed-up | ideal | of it | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in tree["parts"].values():
        left = row["macs"]["small"] / row["macs"]["full"]
        for case in row["cases"]:
            head = f"| {row['case']} | {row['plan']} | {left:.1%} | {case['case']} |"
            if case["error"] is not None:
                lines.append(f"{head} not measured: {case['error']} | | | | | |")
                continue
            told, times = case["compared"]["small"], [case["networks"][name]["p50_ms"] for name in ("full", "small")]
            low, high = told["interval"]
            speed_up = f"{told['speed_up']:.2f} ({low:.2f} to {high:.2f})"
            of_ideal = f"**{told['of_ideal']:.0%}**" if told["of_ideal"] >= NEAR else f"{told['of_ideal']:.0%}"
            lines.append(
                f"{head} {times[0]:.2f} | {times[1]:.2f} | {speed_up} | {told['ideal']:.2f} | {of_ideal} | {told['verdict']} |"
            )
    lines += ["", f"The best setting of each network and plan (arrived: at least {NEAR:.0%} of the ideal), and why no more:", ""]
    for row in tree["parts"].values():
        case, told = best(row)
        arrived = "arrived" if told["of_ideal"] >= NEAR else "not arrived"
        lines.append(f"- {row['case']}, {row['plan']}: {told['of_ideal']:.0%} on {case['case']}, {arrived}")
        lines += [f"  - {reason['text']}" for reason in told["reasons"]]
    noisy = [
        f"- {row['case']}, {row['plan']}: {case['case']}: {n}"
        for row in tree["parts"].values()
        for case in row["cases"]
        for n in case["notes"]
    ]
    return "\n".join([*lines, *(["", "Doubts:", "", *noisy] if noisy else [])]) + "\n"


def main() -> None:
    warnings.simplefilter("ignore", PrunusWarning)  # they stand in the result
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts whose name has all of these")
    parser.add_argument("--page", action="store_true", help="only write the table")
    parser.add_argument(
        "--quick", type=Path, help="try it out: 64 px, one short process, eager and onnxruntime, results in this folder"
    )
    chosen = parser.parse_args()
    path = chosen.quick / "bench.json" if chosen.quick else RESULT
    settings = BenchSettings(processes=1, seconds=0.2, layer_seconds=0.02, memory=False) if chosen.quick else SETTINGS
    tree: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"environment": {}, "parts": {}}
    every = [(f"{case}, {kind}", case, kind) for case in NETWORKS for kind in PLANS]
    for key, case, kind in () if chosen.page else every:
        if key in tree["parts"] or not all(word in key for word in chosen.words):
            continue
        print(key, flush=True)
        tree["parts"][key] = part(case, kind, 64 if chosen.quick else PIXELS, settings)
        tree["environment"] = environment()
        tree["parts"] = {name: tree["parts"][name] for name, _, _ in every if name in tree["parts"]}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(tree, indent=1) + "\n").encode())
    write_atomically(path.with_suffix(".md"), page(tree).encode())


if __name__ == "__main__":
    main()
