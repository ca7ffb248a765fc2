"""A result like the one that a run writes, for tests of the report."""

from __future__ import annotations

import base64
import copy
import struct
import zlib
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


def png(side: int, grey: int = 128) -> str:
    """A data URI of a flat grey square."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(side * (b"\0" + bytes([grey]) * side))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _sample(label: str, before: tuple[str, float], after: tuple[str, float], side: int = 112) -> dict[str, Any]:
    answers = {which: {"name": n, "probability": p} for which, (n, p) in (("before", before), ("after", after))}
    return {"image": png(side, 90 if label == "cat" else 160), "label": label, **answers}


def photo_result(num_rounds: int = 5, classes: tuple[str, ...] = ("cat", "dog")) -> dict[str, Any]:
    """A result with every optional key: cats and dogs, one in so many rounds."""
    result = copy.deepcopy(sample_result(40))
    result |= {"name": "cats_dogs", "command": "prunus run recipes/cats_dogs.toml --out runs/cats_dogs"}
    result["request"] |= {"model": "torchvision:mobilenet_v2", "data": "folder:cats_dogs.zip", "rounds": num_rounds}
    number = len(classes)
    result["stages"] = [_stage("before pruning", 0.9775, number)]
    result["training"] = {"head": epochs(6, 0.5, 0.01), "training": epochs(4, 0.2, 0.002)}
    result["rounds"] = [_round(0, 1.0, 0.9775)]
    for n in range(1, num_rounds + 1):
        title = f"round {n}: after" if num_rounds > 1 else "after"
        for stage, accuracy in (
            ("pruning", 0.93 - 0.03 * n),
            ("recalibration", 0.95 - 0.01 * n),
            ("fine-tuning", 0.978 - 0.002 * n),
        ):
            result["stages"].append(_stage(f"{title} {stage}", accuracy, number))
        result["training"][f"round {n}: fine-tuning"] = epochs(3, 0.3, 0.01)
        result["rounds"].append(_round(n, 0.5 ** (n / num_rounds), 0.978 - 0.002 * n))
    result["data"] = {
        "classes": list(classes),
        "counts": {split: [size - 2 * (n % 2) for n in range(number)] for split, size in (("train", 1000), ("validation", 200))}
        | {"test": [400] * number},
        "imbalance": 1000 / 998,
        "damaged": {
            "train": {"count": 2, "names": ["train/dog/11702.jpg", "train/cat/666.jpg"]},
            "test": {"count": 0, "names": []},
        },
        "input_shape": [3, 160, 160],
        "augment": "resized-crop-flip, colour 0.2",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "normalised_by": "the network's own",
    }
    result["samples"] = {
        "note": "4 of 128 test images drawn at random; those on which the networks disagree (2 of the 128) come first",
        "rows": [
            _sample("cat", ("cat", 0.913), ("dog", 0.614)),
            _sample("dog", ("cat", 0.552), ("dog", 0.871)),
            _sample("dog", ("dog", 0.9996), ("dog", 0.992)),
            _sample("cat", ("dog", 0.7), ("dog", 0.83), side=8),
        ],
    }
    result["compute"] = {
        "threads": 2,
        "channels_last": True,
        "training_images_per_second": {"head": 812.0, "training": 31.0, "fine-tuning": 45.2},
        "measured": [
            {"threads": 1, "channels_last": False, "images_per_second": 11.6},
            {"threads": 1, "channels_last": True, "images_per_second": 14.9},
            {"threads": 2, "channels_last": False, "images_per_second": 21.3},
            {"threads": 2, "channels_last": True, "images_per_second": 26.75},
        ],
    }
    result["layers"] = {"threads": 1, "rows": layers(result["groups"])}
    scored = {g["name"]: {"kept": [0.5, 0.9, 4.0], "removed": [0.001, 0.25]} for g in result["groups"] if not g["frozen_because"]}
    result["scores"] = {"criterion": "taylor", "across_groups": False, "round": num_rounds, "groups": scored}
    return result


def layers(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A layer for every group; every fifth adds its output to that of the third, and the one behind it is gone."""
    rows: list[dict[str, Any]] = []
    for n, group in enumerate(made):
        before, after = (
            {"reads": 16, "writes": group[side], "macs": 1000 * group[side], "ms": group[side] / 64}
            for side in ("before", "after")
        )
        writes = made[2]["name"] if n % 5 == 4 else group["name"]
        left = None if n % 5 == 0 and n else after
        rows.append(
            {"name": group["name"], "kind": "convolution", "writes": [writes], "makes": True, "before": before, "after": left}
        )
    return rows


def _stage(stage: str, accuracy: float, classes: int) -> dict[str, Any]:
    wrong = round(400 * (1 - accuracy))
    matrix = [
        [400 - wrong - n % 3 if n == m else (wrong + n % 3) * (m == (n + 1) % classes) for m in range(classes)]
        for n in range(classes)
    ]
    pairs = sorted(([n, m, matrix[n][m]] for n in range(classes) for m in range(classes) if n != m), key=lambda p: -p[2])
    right = sum(matrix[n][n] for n in range(classes)) / (400 * classes)
    return {
        **{"stage": stage, "split": "test", "accuracy": right, "loss": 1.3 - right, "count": 400 * classes, "seconds": 14.2},
        **{"top5": min(1.0, right + 0.02) if classes > 5 else None, "balanced_accuracy": right},
        **{"confusion": matrix if classes <= 50 else None, "most_confused": [p for p in pairs if p[2]][:10]},
    }


def _round(number: int, share: float, accuracy: float) -> dict[str, Any]:
    return {
        **{
            "round": number,
            "macs": int(154_000_000 * share),
            "parameters": int(2_226_434 * share),
            "channels": int(11_000 * share),
        },
        **{"accuracy": accuracy, "split": "test", "after": f"round {number}: after fine-tuning" if number else "before pruning"},
    }
