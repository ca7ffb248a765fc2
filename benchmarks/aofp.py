"""AOFP on the digits network: is what it silences less harmful than chance, and is a widened, re-designed network better?

    python benchmarks/aofp.py [--seeds 3]

*Search* (after Ding et al. 2019): a trained network (15 epochs) is searched for 40 epochs, 10 steps per half, at a constant
rate of 0.01, for each of three harm thresholds (0.01 is the paper's), with no budget in sight: the widths come out by themselves.
Then what was silenced is tried on the network as it was before the search: its loss with these channels silenced, against 20
random choices of the same widths. Claim tried: lower, by a one-sided test (p = share of all 21 that are at least as good; 1/21
where the search beats them all).

*Re-design*: a network 1.5 times as wide is trained for 15 epochs, searched for 30 epochs with a threshold of 0.15 and 10 steps
per half towards the multiply-adds of the plain network (an absolute budget), cut and fine-tuned for 10. Beside it: the plain
network trained for as many epochs (55), and the widths that were found, trained from scratch for as many. Claim tried: more
accurate at equal cost.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch
from _during_training import EXAMPLE, accuracy, dots, fit, fresh, loss, mean, pruned_by, random_plan, split, store
from torch import nn

import prunus
from prunus.sparsity.aofp import AOFP
from prunus.training_hooks import SparsityTask

TRAINING, FINE_TUNING, DRAWS = 15, 10, 20
THRESHOLDS = (0.01, 0.05, 0.15)
SEARCH_EPOCHS, SEARCH_RATE = 40, {"lr": 0.01, "schedule": "constant", "warmup_epochs": 0}
REDESIGN_EPOCHS, WIDER = 30, 1.5


def searched(seed: int, threshold: float) -> dict[str, Any]:
    """The search, and what it silenced against random choices."""
    data, test = split()
    model = fresh(seed)
    fit(model, data, TRAINING, seed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = accuracy(model, test)
    method = AOFP(threshold=threshold, steps_per_half=10, start=0, stop_at_budget=False)
    graph = prunus.trace(model, EXAMPLE)
    method.prepare(model, graph, SparsityTask(prunus.Budget(macs=0.5), EXAMPLE, seed))
    fit(model, data, SEARCH_EPOCHS, seed, method=method, **SEARCH_RATE)
    progress = method.progress()
    found = prunus.PruningPlan({name: mask.clone() for name, mask in method.left().items()}, graph.cost())
    ended = all(search.over_after(method.patience) for search in method.searches.values())
    small, _ = prunus.remove(method.finish(), graph, found)
    original = fresh(seed)
    original.load_state_dict(before)
    harm = loss(prunus.silence(original, graph, found), data)
    draws = [loss(prunus.silence(original, graph, random_plan(graph, found, 1000 * seed + i)), data) for i in range(DRAWS)]
    return {
        "seed": seed,
        "threshold": threshold,
        "widths": dict(progress.widths),
        "macs": progress.macs / graph.cost().macs,
        "every_layer_ended": ended,
        "accuracy_before": whole,
        "accuracy_after_search": accuracy(small, test),
        "loss_silenced": harm,
        "loss_random": draws,
        "p": (1 + sum(draw <= harm for draw in draws)) / (1 + DRAWS),
    }


def redesigned(seed: int) -> dict[str, Any]:
    """The widened network brought back to the plain one's multiply-adds, and what it stands beside."""
    data, test = split()
    plain = fresh(seed)
    target = prunus.trace(plain, EXAMPLE).cost().macs
    epochs = TRAINING + REDESIGN_EPOCHS + FINE_TUNING
    fit(plain, data, epochs, seed)
    wide = fresh(seed, WIDER)
    fit(wide, data, TRAINING, seed)
    method = AOFP(threshold=0.15, steps_per_half=10, start=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", prunus.PrunusWarning)
        finished, graph, plan = pruned_by(method, wide, data, prunus.Budget(macs=target), REDESIGN_EPOCHS, seed, lr=0.01)
    small, _ = prunus.remove(finished, graph, plan)
    scratch, _ = prunus.remove(finished, graph, plan)
    fit(small, data, FINE_TUNING, seed, lr=0.02)
    torch.manual_seed(seed)
    for module in scratch.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            module.reset_parameters()
    fit(scratch, data, epochs, seed)
    return {
        "widths": plan.counts(),
        "macs": plan.predicted.macs,
        "plain_macs": target,
        "by_search_alone": not said,
        "plain": accuracy(plain, test),
        "redesigned": accuracy(small, test),
        "its widths from scratch": accuracy(scratch, test),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    searches = []
    for threshold in THRESHOLDS:
        for seed in seeds:
            searches.append(searched(seed, threshold))
            print({key: value for key, value in searches[-1].items() if key != "loss_random"}, flush=True)
    designs = []
    for seed in seeds:
        designs.append(redesigned(seed))
        print("re-design", seed, designs[-1], flush=True)
    names = ("plain", "redesigned", "its widths from scratch")
    summary = {name: mean([design[name] for design in designs]) for name in names}
    store("aofp", {"search": searches, "redesign": designs, "redesign_accuracy": summary})
    plot(searches)


def plot(searches: list[dict[str, Any]]) -> None:
    """Every search and, below it, the random choices of the same widths."""
    rows: dict[str, list[float]] = {}
    for found in searches:
        where = f"threshold {found['threshold']}, seed {found['seed']}"
        rows[f"{where}: AOFP"], rows[f"{where}: random"] = [found["loss_silenced"]], found["loss_random"]
    dots("aofp", "Trained digits network, channels silenced", "cross entropy on the training images", rows)


if __name__ == "__main__":
    main()
