"""How the time of trace + plan + remove grows with the channels and with the layers of a network.

    python benchmarks/scaling.py [--runs 7]

A plain and a residual network of 3x3 convolutions, batch norms and rectifiers: 32 channels and 20 such layers, then up to 10
times the channels and up to 10 times the layers. Half the MACs go, by L1, ranked over the whole network. CPU seconds on one
thread, the median of several runs that take turns over all sizes. Target: 10 times the size takes at most 12 times the time. The
weights of a layer, which scoring and removal read, grow with the square of its channels: that part is linear in what it reads.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.files import write_atomically
from prunus.pipeline.result import environment

RESULT = Path(__file__).parent / "results" / "scaling.json"
PLOT = RESULT.with_suffix(".svg")
CHANNELS, LAYERS = 32, 20
FACTORS = (1, 2, 3, 5, 7, 10)
TARGET = 12.0


class Block(nn.Module):
    """Two convolutions, with a way around them if ``residual``."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(x + y if self.residual else y)


def network(kind: str, channels: int, layers: int) -> nn.Module:
    """``layers`` convolutions of ``channels`` channels between a first one and a classifier."""
    stem = (nn.Conv2d(3, channels, 3, padding=1), nn.ReLU())
    blocks = (Block(channels, kind == "residual") for _ in range(layers // 2))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)).eval()


def measure(model: nn.Module, x: Tensor) -> dict[str, float]:
    """CPU seconds of every step."""
    seconds: dict[str, float] = {}
    gc.collect()
    begin = time.process_time()

    def lap(name: str) -> None:
        nonlocal begin
        now = time.process_time()
        seconds[name], begin = now - begin, now

    graph = prunus.trace(model, x)
    lap("trace")
    plan = prunus.allocate(graph, prunus.score(model, graph, "l1"), prunus.Budget(macs=0.5))
    lap("plan")
    prunus.remove(model, graph, plan)
    lap("remove")
    return {**seconds, "total": sum(seconds.values())}


def curves(runs: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Kind of network -> what grows -> a row for every factor."""
    x = torch.randn(1, 3, 16, 16)
    sizes = {"channels": lambda f: (CHANNELS * f, LAYERS), "layers": lambda f: (CHANNELS, LAYERS * f)}
    points = [(kind, axis, factor) for kind in ("plain", "residual") for axis in sizes for factor in FACTORS]
    times: dict[tuple[str, str, int], list[dict[str, float]]] = {point: [] for point in points}
    for run in range(runs + 1):  # the first run warms up
        for kind, axis, factor in points:
            torch.manual_seed(run)
            row = measure(network(kind, *sizes[axis](factor)), x)
            if run:
                times[kind, axis, factor].append(row)
        print(f"run {run} of {runs}", flush=True)
    result: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (kind, axis, factor), rows in times.items():
        channels, layers = sizes[axis](factor)
        medians = {step: statistics.median(r[step] for r in rows) for step in rows[0]}
        spread = statistics.stdev(r["total"] for r in rows) if len(rows) > 1 else 0.0
        entry = {"factor": factor, "channels": channels, "layers": layers, "seconds": medians, "std": spread}
        result.setdefault(kind, {}).setdefault(axis, []).append(entry)
    for rows in (rows for axes in result.values() for rows in axes.values()):
        for row in rows:
            row["times the smallest"] = row["seconds"]["total"] / rows[0]["seconds"]["total"]
    return result


def svg(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Both curves of every network on logarithmic axes, above them the target, dashed: times the size, times the time."""
    width, height, left, top = 640, 420, 64, 24
    across, up = width - left - 150, height - top - 56

    def at(size: float, longer: float) -> str:
        return f"{left + across * math.log10(size):.1f},{top + up * (1 - math.log10(longer) / math.log10(16)):.1f}"

    def text(where: str, words: str, anchor: str = "start") -> str:
        x, y = where.split(",")
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#333">{words}</text>'

    bound = [at(f, TARGET ** math.log10(f)) for f in (1, 10)]
    parts = [f'<polyline points="{" ".join(bound)}" fill="none" stroke="#999" stroke-dasharray="6 4"/>']
    parts += [text(at(10 * 1.03, TARGET), f"target: {TARGET:.0f} times at 10")]
    for tick in FACTORS:
        parts += [f'<path d="M{at(tick, 1)} L{at(tick, 16)} M{at(1, tick)} L{at(10, tick)}" stroke="#e5e5e5"/>']
        x, y = at(tick, 1).split(",")
        parts += [text(f"{x},{float(y) + 20:.1f}", str(tick), "middle"), text(at(0.95, tick), str(tick), "end")]
    labels: list[tuple[float, str, str]] = []
    colours = iter(("#0b6e4f", "#1f77b4", "#c1440e", "#7b3fa0"))
    for kind, axes in results.items():
        for axis, rows in axes.items():
            colour, end = next(colours), max(rows[-1]["times the smallest"], 1.0)
            points = " ".join(at(row["factor"], max(row["times the smallest"], 1.0)) for row in rows)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
            labels.append((float(at(10, end).split(",")[1]), f"{kind}, {axis}: {end:.1f}", colour))
    below = 0.0
    for y, words, colour in sorted(labels):  # apart, where curves end together
        below = max(y, below + 15)
        parts.append(text(f"{left + across * 1.03:.1f},{below:.1f}", words).replace("#333", colour))
    parts.append(text(f"{left + across / 2},{height - 12}", "times the channels, or times the layers", "middle"))
    parts.append(
        f'<text transform="translate(18,{top + up / 2}) rotate(-90)" text-anchor="middle" fill="#333">times the time</text>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = curves(args.runs)
    worst = max(rows[-1]["times the smallest"] for axes in results.values() for rows in axes.values())
    header = {"command": "python benchmarks/scaling.py", **vars(args), "unit": "CPU seconds", "environment": environment()}
    for kind, axes in results.items():
        for axis, rows in axes.items():
            told = ", ".join(f"{r['factor']}x {r['seconds']['total']:.3f} s ({r['times the smallest']:.2f})" for r in rows)
            print(f"{kind}, {axis}: {told}")
    print(f"10 times the size takes at most {worst:.1f} times the time (target {TARGET:.0f})")
    summary = {"worst ratio at 10x": worst, "target": TARGET, "met": worst <= TARGET}
    document = {"header": header, **summary, "results": results}
    write_atomically(RESULT, (json.dumps(document, indent=2) + "\n").encode())
    write_atomically(PLOT, svg(results).encode())


if __name__ == "__main__":
    main()
