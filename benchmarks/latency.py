"""Does a latency budget come out on the machine? And is the latency-aware plan faster than the uniform one at equal MACs?

ResNet-18, MobileNetV2 and VGG-16-BN at 160 px, kept fractions 0.7, 0.5 and 0.33 of the measured latency, in eager PyTorch and in
onnxruntime, one thread, batch 1. After planning has ended, the full and the small network are timed again in three
processes (medians, in turns in each): the worst of the three ratios must be within 5 % of the request. Then, at half the MACs,
the plan that the knapsack finds within ever less latency, as long as it uses up the MACs, against the uniform one. That plan is
made from layer times alone; it isn't timed and corrected as plans for a latency budget are.
Latency doesn't depend on weights: they are random, importance is each group's L1 norm.

    python benchmarks/latency.py            all cases, about 45 minutes on a quiet core; finished ones are kept
    python benchmarks/latency.py resnet18 eager 0.5    one case
    python benchmarks/latency.py --page     only the table and the plot, from what is there
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision

import prunus
from prunus import Budget, BudgetNotMet, PrunusWarning
from prunus.budgets import Timing
from prunus.export.fresh_process import NetworkTimer
from prunus.files import write_atomically
from prunus.pipeline.machine import environment

NETWORKS = ("resnet18", "mobilenet_v2", "vgg16_bn")
RUNTIMES = ("eager", "onnxruntime")
SHARES = (0.7, 0.5, 0.33)
REPEATS = 3
EQUAL_MACS = "equal MACs"
RESULT = Path(__file__).parent / "results" / "latency.json"


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return getattr(torchvision.models, name)().eval()


def again(full: torch.nn.Module, small: torch.nn.Module, inputs: torch.Tensor, runtime: str) -> list[dict[str, float]]:
    """Both networks in three fresh processes: medians in ms."""
    with NetworkTimer(inputs, runtime, Timing(), seconds=5.0) as timer:
        rows = [timer({"full": full, "small": small}) for _ in range(REPEATS)]
    return [{"full_ms": row["full"].median_ms, "small_ms": row["small"].median_ms, "runs": row["full"].runs} for row in rows]


def met(name: str, runtime: str, share: float) -> dict[str, Any]:
    """One budget: what was planned, what was measured while planning, and three times after it."""
    model, inputs, begin = network(name), torch.randn(1, 3, 160, 160), time.perf_counter()
    row: dict[str, Any] = {"network": name, "runtime": runtime, "asked": share}
    try:
        result = prunus.prune(model, inputs, Budget(latency=share, runtime=runtime))  # type: ignore[arg-type]
    except BudgetNotMet as error:
        return {**row, "not_met": str(error), "seconds": time.perf_counter() - begin}
    seconds = time.perf_counter() - begin
    repeats = again(model, result.model, inputs, runtime)
    (budget,) = result.plan.provenance["budget"]
    return {
        **row,
        "seconds": seconds,
        "full_ms": budget["full"],
        "predicted": budget["predicted"] / budget["full"],
        "measured_while_planning": budget["achieved"] / budget["full"],
        "ratios": [r["small_ms"] / r["full_ms"] for r in repeats],
        "repeats": repeats,
        "macs": result.after.macs / result.before.macs,
        "parameters": result.after.parameters / result.before.parameters,
        "widths": result.plan.counts(),
        "measurements": result.plan.provenance["latency"]["measured"],
    }


def equal_macs(name: str, runtime: str) -> dict[str, Any]:
    """Half of the MACs: uniformly, and with the least latency that still has so many MACs."""
    model, inputs = network(name), torch.randn(1, 3, 160, 160)
    graph = prunus.trace(model, inputs)
    scores = prunus.score(model, graph, "l1")
    uniform = prunus.remove(model, graph, prunus.allocate(graph, scores, Budget(macs=0.5), "uniform"))[0]
    timed = prunus.time_network(model, graph, inputs, runtime)
    fastest = None
    for percent in range(70, 30, -1):  # less and less latency, as long as the MACs are used up
        try:
            plan = prunus.allocate(timed, scores, Budget(macs=0.5, latency=percent / 100, tolerance=0.02), "knapsack")
        except BudgetNotMet:
            break
        if plan.predicted.macs < 0.97 * 0.5 * graph.cost().macs:
            break
        fastest = plan
    if fastest is None:
        return {"network": name, "runtime": runtime, "not_met": "no plan of half of the MACs is predicted to take at most 70 %"}
    aware = prunus.remove(model, graph, fastest)[0]
    with NetworkTimer(inputs, runtime, Timing(), seconds=6.0) as timer:
        rows = [timer({"full": model, "uniform": uniform, "aware": aware}) for _ in range(REPEATS)]
    ratios = {which: [r[which].median_ms / r["full"].median_ms for r in rows] for which in ("uniform", "aware")}
    macs = {"uniform": prunus.trace(uniform, inputs).cost().macs, "aware": prunus.trace(aware, inputs).cost().macs}
    shares = {which: value / graph.cost().macs for which, value in macs.items()}
    return {"network": name, "runtime": runtime, "macs": shares, "ratios": ratios, "widths": fastest.counts()}


def table(cases: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = [
        "| network | runtime | asked | predicted | measured after planning (3) | worst off | MACs left | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in (case for key, case in cases.items() if EQUAL_MACS not in key):
        head = f"| {row['network']} | {row['runtime']} | {row['asked']:.2f} |"
        if "not_met" in row:
            lines.append(f"{head} not met: {row['not_met']} | | | | {row['seconds']:.0f} |")
            continue
        worst = max(abs(ratio / row["asked"] - 1) for ratio in row["ratios"])
        ratios = ", ".join(f"{ratio:.3f}" for ratio in row["ratios"])
        lines.append(f"{head} {row['predicted']:.3f} | {ratios} | {worst:.1%} | {row['macs']:.1%} | {row['seconds']:.0f} |")
    lines += [
        "",
        "Half of the MACs: share of the full network's latency, median of three processes.",
        "",
        "| network | runtime | uniform | latency-aware | faster by |",
        "|---|---|---|---|---|",
    ]
    for row in (case for key, case in cases.items() if EQUAL_MACS in key):
        head = f"| {row['network']} | {row['runtime']} |"
        if "not_met" in row:
            lines.append(f"{head} {row['not_met']} | | |")
            continue
        uniform, aware = (statistics.median(row["ratios"][which]) for which in ("uniform", "aware"))
        lines.append(
            f"{head} {uniform:.3f} ({row['macs']['uniform']:.1%} of the MACs) | {aware:.3f} ({row['macs']['aware']:.1%}) | "
            f"{1 - aware / uniform:.1%} |"
        )
    return "\n".join(lines) + "\n"


COLOURS = {"resnet18": "#1b6ca8", "mobilenet_v2": "#b3541e", "vgg16_bn": "#3d7a37"}


def svg(cases: dict[str, Any]) -> str:
    """Predicted against measured latency of every plan that was timed, as shares of the full network's."""
    size, edge = 520, 60

    def at(x: float, y: float) -> tuple[float, float]:
        return edge + size * x, edge + size * (1 - y)

    parts = [f'<path d="M{edge} {edge + size}L{edge + size} {edge}" stroke="#999" stroke-dasharray="4"/>']
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        (x, y), (left, down) = at(tick, 0), at(0, tick)
        parts.append(f'<path d="M{x} {y}V{edge}M{left} {down}H{edge + size}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{left - 8}" y="{down + 4}" text-anchor="end">{tick:g}</text>')
    for number, (name, runtime) in enumerate(itertools.product(NETWORKS, RUNTIMES)):
        rows = [c for k, c in cases.items() if k.startswith(f"{name} {runtime} ") and "measurements" in c]
        points = [
            (m["predicted_ms"] / row["full_ms"], m["measured_ms"] / row["full_ms"])
            for row in rows
            for m in row["measurements"]
            if m["predicted_ms"]
        ]
        look = f'fill="{COLOURS[name] if runtime == "eager" else "none"}" stroke="{COLOURS[name]}" stroke-width="2"'
        marks = [at(x, y) for x, y in points] + [(edge + 20, edge + 16 + 20 * number)]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {look}/>' for x, y in marks]
        parts.append(f'<text x="{edge + 32}" y="{edge + 20 + 20 * number}">{name}, {runtime}</text>')
    parts.append(f'<text x="{edge + size / 2}" y="{size + edge + 44}" text-anchor="middle">predicted before measuring</text>')
    parts.append(f'<text x="16" y="{edge + size / 2}" transform="rotate(-90 16 {edge + size / 2})">measured</text>')
    parts.append(f'<text x="{edge}" y="30" font-size="15">Latency of plans, as a share of the full network&#8217;s</text>')
    box = f'viewBox="0 0 {size + 100} {size + 120}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def main(arguments: list[str]) -> None:
    warnings.simplefilter("ignore", PrunusWarning)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"environment": {}, "cases": {}}
    cases: dict[str, Any] = result["cases"]
    every = [f"{n} {r} {s}" for n, r, s in itertools.product(NETWORKS, RUNTIMES, (*SHARES, EQUAL_MACS))]
    wanted = [key for key in every if all(word in key for word in arguments)] if arguments != ["--page"] else []
    for key in wanted:
        if key in cases:
            continue
        name, runtime, share = key.split(" ", 2)
        cases[key] = equal_macs(name, runtime) if share == EQUAL_MACS else met(name, runtime, float(share))
        result["environment"] = environment()
        ordered = {key: cases[key] for key in every if key in cases}
        write_atomically(RESULT, (json.dumps({**result, "cases": ordered}, indent=1) + "\n").encode())
        print(key, {k: v for k, v in cases[key].items() if k in ("ratios", "predicted", "seconds", "not_met")}, flush=True)
    ordered = {key: cases[key] for key in every if key in cases}
    write_atomically(RESULT.with_suffix(".md"), table(ordered).encode())
    write_atomically(RESULT.with_suffix(".svg"), svg(ordered).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
