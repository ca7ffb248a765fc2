"""A result like the one that a run writes, for tests of the report."""

from __future__ import annotations

from typing import Any


def latency(median: float, runtime: str = "eager") -> dict[str, Any]:
    return {
        "median_ms": median,
        "p10_ms": median * 0.95,
        "p90_ms": median * 1.125,
        "runs": 30,
        "threads": 1,
        "batch": 1,
        "runtime": runtime,
    }


def epochs(number: int, first_loss: float, lr: float, accuracy: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "epoch": n,
            "loss": first_loss / n,
            "lr": lr / n,
            "seconds": 1.25 + n / 16,
            "images_per_second": 1000.0 + n,
            "accuracy": 0.99 - 0.5 / n**2 if accuracy else None,
        }
        for n in range(1, number + 1)
    ]


def groups(number: int) -> list[dict[str, Any]]:
    """Alternating prunable, frozen (every seventh) and mixing (every tenth) groups of growing width."""
    made: list[dict[str, Any]] = []
    for n in range(number):
        before = 16 * 2 ** (3 * n // max(number, 1))
        reason = "its channels are the network's outputs" if n % 7 == 6 else None
        after = before if reason else max(1, before * (3 + n % 5) // 10)
        name = f"layer{1 + 3 * n // max(number, 1)}.{n}.conv1"
        layers = [name, f"layer{n}.bn1"]
        made.append(
            {"name": name, "before": before, "after": after, "frozen_because": reason, "mixing": n % 10 == 3, "layers": layers}
        )
    return made


def sample_result(num_groups: int = 12) -> dict[str, Any]:
    """Every key of the schema, with figures that differ from one another so that a mix-up shows."""
    return {
        "prunus": "0.1.0",
        "name": "digits",
        "created": "2026-11-22T10:00:00+00:00",
        "command": "prunus run examples/digits.toml --set prune.budget.macs=0.4 --out runs/digits",
        "seconds": 61.2,
        "request": {
            "model": "cifar:resnet20",
            "weights": None,
            "data": "digits",
            "criterion": "taylor",
            "allocator": "global",
            "rounds": 1,
            "budget": {"macs": 0.4},
            "mixing": "allow",
            "keep": [],
            "seed": 0,
        },
        "budget": [{"target": "macs", "requested": 1040000.0, "full": 2600000, "achieved": 1035000, "met": True}],
        "stages": [
            {"stage": "before pruning", "split": "test", "accuracy": 0.992, "loss": 0.0512, "count": 500, "seconds": 1.2},
            {"stage": "after pruning", "split": "test", "accuracy": 0.314, "loss": 2.1134, "count": 500, "seconds": 0.61},
            {"stage": "after recalibration", "split": "test", "accuracy": 0.876, "loss": 0.4021, "count": 500, "seconds": 0.62},
            {"stage": "after fine-tuning", "split": "test", "accuracy": 0.988, "loss": 0.0633, "count": 500, "seconds": 0.63},
        ],
        "training": {"train": epochs(12, 2.3, 0.05), "fine-tune": epochs(6, 0.7, 0.02)},
        "networks": {
            "before": {
                "macs": 2600000,
                "parameters": 272474,
                "activation_bytes": 131072,
                "file_bytes": 1118231,
                "latency": latency(4.21),
            },
            "after": {
                "macs": 1035000,
                "parameters": 98765,
                "activation_bytes": 65537,
                "file_bytes": 421987,
                "latency": latency(2.02),
            },
        },
        "groups": groups(num_groups),
        "unsupported_ops": {"aten.foo": 2},
        "notes": ["the training-mode trace found nothing new"],
        "verification": {"max_error": 1.3e-15, "tolerance": 1e-9, "passed": True, "detail": "2 inputs of 3x8x8"},
        "exports": [
            {
                "format": "onnx",
                "file": "small.onnx",
                "max_error": 3.1e-7,
                "tolerance": 1e-4,
                "agreement": 1.0,
                "passed": True,
                "file_bytes": 405123,
                "latency_before": latency(1.61, "onnxruntime"),
                "latency_after": latency(0.83, "onnxruntime"),
                "notes": ["opset 20"],
            }
        ],
        "environment": {
            "python": "3.11.9",
            "torch": "2.14.1",
            "cpu": "Some CPU @ 2.9 GHz",
            "threads": 2,
            "platform": "Linux-6.1-x86_64",
        },
        "warnings": [],
        "recipe": {"name": "digits", "model": {"source": "cifar:resnet20"}, "prune": {"budget": {"macs": 0.4}, "rounds": 1}},
        "files": ["result.json", "small.onnx", "small.prunus"],
    }
