"""Filters that others can replace: does the geometric median find them, and does the L1 norm?

    python benchmarks/replaceable_filters.py [--seeds 50]

After He et al. 2019 (FPGM). A layer of 16 random filters of three channels; eight of them are made copies of the one of median
norm, with their outgoing weights split so that the network computes what one of them computes. Six are to go. Figure of a draw:
the share of those six that are copies (chance: one half; right: all, for the others can't be replaced). One draw a seed.
"""

from __future__ import annotations

import argparse

import torch
from _during_training import dots, mean, store
from torch import nn

import prunus

FILTERS, COPIES, REMOVED = 16, 8, 6
CRITERIA = ("fpgm", "l1", "l2", "random")


def one(seed: int) -> dict[str, float]:
    """Share of copies among what every criterion removes first."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, FILTERS, 3, bias=False), nn.ReLU(), nn.Conv2d(FILTERS, 4, 3))
    first, second = model[0], model[2]
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
    copies = torch.randperm(FILTERS, generator=generator)[:COPIES]
    with torch.no_grad():
        first.weight.copy_(torch.randn(first.weight.shape, generator=generator))
        norms = first.weight.abs().sum((1, 2, 3))
        median = norms.argsort()[FILTERS // 2]
        first.weight[copies] = first.weight[median].clone()
        second.weight.copy_(torch.randn(second.weight.shape, generator=generator))
        second.weight[:, copies] = second.weight[:, median : median + 1].clone() / COPIES
    graph = prunus.trace(model, torch.zeros(1, 3, 8, 8))
    same = set(copies.tolist()) | {int(median)}
    found: dict[str, float] = {}
    for criterion in CRITERIA:
        given = {"seed": seed} if criterion == "random" else {}
        (scores,) = (s for name, s in prunus.score(model, graph, criterion, **given).by_group.items() if name == "0")
        found[criterion] = sum(int(c) in same for c in scores.argsort(stable=True)[:REMOVED]) / REMOVED
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parts = [one(seed) for seed in range(parser.parse_args().seeds)]
    rows = {criterion: mean([part[criterion] for part in parts]) for criterion in CRITERIA}
    store("replaceable_filters", {"filters": FILTERS, "copies": COPIES, "removed": REMOVED, "seeds": len(parts), "rows": rows})
    drawn = {criterion: [100 * value for value in row["values"]] for criterion, row in rows.items()}
    dots("replaceable_filters", "Copies among the six filters removed first", "%", drawn)
    for criterion, row in rows.items():
        print(f"{criterion}: {row['mean']:.3f} +- {row['std'] or 0:.3f}")


if __name__ == "__main__":
    main()
