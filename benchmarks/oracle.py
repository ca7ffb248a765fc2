"""The oracle by re-entering the network, beside the plain loop in the same run, on the same batch; and the race.

    python benchmarks/oracle.py [--images 8] [--threads 1] [--share 16] [--seed 0]

Targets: the plain loop takes at least 4x as long on VGG-16-BN (64 px, its convolutions' channels) and on ResNet-20; losses agree
to 1e-5. ResNet-20 runs on four minibatches, VGG-16-BN on one. The plain loop runs on two channels of every group and their mean
counts for all (each takes a whole forward pass); the re-entering one on every ``share``-th channel of VGG's wide groups. Seconds
are processor time, so that other programs disturb them less.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import prunus
from prunus.files import write_atomically
from prunus.importance.ablation import loss_changes
from prunus.importance.evidence import DataRun
from prunus.importance.oracle_batches import Ablation
from prunus.importance.oracle_racing import race
from prunus.pipeline.result import environment
from prunus.sources.cifar import cifar_resnet
from prunus.surgery import randomise

RESULT = Path(__file__).parent / "results" / "oracle.json"


def measure(model: nn.Module, size: int, args: argparse.Namespace, share: int, batches: int) -> dict[str, Any]:
    model = randomise(model).eval()
    data = [(torch.randn(args.images, 3, size, size), torch.randint(0, 10, (args.images,))) for _ in range(batches)]
    graph = prunus.trace(model, data[0][0][:1])
    fast, plain = (Ablation(model, graph, DataRun(data), fast=fast) for fast in (True, False))
    groups: dict[str, dict[str, float]] = {}
    start = worst = 0.0
    with fast() as ours, plain() as theirs:
        for _ in data:
            begin = time.process_time()
            mine = next(ours)
            start += time.process_time() - begin
            other = next(theirs)
            for name, channels in fast.sizes.items():
                every = torch.arange(0, channels, share if channels > 64 else 1)
                some = every[:: max(1, len(every) // 2)][:2].contiguous()
                if name not in groups:  # the check against the plain loop, once for every group: timed as such below
                    fast.changes(mine, name, every[:1])
                row = groups.setdefault(name, {"channels": channels, "re-entering, s": 0.0, "plain loop, s": 0.0})
                begin = time.process_time()
                found = fast.changes(mine, name, every)
                row["re-entering, s"] += (time.process_time() - begin) / len(every) * channels
                begin = time.process_time()
                expected = plain.changes(other, name, some)
                row["plain loop, s"] += (time.process_time() - begin) / len(some) * channels
                at = torch.searchsorted(every, some)
                worst = max(worst, float((found[at] - expected).abs().max()) / abs(other.base))
            assert mine.recording is not None, fast.notes
    return {
        "minibatches": batches,
        "start, s": start,
        "largest difference / loss": worst,
        "groups": groups,
        **_totals(groups, start, batches),
    }


def _totals(groups: dict[str, dict[str, float]], start: float, batches: int) -> dict[str, Any]:
    """All groups, and those of convolutions alone (VGG's linear layers read cheaply and are many)."""
    found: dict[str, Any] = {}
    for label, chosen in (("all", groups), ("convolutions", {n: g for n, g in groups.items() if "classifier" not in n})):
        plain, ours = (sum(g[key] for g in chosen.values()) for key in ("plain loop, s", "re-entering, s"))
        checks = sum(g["plain loop, s"] / g["channels"] / batches for g in chosen.values())  # one channel, on one minibatch
        found[label] = {"channels": sum(g["channels"] for g in chosen.values()), "plain loop, s": plain}
        found[label] |= {"re-entering, s": ours, "checks, s": checks, "ratio": plain / (ours + start + checks)}
        found[label]["ratio once checked"] = plain / (ours + start)
    return found


def racing(seed: int) -> dict[str, Any]:
    """Three networks trained on handwritten digits, three orders of the minibatches each: see `race_on_digits`."""
    rows = [row for network in range(3) for row in race_on_digits(seed + network)]
    means = {f"mean {key}": sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    return {**means, "least times fewer evaluations": min(row["times fewer evaluations"] for row in rows), "races": rows}


def race_on_digits(seed: int) -> list[dict[str, Any]]:
    """Overlap of the lowest tenth with the full oracle's, and how many channel evaluations it took.

    The backward pass of every minibatch isn't one of them: it takes about three forward passes, of all channels at once.
    """
    from sklearn.datasets import load_digits

    torch.manual_seed(seed)
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(8):
        for rows in torch.randperm(1200).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    graph, found = prunus.trace(model.eval(), x[:1]), list[dict[str, Any]]()
    for order in range(3):
        rows = torch.randperm(1200, generator=torch.Generator().manual_seed(100 * seed + order))
        data = [(x[part], y[part]) for part in rows.split(4)]
        full = torch.cat(list(loss_changes(model, graph, DataRun(data)).values())).abs()
        result = race(model, graph, DataRun(data, seed=seed + order))
        raced = torch.cat(list(result.changes.values())).abs()
        lowest = len(full) // 10
        common = set(full.argsort()[:lowest].tolist()) & set(raced.argsort()[:lowest].tolist())
        fewer = result.all_evaluations / result.evaluations
        found.append({"overlap": len(common) / lowest, "times fewer evaluations": fewer, "undecided": result.undecided})
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (("images", 8), ("threads", 1), ("share", 16), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    results: dict[str, Any] = {
        "resnet20": measure(cifar_resnet("resnet20"), 32, args, 1, 4),
        "vgg16_bn": measure(torchvision.models.vgg16_bn(num_classes=10), 64, args, args.share, 1),
        "race on digits": racing(args.seed),
    }
    for name in ("resnet20", "vgg16_bn"):
        for label in ("all", "convolutions"):
            row = results[name][label]
            ratios = f"ratio {row['ratio']:.2f} (once checked {row['ratio once checked']:.2f})"
            print(f"{name}, {label}: {row['channels']:.0f} channels, {ratios}")
        print(f"  largest difference / loss {results[name]['largest difference / loss']:.1e}")
    print("race on digits:", {k: v for k, v in results["race on digits"].items() if k != "races"})
    header = {"command": "python benchmarks/oracle.py", **vars(args), "environment": environment()}
    write_atomically(RESULT, (json.dumps({"header": header, "results": results}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
