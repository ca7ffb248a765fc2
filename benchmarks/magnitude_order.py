"""Filters of the smallest L1 norm, random ones and those of the largest: which are missed least?

    python benchmarks/magnitude_order.py [--seeds 5]

After Li et al. 2016. Digits network, 15 epochs of training; half of every layer's filters is removed: the smallest by L1 norm,
random ones, the largest. Test accuracy right after the removal, and behind 3 epochs of fine-tuning (rate 0.02, the same data in
the same order for the three). Claim tried: smallest are missed less than random, and random less than largest.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from _during_training import EXAMPLE, accuracy, dots, fit, fresh, mean, split, store

import prunus

EPOCHS, TUNING, KEPT = 15, 3, 0.5
WAYS = ("smallest", "random", "largest")


def one(seed: int) -> dict[str, dict[str, float]]:
    """Accuracies of every way."""
    data, test = split()
    model = fresh(seed)
    fit(model, data, EPOCHS, seed)
    graph = prunus.trace(model, EXAMPLE)
    norms = prunus.score(model, graph, "l1")
    scores = {
        "smallest": norms,
        "random": prunus.score(model, graph, "random", seed=seed),
        "largest": prunus.Scores({name: -values for name, values in norms.by_group.items()}, "l1, reversed"),
    }
    found: dict[str, dict[str, float]] = {}
    for name in WAYS:
        plan = prunus.allocate(graph, scores[name], prunus.Budget(channels=KEPT), "uniform")
        small, _ = prunus.remove(model, graph, plan)
        found[name] = {"right after": accuracy(small, test)}
        fit(small, data, TUNING, seed + 1, lr=0.02)
        found[name]["fine-tuned"] = accuracy(small, test)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    torch.set_num_threads(1)
    parts = [one(seed) for seed in range(parser.parse_args().seeds)]
    rows: dict[str, Any] = {
        name: {when: mean([part[name][when] for part in parts]) for when in ("right after", "fine-tuned")} for name in WAYS
    }
    store("magnitude_order", {"kept": KEPT, "epochs": [EPOCHS, TUNING], "seeds": len(parts), "rows": rows})
    drawn = {f"{name}, {when}": [100 * v for v in row["values"]] for name, whens in rows.items() for when, row in whens.items()}
    dots("magnitude_order", "Digits, half of every layer's filters removed by L1 norm", "test accuracy, %", drawn)
    for label, values in drawn.items():
        print(label, *(f"{value:.1f}" for value in values))


if __name__ == "__main__":
    main()
