"""ISTA on scales: channels that are removed as constants change nothing, the same channels with their shift dropped do.

    python benchmarks/ista.py [--seeds 3]

Digits, three 3x3 convolutions without padding or pooling between (maps of 8, 6, 4 and 2 pixels), thirty epochs of training with
proximal steps on the scales. All channels whose scale is exactly zero are removed: once with their constants folded into what
reads them, once as Network Slimming drops them, scale and shift. Nothing is trained behind that. Claim tried: folding is exact.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from _during_training import BATCH, accuracy, dots, fit, mean, split, store
from torch import nn

import prunus
from prunus.reconstruction import fold_constants
from prunus.sparsity.ista import Ista
from prunus.training_hooks import SparsityTask

EPOCHS, STRENGTH = 30, 0.03
EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def one(seed: int) -> dict[str, float]:
    data, test = split()
    torch.manual_seed(seed)
    model = network()
    graph = prunus.trace(model, EXAMPLE)
    method = Ista(strength=STRENGTH)
    method.prepare(model, graph, SparsityTask(prunus.Budget(channels=0.6), EXAMPLE, seed))
    fit(model, data, EPOCHS, seed, method=method)
    keep = {name: mask if bool(mask.any()) else torch.arange(len(mask)) == 0 for name, mask in method.left().items()}
    plan = prunus.PruningPlan(keep, graph.cost())
    model = method.finish().double().eval()
    values = {name: torch.relu(model[i + 1].bias.detach()) for name, i in (("0", 0), ("3", 3), ("6", 6))}
    folded, _ = fold_constants(model, graph, plan, values, EXAMPLE.double())
    exact, dropped = (prunus.remove(m, graph, plan)[0] for m in (folded, model))
    images = torch.stack([test[i][0] for i in range(len(test))]).double()
    with torch.no_grad():
        difference = (exact(images) - model(images)).abs().max() / model(images).abs().max()
    found = {"before": accuracy(model.float(), test), "constants folded": accuracy(exact.float(), test)}
    gone = sum(int((~mask).sum()) for mask in keep.values()) / 80
    return {
        **found,
        "dropped": accuracy(dropped.float(), test),
        "removed": gone,
        "largest_relative_difference": float(difference),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    torch.set_num_threads(1)
    parts: list[dict[str, Any]] = [one(seed) for seed in range(parser.parse_args().seeds)]
    rows = {figure: mean([part[figure] for part in parts]) for figure in parts[0]}
    settings = {"epochs": EPOCHS, "strength": STRENGTH, "batch": BATCH, "seeds": len(parts)}
    store("ista", {**settings, "rows": rows})
    shown = {name: [100 * part[name] for part in parts] for name in ("before", "constants folded", "dropped")}
    dots("ista", "Digits: channels of scale zero removed, no fine-tuning", "test accuracy, %", shown)
    for figure, found in rows.items():
        print(figure, f"{found['mean']:.4g} +- {found['std'] or 0:.2g}", found["values"], sep="  ")


if __name__ == "__main__":
    main()
