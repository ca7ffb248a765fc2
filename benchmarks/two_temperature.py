"""A mask learned on the digits 0 to 4, used for 5 to 9 with ten images a class, against random masks of the same widths.

    python benchmarks/two_temperature.py [--seeds 3]

After Colombo and Gao 2021 (a reconstruction: unverified). Two-temperature selection towards half of the multiply-adds, for 30
epochs on five of the classes, with the weights drawn anew at every step (preset transfer) and with weights that train along
(preset short). The architecture that comes out gets fresh weights, which train for 100 epochs on fifty images of the other
five classes; with the kept weights it is also tried as it is, only its head fresh (transfer learning). Beside each: five
random masks of the same widths (with fresh weights any mask of the same widths is the same architecture: what differs then
are draws of the weights alone), uniform widths of as many multiply-adds, and the whole network. Mean over the test images of
5 to 9.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from typing import Any

import torch
from _during_training import EXAMPLE, accuracy, dots, fit, fresh, mean, pruned_by, random_plan, split, store
from torch import nn
from torch.utils.data import TensorDataset

import prunus
from prunus.sparsity import SPARSITY_METHODS

FIRST, SECOND, SHOTS, MASKS = range(5), range(5, 10), 10, 5
SELECTION_EPOCHS, FEW_SHOT_EPOCHS = 30, 100
BUDGET = prunus.Budget(macs=0.5, tolerance=0.1)


def few(data: TensorDataset, seed: int) -> TensorDataset:
    """Ten images of each class."""
    images, labels = data.tensors
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.nonzero(labels == c)[:, 0] for c in range(len(SECOND))]
    rows = torch.cat([rows[torch.randperm(len(rows), generator=generator)[:SHOTS]] for rows in chosen])
    return TensorDataset(images[rows], labels[rows])


def reset(model: nn.Module, seed: int, only_head: bool = False) -> nn.Module:
    """Fresh weights, of the head alone or of everything."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear) or (not only_head and isinstance(module, (nn.Conv2d, nn.BatchNorm2d))):
            module.reset_parameters()
    return model


def tried(model: nn.Module, seed: int) -> float:
    """Test accuracy on 5 to 9 behind training on a few images."""
    data, test = split(SECOND)
    fit(model, few(data, seed), FEW_SHOT_EPOCHS, seed, lr=0.02)
    return accuracy(model, test)


def one(seed: int) -> dict[str, Any]:
    """All rows of a seed."""
    data, _ = split(FIRST)
    found: dict[str, Any] = {"whole network, fresh weights": tried(fresh(seed, classes=5), seed), "widths": {}}
    whole = fresh(seed, classes=5)
    fit(whole, data, SELECTION_EPOCHS, seed)
    found["whole network, weights of 0-4"] = tried(reset(copy.deepcopy(whole), seed, only_head=True), seed)
    graph = prunus.trace(fresh(seed, classes=5), EXAMPLE)
    scores = prunus.score(fresh(seed, classes=5), graph, "random", seed=seed)
    uniform = prunus.allocate(graph, scores, BUDGET, "uniform")
    found["uniform widths, fresh weights"] = tried(reset(prunus.remove(fresh(seed, classes=5), graph, uniform)[0], seed), seed)
    for name, preset in (("resampled", "transfer"), ("kept", "short")):
        method = SPARSITY_METHODS["two_temperature"].build(preset)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", prunus.PrunusWarning)
            model, graph, plan = pruned_by(method, fresh(seed, classes=5), data, BUDGET, SELECTION_EPOCHS, seed)
        found["widths"][name] = {**plan.counts(), "budget_met_by_gates": not said}
        small, _ = prunus.remove(model, graph, plan)
        if name == "kept":
            found["kept: selected, weights of 0-4"] = tried(reset(small, seed, only_head=True), seed)
            draws = [random_plan(graph, plan, 100 * seed + i) for i in range(MASKS)]
            masked = [reset(prunus.remove(whole, graph, draw)[0], seed, only_head=True) for draw in draws]
            found["kept: random masks, weights of 0-4"] = statistics.mean(tried(network, seed) for network in masked)
        found[f"{name}: selected widths, fresh weights"] = tried(reset(small, seed), seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    torch.set_num_threads(1)
    parts = []
    for seed in range(parser.parse_args().seeds):
        parts.append(one(seed))
        print(seed, parts[-1], flush=True)
    names = [name for name in parts[0] if name != "widths"]
    rows = {name: mean([part[name] for part in parts]) for name in names}
    store(
        "two_temperature", {"shots": SHOTS, "seeds": len(parts), "accuracy": rows, "widths": [part["widths"] for part in parts]}
    )
    accuracies = {name: [100 * part[name] for part in parts] for name in names}
    dots("two_temperature", "Digits 5 to 9, ten images a class, at half of the MACs", "test accuracy, %", accuracies)


if __name__ == "__main__":
    main()
