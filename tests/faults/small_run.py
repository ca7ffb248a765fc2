"""A whole run on a few digits: it trains, prunes, recovers and writes everything in a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunus.config import Recipe, parse_recipe

TREE: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "model": {"source": "cifar:resnet8-projection"},
    "data": {"source": "digits", "train_limit": 160, "augment": "shift", "batch_size": 32},
    "train": {"epochs": 2, "lr": 0.05},
    "prune": {"budget": {"macs": 0.5}, "criterion": "taylor", "batches": 2},
    "recover": {"epochs": 2, "lr": 0.02, "recalibrate_batches": 2},
    "compute": {"threads": 1, "channels_last": False, "checkpoint_steps": 2},
    "export": {"latency_runs": 3, "onnx": False, "threads": 1},
}


def recipe(**sections: Any) -> Recipe:
    """The recipe, with other sections."""
    return parse_recipe({**TREE, **sections})


def contents(folder: Path) -> dict[str, bytes]:
    """All files under ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
