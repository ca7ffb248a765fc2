"""What a sparsity method adds to a training step: its time over that of plain training, in one process, step about step.

    python benchmarks/sparsity_overhead.py [--networks digits resnet20] [--rounds 15]

Two networks: three convolutions on 8x8 digits, where every call counts, and ResNet-20 on 32x32 images, where arithmetic does; 64
images a batch, one thread, random weights, preset `short`, which selects channels most often. A round is twenty steps of each
method with the end of an epoch (what soft pruning does there) behind them, each between twenty plain steps and twenty; the figure
is the median over the rounds of a method's CPU time over the mean of the plain ones beside it. CPU time, because on one thread
that is the time of a quiet machine. AOFP scores all layers in every step. Targets: 1.15 for slimming, ista, sfp and resrep, 2.2
for aofp. The row "compactors alone" is plain training of the network with ResRep's matrices in it: what can't be had for less, as
on the digits network they are 30 % more multiply-adds (on ResNet-20 6 %). Networks that aren't named keep what was measured
before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _digits_network import network
from _during_training import RESULTS, dots, store
from torch import Tensor, nn

import prunus
from prunus.sources import load_model
from prunus.sparsity import SPARSITY_METHODS
from prunus.training_hooks import SparsityMethod, SparsityTask

STEPS = 20
TARGETS = {"slimming": 1.15, "ista": 1.15, "sfp": 1.15, "resrep": 1.15, "aofp": 2.2}
OPTIONS: dict[str, dict[str, Any]] = {"aofp": {"steps_per_half": 10**9, "start": 0}}
COMPACTORS = "compactors alone"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits": (network, (1, 8, 8)),
    "resnet20": (lambda: load_model("cifar:resnet20"), (3, 32, 32)),
}


class Training:
    """Steps of one network, with a method or plain."""

    def __init__(self, build: Callable[[], nn.Module], shape: tuple[int, ...], name: str | None) -> None:
        torch.manual_seed(0)
        self.model = build().train()
        self.x, self.y = torch.randn(64, *shape), torch.arange(64) % 10
        self.method: SparsityMethod | None = None
        self.done = 0
        if name is not None:
            graph = prunus.trace(self.model, self.x[:2])
            method = SPARSITY_METHODS["resrep" if name == COMPACTORS else name].build("short", **OPTIONS.get(name, {}))
            method.prepare(self.model, graph, SparsityTask(prunus.Budget(macs=0.5, tolerance=0.1), self.x[:2]))
            method.begin(100_000 * STEPS, STEPS)
            self.method = None if name == COMPACTORS else method
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def seconds(self) -> float:
        """CPU time of an epoch of twenty steps."""
        start = time.process_time()
        for _ in range(STEPS):
            self._step()
        if self.method is not None:
            self.method.end_epoch(0.0)
        return time.process_time() - start

    def _step(self) -> None:
        method = self.method
        if method is not None:
            method.before_step(self.done, 1e-3)
        loss: Tensor = F.cross_entropy(self.model(self.x), self.y)
        if method is not None:
            loss = loss + method.penalty()
        loss.backward()
        if method is not None:
            method.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if method is not None:
            method.after_step()
        self.done += 1


def ratios(build: Callable[[], nn.Module], shape: tuple[int, ...], rounds: int) -> dict[str, list[float]]:
    """Time of every method over that of plain training, by round."""
    plain = Training(build, shape, None)
    methods = {name: Training(build, shape, name) for name in (*SPARSITY_METHODS, COMPACTORS)}
    found: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        before = plain.seconds()
        for name, training in methods.items():
            taken, after = training.seconds(), plain.seconds()
            if number:  # the first is warm-up
                found[name].append(2 * taken / (before + after))
            before = after
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", prunus.PrunusWarning)
    stored = RESULTS / "sparsity_overhead.json"
    networks: dict[str, Any] = json.loads(stored.read_text())["networks"] if stored.exists() else {}
    for network_name in asked.networks:
        found = ratios(*NETWORKS[network_name], asked.rounds)
        medians = {name: statistics.median(values) for name, values in found.items()}
        met = {name: medians[name] <= target for name, target in TARGETS.items()}
        networks[network_name] = {"rounds": asked.rounds, "median": medians, "met": met, "ratios": found}
        print(network_name, {name: round(value, 3) for name, value in medians.items()}, flush=True)
        store("sparsity_overhead", {"steps": STEPS, "targets": TARGETS, "networks": networks})
    rows = {f"{name}, {n}": [median] for n, found in networks.items() for name, median in found["median"].items()}
    dots("sparsity_overhead", "A training step, over that of plain training", "ratio (median)", rows)


if __name__ == "__main__":
    main()
