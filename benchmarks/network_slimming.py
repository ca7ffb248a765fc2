"""Network Slimming on the digits network: what the penalty does to the scales, and what pruning 40 % of the channels then costs.

    python benchmarks/network_slimming.py [--seeds 3]

Thirty epochs from scratch with and without the L1 penalty on the scales of batch norms; then 40 % of all channels go by their
scale, without any fine-tuning: the smallest of the whole network as the paper drops them, scale and shift; the same with the mean
of what they emit folded into what reads them, as recipes do (`fold_batches`); and folded, but the same share in every layer.
Claims tried: the histogram of the scales becomes bimodal, and pruning costs less.
"""

from __future__ import annotations

import argparse
from html import escape
from typing import Any

import torch
from _during_training import EXAMPLE, RESULTS, accuracy, fit, fresh, mean, split, store
from torch.utils.data import DataLoader

import prunus
from prunus.files import write_atomically
from prunus.reconstruction import compensate
from prunus.sparsity.slimming import NetworkSlimming
from prunus.training_hooks import SparsityTask

EPOCHS, STRENGTH = 30, 5e-3
BUDGET = prunus.Budget(channels=0.6)
BINS = 30
FIGURES = ("before", "dropped", "folded", "folded, evenly", "fewest channels of a layer")


def one(seed: int, strength: float) -> dict[str, Any]:
    """Accuracy before and after, and all scales, as shares of their largest."""
    data, test = split()
    model = fresh(seed)
    graph = prunus.trace(model, EXAMPLE)
    method = NetworkSlimming(strength=strength, weight_decay=0.0)
    method.prepare(model, graph, SparsityTask(BUDGET, EXAMPLE, seed))
    fit(model, data, EPOCHS, seed, method=method)
    scales = torch.cat(list(method.strengths().values()))
    plan = method.plan(BUDGET)
    small, _ = prunus.remove(method.finish(), graph, plan)
    loader = DataLoader(data, batch_size=256)
    even = prunus.allocate(graph, prunus.Scores(method.strengths(), "scales", comparable=True), BUDGET, "uniform")
    folded, evenly = (compensate(model, graph, p, loader).model for p in (plan, even))
    shares = (scales / scales.max()).tolist()
    found = {"before": accuracy(model, test), "dropped": accuracy(small, test), "folded": accuracy(folded, test)}
    found |= {"folded, evenly": accuracy(evenly, test), "fewest channels of a layer": min(plan.counts().values())}
    return {**found, "scales": [round(s, 5) for s in shares]}


def histogram(rows: dict[str, list[float]]) -> str:
    """One row of bars for every training: how many of the channels of all seeds have scales so large."""
    width, height, left = 640, 60 + 170 * len(rows), 50
    parts = ['<text x="12" y="24" font-size="14" font-weight="600">Scales of batch norms, as shares of the largest</text>']
    for i, (label, scales) in enumerate(rows.items()):
        counts = torch.histc(torch.tensor(scales), BINS, 0, 1).tolist()
        bottom, step = 190 + 170 * i, (width - left - 20) / BINS
        parts.append(f'<text x="{left}" y="{bottom - 128}">{escape(label)}</text>')
        for n, found in enumerate(counts):
            tall = 110 * found / max(counts)
            box = f'x="{left + n * step:.1f}" y="{bottom - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}"'
            parts.append(f'<rect {box} fill="#2a78d6"/>')
        parts.append(f'<line x1="{left}" y1="{bottom}" x2="{width - 20}" y2="{bottom}" stroke="#555"/>')
        parts.append(f'<text x="{left - 6}" y="{bottom - 104}" text-anchor="end" fill="#555">{int(max(counts))}</text>')
        for tick in (0, 0.5, 1):
            at = left + tick * (width - left - 20)
            parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">{tick:g}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    torch.set_num_threads(1)
    seeds = parser.parse_args().seeds
    kinds = {f"with the penalty ({STRENGTH:g})": STRENGTH, "without": 0.0}
    parts = {name: [one(seed, strength) for seed in range(seeds)] for name, strength in kinds.items()}
    rows: dict[str, Any] = {}
    for name, found in parts.items():
        scales = [s for part in found for s in part["scales"]]
        rows[name] = {figure: mean([part[figure] for part in found]) for figure in FIGURES}
        rows[name]["below_a_tenth_of_the_largest"] = sum(s < 0.1 for s in scales) / len(scales)
        rows[name]["scales"] = [part["scales"] for part in found]
    store("network_slimming", {"epochs": EPOCHS, "removed": "40 % of the channels", "seeds": seeds, "rows": rows})
    drawn = {name: [s for part in found for s in part["scales"]] for name, found in parts.items()}
    write_atomically(RESULTS / "network_slimming.svg", histogram(drawn).encode())
    for name, row in rows.items():
        figures = (f"{f} {row[f]['mean']:.4f} +- {row[f]['std'] or 0:.4f}" for f in FIGURES)
        print(name, *figures, f"below a tenth {row['below_a_tenth_of_the_largest']:.1%}", sep="  ")


if __name__ == "__main__":
    main()
