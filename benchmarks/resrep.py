"""ResRep on the digits network: accuracy right after conversion, without any fine-tuning, at half of the MACs.

    python benchmarks/resrep.py [--seeds 3]

Fifteen epochs of plain training, then forty more: with compactors whose selected rows no longer hear the task (ResRep), with the
same compactors and penalty but no such resetting, and plain; the last one is pruned by L1. Nothing is trained or recalibrated
behind the removal. Claim tried: resetting is what makes the conversion nearly free at equal MACs.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch
from _during_training import EXAMPLE, accuracy, dots, fit, fresh, mean, split, store

import prunus
from prunus.errors import PrunusWarning
from prunus.sparsity.resrep import ResRep
from prunus.training_hooks import SparsityTask

FIRST, MORE = 15, 40
BUDGET = prunus.Budget(macs=0.5, tolerance=0.03)
OPTIONS: dict[str, Any] = {"strength": 2e-3, "warmup_epochs": 2.0, "interval": 10, "per_selection": 4}


class NoResetting(ResRep):
    """Compactors and penalty alone: no row is ever shielded from the task."""

    def select(self) -> None:
        """Select nothing."""


def one(seed: int) -> dict[str, dict[str, float]]:
    """Accuracy before and right after the removal, and what the removed rows' norms were."""
    data, test = split()
    base = fresh(seed)
    fit(base, data, FIRST, seed)
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    found: dict[str, dict[str, float]] = {}
    for name, method in (("gradient resetting", ResRep(**OPTIONS)), ("penalty alone", NoResetting(**OPTIONS))):
        model = fresh(seed)
        model.load_state_dict(state)
        graph = prunus.trace(model, EXAMPLE)
        method.prepare(model, graph, SparsityTask(BUDGET, EXAMPLE, seed))
        fit(model, data, MORE, seed + 1, method=method)
        plan, norms = method.plan(BUDGET), method.strengths()
        largest = max(float(norms[g][~keep].max()) for g, keep in plan.keep.items() if not bool(keep.all()))
        found[name] = removed(method.finish(), graph, plan, test) | {"largest_norm_removed": largest}
    model = fresh(seed)
    model.load_state_dict(state)
    fit(model, data, MORE, seed + 1)
    graph = prunus.trace(model, EXAMPLE)
    plan = prunus.allocate(graph, prunus.score(model, graph, "l1", normalisation="mean"), BUDGET)
    found["plain training, L1"] = removed(model, graph, plan, test)
    return found


def removed(model: Any, graph: prunus.ChannelGraph, plan: prunus.PruningPlan, test: Any) -> dict[str, float]:
    """Accuracy with and without the channels, and what is left of the MACs."""
    small, _ = prunus.remove(model, graph, plan)
    macs = plan.predicted.macs / graph.cost().macs
    return {"before": accuracy(model, test), "after": accuracy(small, test), "macs": macs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PrunusWarning)  # that rows haven't vanished is a figure of the table
    parts = [one(seed) for seed in range(parser.parse_args().seeds)]
    rows = {name: {figure: mean([part[name][figure] for part in parts]) for figure in parts[0][name]} for name in parts[0]}
    tree = {"epochs": [FIRST, MORE], "options": OPTIONS, "budget": "50 % of the MACs", "seeds": len(parts), "rows": rows}
    store("resrep", tree)
    dots(
        "resrep",
        "Digits at half of the MACs, no fine-tuning",
        "test accuracy right after removal, %",
        {name: [100 * part[name]["after"] for part in parts] for name in parts[0]},
    )
    for name, row in rows.items():
        print(name, *(f"{figure} {found['mean']:.4g} +- {found['std'] or 0:.2g}" for figure, found in row.items()), sep="  ")


if __name__ == "__main__":
    main()
