"""What the experiments on training methods share: the small digits network, a training run of it, and figures as JSON and SVG."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from criteria_digits import TRAINING, digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunus
from prunus.config import OptimizerConfig
from prunus.files import write_atomically
from prunus.pipeline.result import environment
from prunus.training import TrainingLog, evaluate, train
from prunus.training_hooks import SparsityMethod, SparsityTask

RESULTS = Path(__file__).parent / "results"
BATCH, LR = 64, 0.05
EXAMPLE = torch.zeros(2, 1, 8, 8)


def network(width: float = 1.0, classes: int = 10) -> nn.Sequential:
    """Three convolutions with batch norm and ReLU, 16, 32 and 32 channels at width one, pooling, a linear layer."""
    one, two, three = (round(width * n) for n in (16, 32, 32))
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((1, one, True), (one, two, True), (two, three, False)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(three, classes))


def split(classes: Sequence[int] = range(10)) -> tuple[TensorDataset, TensorDataset]:
    """Training and test images of these classes, which are numbered anew."""
    images, labels = digits()
    number = torch.full((10,), -1)
    number[list(classes)] = torch.arange(len(classes))
    parts: list[TensorDataset] = []
    for rows in (slice(TRAINING), slice(TRAINING, None)):
        wanted = number[labels[rows]] >= 0
        parts.append(TensorDataset(images[rows][wanted], number[labels[rows]][wanted]))
    return parts[0], parts[1]


def fit(model: nn.Module, data: TensorDataset, epochs: int, seed: int, **options: Any) -> TrainingLog:
    """Train as the other experiments on digits do: SGD at 0.05, or as ``options`` of `OptimizerConfig` say."""
    method: SparsityMethod | None = options.pop("method", None)
    settings = OptimizerConfig(**{"epochs": epochs, "lr": LR, "warmup_epochs": 0.5, **options})
    return train(
        model, DataLoader(data, batch_size=BATCH, shuffle=True), settings, seed=seed, method=method, description="digits"
    )


def fresh(seed: int, width: float = 1.0, classes: int = 10) -> nn.Module:
    """An untrained network of this seed."""
    torch.manual_seed(seed)
    return network(width, classes)


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Share of right answers."""
    return evaluate(model, DataLoader(data, batch_size=512)).accuracy


def loss(model: nn.Module, data: TensorDataset) -> float:
    """Mean cross entropy in evaluation mode."""
    return evaluate(model, DataLoader(data, batch_size=512)).loss


def pruned_by(
    method: SparsityMethod, model: nn.Module, data: TensorDataset, budget: prunus.Budget, epochs: int, seed: int, **options: Any
) -> tuple[nn.Module, prunus.ChannelGraph, prunus.PruningPlan]:
    """Train ``model`` with the method: the network it leaves (not cut yet), the graph, and the plan."""
    graph = prunus.trace(model, EXAMPLE)
    method.prepare(model, graph, SparsityTask(budget, EXAMPLE, seed))
    fit(model, data, epochs, seed, method=method, **options)
    plan = method.plan(budget)
    return method.finish(), graph, plan


def random_plan(graph: prunus.ChannelGraph, like: prunus.PruningPlan, seed: int) -> prunus.PruningPlan:
    """As many channels of every group as ``like`` keeps, chosen at random."""
    generator = torch.Generator().manual_seed(seed)
    keep: dict[str, Tensor] = {}
    for name, mask in like.keep.items():
        keep[name] = torch.zeros_like(mask)
        keep[name][torch.randperm(len(mask), generator=generator)[: int(mask.sum())]] = True
    return prunus.PruningPlan(keep, like.predicted)


def mean(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation over the seeds, and the values."""
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None, "values": list(values)}


def store(name: str, tree: Mapping[str, Any]) -> None:
    """``tree`` under benchmarks/results, headed by command, versions and device."""
    machine = {**environment(), "threads": torch.get_num_threads()}
    whole = {"command": f"python benchmarks/{name}.py", "environment": machine, **tree}
    write_atomically(RESULTS / f"{name}.json", (json.dumps(whole, indent=1) + "\n").encode())


def dots(name: str, title: str, unit: str, rows: Mapping[str, Sequence[float]]) -> None:
    """A plot, benchmarks/results/NAME.svg: a line of dots for every row, one dot a seed, a bar at their mean."""
    values = [v for row in rows.values() for v in row]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low or 1.0)
    low, high = low - pad, high + pad
    left, wide, step = 250, 420, 26
    height = 60 + step * len(rows) + 34

    def at(value: float) -> float:
        return left + wide * (value - low) / (high - low)

    parts = [f'<text x="12" y="24" font-size="14" font-weight="600">{escape(title)}</text>']
    bottom = 50 + step * len(rows)
    for i in range(5):
        tick = low + (high - low) * (i + 0.5) / 5
        parts.append(f'<line x1="{at(tick):.1f}" y1="42" x2="{at(tick):.1f}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{at(tick):.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">{tick:.4g}</text>')
    for i, (label, row) in enumerate(rows.items()):
        y = 58 + step * i
        centre = at(statistics.mean(row))
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<line x1="{centre:.1f}" y1="{y - 8}" x2="{centre:.1f}" y2="{y + 8}" stroke="#222" stroke-width="2"/>')
        parts += [f'<circle cx="{at(v):.1f}" cy="{y}" r="4" fill="#2a78d6" fill-opacity="0.65"/>' for v in row]
    parts.append(f'<text x="{left + wide / 2}" y="{bottom + 32}" text-anchor="middle" fill="#555">{escape(unit)}</text>')
    width = left + wide + 20
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    body = "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""])
    write_atomically(RESULTS / f"{name}.svg", body.encode())
