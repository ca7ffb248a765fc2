"""How long a training step takes on many GPUs: what bounds it, from figures of one process and assumptions about the machines."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

BACKWARD_SHARE = 2 / 3  # of a training step's arithmetic; all-reduce can hide behind it, and only behind it


@dataclass(frozen=True)
class Machines:
    """What is assumed of the machines. Rates are per second, sizes in bytes."""

    gpu_images: float = 2470.0
    within_node: float = 0.84
    gpus_per_node: int = 8
    network: float = 25e9
    hop_seconds: float = 20e-6
    overlap: float = 0.7
    cores_per_gpu: int = 16
    storage: float = 2e9
    gradient_bytes: int = 2


WHY = {
    "gpu_images": "training images a second of one GPU: ResNet-50, 224 px, mixed precision, as published for one A100 80 GB",
    "within_node": "share of eight single GPUs' rate that eight in a node reach: 16,621 of 8 x 2,470, published for a DGX A100",
    "gpus_per_node": "GPUs in a node",
    "network": "bytes a second between two nodes: 200 Gbit/s",
    "hop_seconds": "delay of one message between nodes",
    "overlap": "share of the backward pass behind which all-reduce hides, as DistributedDataParallel's buckets do",
    "cores_per_gpu": "CPU cores that decode, for each GPU",
    "storage": "bytes a second that a node reads from the data's storage",
    "gradient_bytes": "of a gradient on the network: fp16 or bf16 compression hook; 4 without one",
}


@dataclass(frozen=True)
class Step:
    """Seconds of one step: arithmetic, exchange that doesn't hide behind it, decoding and reading; the longest decides."""

    compute: float
    exchange: float
    decode: float
    read: float

    @property
    def seconds(self) -> float:
        return max(self.compute + self.exchange, self.decode, self.read)

    @property
    def bound_by(self) -> str:
        parts = {"arithmetic": self.compute + self.exchange, "decoding": self.decode, "reading": self.read}
        longest = max(parts, key=lambda name: parts[name])
        return "exchange of gradients" if longest == "arithmetic" and self.exchange > self.compute else longest


def step(gpus: int, images: float, parameters: int, image_bytes: float, decode_rate: float, machines: Machines) -> Step:
    """A step of ``images`` on each of ``gpus``; ``decode_rate`` is of one core, images/s.

    A ring of all-reduce between the nodes: 2 (n - 1) messages of a part, of which each node sends 2 (n - 1) / n times the
    gradients' bytes. What GPUs of one node exchange among themselves is in ``within_node``.
    """
    per_node = min(gpus, machines.gpus_per_node)
    nodes = -(-gpus // machines.gpus_per_node)
    compute = images / machines.gpu_images / (machines.within_node if per_node > 1 else 1.0)
    sent = 2 * (nodes - 1) / nodes * parameters * machines.gradient_bytes
    ring = sent / machines.network + 2 * (nodes - 1) * machines.hop_seconds
    hidden = machines.overlap * BACKWARD_SHARE * compute
    decode = images / (machines.cores_per_gpu * decode_rate)
    return Step(compute, max(0.0, ring - hidden), decode, per_node * images * image_bytes / machines.storage)


def assumptions(machines: Machines) -> list[dict[str, Any]]:
    """Every assumption with its value and where it comes from."""
    return [{"name": f.name, "value": getattr(machines, f.name), "why": WHY[f.name]} for f in fields(machines)]
