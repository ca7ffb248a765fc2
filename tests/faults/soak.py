"""Many cycles of prune, verify, save and load in one process: ``python soak.py FOLDER CYCLES``; prints memory and open files."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import torch

import prunus
from prunus.sources import load_model


def state() -> tuple[int, int]:
    """Bytes of memory in use, and open files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize(), len(os.listdir("/proc/self/fd"))


def main(folder: Path, cycles: int) -> None:
    """One line of JSON: the states behind every tenth cycle, and how many different outputs there were."""
    torch.set_num_threads(1)
    model, images = load_model("cifar:resnet8-projection", seed=0).eval(), torch.randn(2, 3, 16, 16)
    outputs: set[bytes] = set()
    states: list[tuple[int, int]] = []
    for cycle in range(cycles):
        result = prunus.prune(model, images, budget=prunus.Budget(macs=0.5), criterion="l1")
        prunus.save(result.model, result.record, folder / "small.prunus")
        small = prunus.load(folder / "small.prunus", load_model("cifar:resnet8-projection", seed=1).eval())
        with torch.no_grad():
            outputs.add(small(images).numpy().tobytes() + (folder / "small.prunus").read_bytes())
        if cycle % 10 == 9:
            states.append(state())
    print(json.dumps({"states": states, "outputs": len(outputs)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
