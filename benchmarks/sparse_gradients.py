"""Sparse activation gradients on the digits network: accuracy, zeros, and what it costs in time on dense kernels.

    python benchmarks/sparse_gradients.py [--seeds 3]

Fifteen epochs at a share of 0.9 below the threshold, against plain training and against a hard threshold that zeroes as many
entries of the same gradient as the unbiased rule does on average. Claims tried: accuracy within
one point of plain training; the hard threshold is biased and worse. Time is the ratio of the epochs' seconds in the same process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from _during_training import accuracy, dots, fit, fresh, mean, split, store
from torch import Tensor

from prunus.training import sparse_gradients

EPOCHS, SHARE = 15, 0.9


def hard(gradient: Tensor, threshold: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The smallest magnitudes are zero, as many as the unbiased rule is expected to zero; the rest stays: biased."""
    magnitude = gradient.abs().flatten()
    zeros = int((1 - magnitude / threshold).clamp_min(0).sum())
    pruned = gradient.flatten().clone()
    pruned[magnitude.argsort()[:zeros]] = 0
    return pruned.reshape(gradient.shape)


@contextmanager
def pruned_by(rule: Callable[..., Tensor]) -> Iterator[None]:
    """Training prunes gradients by another rule meanwhile."""
    plain, sparse_gradients.prune_gradient = sparse_gradients.prune_gradient, rule
    try:
        yield
    finally:
        sparse_gradients.prune_gradient = plain


def one(seed: int) -> dict[str, dict[str, Any]]:
    """All rows of a seed."""
    data, test = split()
    found: dict[str, dict[str, Any]] = {}
    for name, share, rule in (
        ("plain training", 0.0, sparse_gradients.prune_gradient),
        ("unbiased, 0.9 below the threshold", SHARE, sparse_gradients.prune_gradient),
        ("hard threshold, as many zeros", SHARE, hard),
    ):
        model = fresh(seed)
        with pruned_by(rule):
            log = fit(model, data, EPOCHS, seed, sparse_gradients=share)
        last = log.epochs[-1].sparse_gradients
        found[name] = {
            "accuracy": accuracy(model, test),
            "train_loss": log.epochs[-1].loss,
            "seconds": sum(epoch.seconds for epoch in log.epochs),
            "saved": 0.0 if last is None else last["saved"],
            "layers": {} if last is None else last["layers"],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    torch.set_num_threads(1)
    parts = [one(seed) for seed in range(parser.parse_args().seeds)]
    names = list(parts[0])
    figures = ("accuracy", "train_loss", "seconds", "saved")
    rows = {name: {f: mean([part[name][f] for part in parts]) for f in figures} for name in names}
    plain = names[0]
    for name in names:
        rows[name]["time_ratio"] = mean([part[name]["seconds"] / part[plain]["seconds"] for part in parts])
    points = {name: rows[name]["accuracy"]["mean"] - rows[plain]["accuracy"]["mean"] for name in names[1:]}
    tree = {
        "epochs": EPOCHS,
        "seeds": len(parts),
        "rows": rows,
        "within_one_point": abs(points[names[1]]) <= 0.01,
        "hard_is_worse": points[names[2]] < points[names[1]],
        "layers_of_seed_0": {name: parts[0][name]["layers"] for name in names[1:]},
    }
    store("sparse_gradients", tree)
    accuracies = {name: [100 * part[name]["accuracy"] for part in parts] for name in names}
    dots("sparse_gradients", "Digits, 15 epochs: sparse activation gradients", "test accuracy, %", accuracies)
    for name in names:
        row = rows[name]
        print(name, *(f"{figure} {row[figure]['mean']:.4f}" for figure in (*figures, "time_ratio")), sep="  ")


if __name__ == "__main__":
    main()
