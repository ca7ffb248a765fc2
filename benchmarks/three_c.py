"""Factors and channel pruning on a VGG-style network: channel pruning alone, factors alone, and 3C, at 2x, 4x and 5x.

    python benchmarks/three_c.py --data cifar10:PATH/cifar10_jpeg.zip [--epochs 8]
    python benchmarks/three_c.py --data digits --image-size 16      # a quick look

Six 3x3 convolutions with batch norm (32, 32, 64, 64, 128, 128; max-pooling behind every second), a linear layer, trained here
(CIFAR-10: on 10,000 images); then cut to a half, a quarter and a fifth of the multiply-adds without any training, on 512
training images, 20 points of each. Table: test accuracy, multiply-adds and median latency of one image, all networks measured
in turn on one thread: run it on a quiet machine. Finished rows are kept in the folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _criteria import RESULTS, markdown
from safetensors.torch import load_file, save_file
from torch import nn

import prunus
from prunus.export import measure_latency
from prunus.files import write_atomically
from prunus.laboratory.images import scoring_batches, test_loader
from prunus.pipeline.result import environment
from prunus.reconstruction import factorize, prune_channels, three_c
from prunus.sources import DataBundle, load_data, make_loader

RATIOS = (2, 4, 5)


def network(channels: int, classes: int) -> nn.Sequential:
    """Untrained."""
    layers: list[nn.Module] = []
    inputs = channels
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def trained(data: DataBundle, epochs: int, file: Path) -> nn.Module:
    """The network: from ``file``, or trained and kept there."""
    torch.manual_seed(0)
    model = network(data.input_shape[0], len(data.class_names))
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    loader = make_loader(data.train, batch_size=64, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * len(loader))
    for epoch in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), file)
    return model.eval()


def pruned_alone(model: nn.Module, samples: list[Any], budget: prunus.Budget) -> tuple[nn.Module, prunus.SurgeryRecord]:
    """Channel pruning by Lasso and least squares, the same share of every layer."""
    graph = prunus.trace(model, samples[0][0][:1])
    plan = prunus.allocate(graph, prunus.score(model, graph, "l1"), budget, "uniform")
    found = prune_channels(model, graph, plan, samples, points=20)
    return found.model, found.record


def ways(model: nn.Module, samples: list[Any]) -> dict[str, Callable[[prunus.Budget], tuple[nn.Module, prunus.SurgeryRecord]]]:
    def factors(budget: prunus.Budget, **which: bool) -> tuple[nn.Module, prunus.SurgeryRecord]:
        found = factorize(model, samples, budget, points=20, **which)
        return found.model, found.record

    def all_three(budget: prunus.Budget) -> tuple[nn.Module, prunus.SurgeryRecord]:
        found = three_c(model, samples, budget, points=20)
        return found.model, found.record

    return {
        "channel pruning": lambda budget: pruned_alone(model, samples, budget),
        "spatial factors": lambda budget: factors(budget, channels=False),
        "channel factors": lambda budget: factors(budget, spatial=False),
        "both factors": factors,
        "CP factors": lambda budget: factors(budget, spatial=False, channels=False, cp=True),
        "3C": all_three,
    }


@torch.no_grad()
def accuracy(model: nn.Module, batches: list[Any]) -> float:
    model.eval()
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / sum(len(y) for _, y in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="digits, or cifar10:PATH")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=100, help="latency measurements of each network")
    parser.add_argument("--folder", type=Path, default=Path("runs/three_c"), help="where the networks are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kind = args.data.partition(":")[0]
    limit = {"train_limit": 10_000} if kind == "cifar10" else {}
    data = load_data(args.data, image_size=args.image_size, augment="crop-flip" if kind == "cifar10" else "shift", **limit)
    model = trained(data, args.epochs, args.folder / f"{kind}-{args.epochs}.safetensors")
    samples, test = scoring_batches(data, args.images, 64, 0), list(test_loader(data, args.test_images, 250))
    example = test[0][0][:1]
    full = prunus.trace(model, example).cost()
    rows: list[dict[str, Any]] = [{"way": "as it is", "ratio": 1, "accuracy": accuracy(model, test), "macs": full.macs}]
    models: dict[str, nn.Module] = {"as it is": model}
    for ratio in RATIOS:
        for name, make in ways(model, samples).items():
            file = args.folder / f"{kind}-{args.epochs}-{args.images}-{ratio}x-{name.replace(' ', '_')}.prunus"
            try:
                if not file.exists():
                    prunus.save(*make(prunus.Budget(macs=1 / ratio)), file)
            except prunus.PrunusError as error:
                rows.append({"way": name, "ratio": ratio, "why not": str(error)})
                continue
            small = models[f"{ratio}x {name}"] = prunus.load(file, network(data.input_shape[0], len(data.class_names))).eval()
            macs = prunus.trace(small, example).cost().macs
            rows.append({"way": name, "ratio": ratio, "accuracy": accuracy(small, test), "macs": macs})
            print(rows[-1], flush=True)
    latency = measure_latency(models, example, runs=args.runs, threads=1)
    for row in rows:
        key = row["way"] if row["ratio"] == 1 else f"{row['ratio']}x {row['way']}"
        row["latency_ms"] = latency[key].median_ms if key in latency else None
    store(rows, kind, args)


def store(rows: list[dict[str, Any]], kind: str, args: argparse.Namespace) -> None:
    command = f"python benchmarks/three_c.py --data {kind}{':...' if ':' in args.data else ''} --epochs {args.epochs}"
    tree = {"command": command, "environment": environment(), "images": args.images, "rows": rows}
    write_atomically(RESULTS / f"three_c_{kind}.json", (json.dumps(tree, indent=1) + "\n").encode())
    head = ("multiply-adds", "way", "test accuracy, %", "M MACs", "ms, one image, one thread")
    cells = [
        [f"1 / {row['ratio']}", row["way"], *([row["why not"], "", ""] if "why not" in row else _figures(row))] for row in rows
    ]
    about = (
        f"Made by `{command}` on {tree['environment']['cpu']}, torch {tree['environment']['torch']}; no training behind the cut, "
        f"{args.images} images, median of {args.runs} latencies."
    )
    text = "\n".join([about, "", *markdown(head, cells)]) + "\n"
    write_atomically(RESULTS / f"three_c_{kind}.md", text.encode())
    print(text)


def _figures(row: dict[str, Any]) -> list[str]:
    return [f"{100 * row['accuracy']:.1f}", f"{row['macs'] / 1e6:.2f}", f"{row['latency_ms']:.2f}"]


if __name__ == "__main__":
    main()
