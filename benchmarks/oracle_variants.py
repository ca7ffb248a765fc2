"""The oracle by the absolute change of the loss and by the change itself: which prunes better without any training behind?

    python benchmarks/oracle_variants.py [--seeds 5]

Digits network, 3 epochs of training (a network that knows its images by heart loses by every removal, and both oracles are then
one). Channels go one after another, all over the network; after each the oracle ranks the others anew, on 320 training images:
the lowest absolute change goes (oracle-abs), or the lowest change, so that what lowers the loss goes first (oracle-loss).
Accuracy on all 1,300 training images behind each of the first 40 removals, and its mean over those. Claim tried (Molchanov et
al. 2016): oracle-abs prunes better.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from _during_training import EXAMPLE, accuracy, dots, fit, fresh, mean, split, store
from torch.utils.data import TensorDataset

import prunus
from prunus.types import PruningPlan

EPOCHS, REMOVED, IMAGES = 3, 40, 320
WAYS = {"oracle-abs": "absolute", "oracle-loss": "signed"}


def one(seed: int) -> dict[str, Any]:
    """Training accuracy of every way, removal by removal."""
    data, _ = split()
    model = fresh(seed)
    fit(model, data, EPOCHS, seed)
    model.eval()
    graph = prunus.trace(model, EXAMPLE)
    images, labels = (tensor[:IMAGES] for tensor in data.tensors)
    batches = [(images, labels)]
    found: dict[str, Any] = {"whole": accuracy(model, data)}
    for name, greedy in WAYS.items():
        order = prunus.score(model, graph, "oracle", data=batches, greedy=greedy).by_group
        found[name] = [_left(model, graph, order, removed, data) for removed in range(1, REMOVED + 1)]
    return found


def _left(model: torch.nn.Module, graph: prunus.ChannelGraph, order: Any, removed: int, data: TensorDataset) -> float:
    """Accuracy when the first so many channels of the order are silent."""
    plan = PruningPlan({name: steps >= removed for name, steps in order.items()}, graph.cost())
    return accuracy(prunus.silence(model, graph, plan), data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    torch.set_num_threads(1)
    parts = []
    for seed in range(parser.parse_args().seeds):
        parts.append(one(seed))
        print(seed, {name: round(statistics.mean(parts[-1][name]), 4) for name in WAYS}, flush=True)
    rows = {name: {"mean_accuracy": mean([statistics.mean(part[name]) for part in parts])} for name in WAYS}
    for name, row in rows.items():
        for removed in (10, 20, 40):
            row[f"behind_{removed}"] = mean([part[name][removed - 1] for part in parts])
        row["curves"] = [part[name] for part in parts]
    whole = mean([part["whole"] for part in parts])
    store("oracle_variants", {"removed": REMOVED, "images": IMAGES, "seeds": len(parts), "whole": whole, "rows": rows})
    drawn = {name: [100 * value for value in row["mean_accuracy"]["values"]] for name, row in rows.items()}
    dots("oracle_variants", "Digits: 40 removals by two oracles", "training accuracy, mean over the removals, %", drawn)


if __name__ == "__main__":
    main()
