"""AOFP on the digits network: is what it silences less harmful than chance, and is a widened, re-designed network better?

    python benchmarks/aofp.py [--seeds 3]

*Search* (after Ding et al. 2019): a trained network (15 epochs) is searched at a threshold of 0.01 with 60 steps per half, at
a constant rate of 1e-3, towards 60 % of the multiply-adds, 40 epochs at most. Then its plan is tried on the network as it was
before the search: the loss with these channels silenced, against 20 random plans of the same widths. Claim tried: lower, by a
one-sided test (p = share of all 21 plans that are at least as good; at most 0.05 where it is the best but none).

*Re-design*: a network 1.5 times as wide is trained for 15 epochs, searched for 30 epochs with a threshold of 0.05 and 20 steps
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
from prunus.sparsity import SPARSITY_METHODS

TRAINING, FINE_TUNING, DRAWS = 15, 10, 20
SEARCH = {"threshold": 0.01, "steps_per_half": 60, "start": 0}
SEARCH_EPOCHS, SEARCH_RATE = 40, {"lr": 1e-3, "schedule": "constant", "warmup_epochs": 0}
REDESIGN = {"threshold": 0.05, "steps_per_half": 20, "start": 0}
REDESIGN_EPOCHS, WIDER = 30, 1.5


def searched(seed: int) -> dict[str, Any]:
    """The search, and what it silences against random plans."""
    data, test = split()
    model = fresh(seed)
    fit(model, data, TRAINING, seed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = accuracy(model, test)
    budget = prunus.Budget(macs=0.6, tolerance=0.1)
    method = SPARSITY_METHODS["aofp"].build("paper", **SEARCH)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", prunus.PrunusWarning)
        finished, graph, plan = pruned_by(method, model, data, budget, SEARCH_EPOCHS, seed, **SEARCH_RATE)
    small, _ = prunus.remove(finished, graph, plan)
    original = fresh(seed)
    original.load_state_dict(before)
    harm = loss(prunus.silence(original, graph, plan), data)
    draws = [loss(prunus.silence(original, graph, random_plan(graph, plan, 1000 * seed + i)), data) for i in range(DRAWS)]
    return {
        "widths": plan.counts(),
        "macs": plan.predicted.macs / graph.cost().macs,
        "by_search_alone": not said,
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
    method = SPARSITY_METHODS["aofp"].build("paper", **REDESIGN)
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
    for seed in seeds:
        searches.append(searched(seed))
        print("search", seed, {k: v for k, v in searches[-1].items() if k != "loss_random"}, flush=True)
    designs = []
    for seed in seeds:
        designs.append(redesigned(seed))
        print("re-design", seed, designs[-1], flush=True)
    names = ("plain", "redesigned", "its widths from scratch")
    summary = {name: mean([design[name] for design in designs]) for name in names}
    store("aofp", {"search": searches, "redesign": designs, "redesign_accuracy": summary})
    rows = {}
    for seed, found in zip(seeds, searches, strict=True):
        rows[f"seed {seed}: searched"], rows[f"seed {seed}: {DRAWS} random plans"] = (
            [found["loss_silenced"]],
            found["loss_random"],
        )
    dots("aofp", "Loss of the trained digits network, channels silenced", "cross entropy on the training images", rows)


if __name__ == "__main__":
    main()
