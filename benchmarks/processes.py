"""What several processes are worth, and what more images cost in memory.

    python benchmarks/processes.py [--images 32] [--runs 3] [--weights FILE]

- The oracle on ResNet-20 (random images): one process with one thread, two processes with one thread each, one process with two
  threads. The three take turns; each is a fresh process that scores once to warm up and is then timed. Target: two processes take
  at most 0.6 of the time of one.
- Evidence (taylor, apoz, and the Lasso's normal equations) of ResNet-20 on 256 and on 4,096 images that are made while they are
  read: the peak of the process's memory. Target: the difference is below 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import prunus
from prunus.files import write_atomically
from prunus.pipeline.result import environment
from prunus.sources.cifar import cifar_resnet
from prunus.surgery import randomise

RESULT = Path(__file__).parent / "results" / "processes.json"
CASES = {"one process, one thread": (1, 1), "two processes, one thread each": (2, 1), "one process, two threads": (1, 2)}
FEW, MANY = 256, 4096
CRITERIA = ("taylor", "apoz", "lasso")
SIZE = 32


class Images:
    """Minibatches of 64 random images, made anew whenever they are read, so that they hold no memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.count // 64):
            yield torch.randn(64, 3, SIZE, SIZE, generator=generator), torch.randint(0, 10, (64,), generator=generator)

    def __len__(self) -> int:
        return self.count // 64


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return randomise(cifar_resnet("resnet20")).eval()


def time_oracle(images: int) -> None:
    """One of the processes of a case: prints its seconds and the sum of its scores."""
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    model = network()
    batches = [(torch.randn(images, 3, SIZE, SIZE), torch.randint(0, 10, (images,)))]
    graph = prunus.trace(model, batches[0][0][:1])
    warm = [(batches[0][0][:2], batches[0][1][:2])]
    prunus.score(model, graph, "oracle", data=warm)
    if dist.is_initialized():
        dist.barrier()
    begin = time.perf_counter()
    scores = prunus.score(model, graph, "oracle", data=batches)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "sum": sum(float(values.sum()) for values in scores.by_group.values())}))


def peak_of(criterion: str, images: int) -> None:
    """Print the largest memory of this process, in bytes, after one scoring on ``images`` images."""
    model = network()
    graph = prunus.trace(model, torch.randn(1, 3, SIZE, SIZE))
    prunus.score(model, graph, criterion, data=Images(images))
    print(json.dumps({"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def ask(arguments: list[str], processes: int = 1, threads: int = 1) -> dict[str, Any]:
    """What the first of ``processes`` fresh processes of this file prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": str(threads)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments],
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    outputs = [one.communicate()[0] for one in started]
    if any(one.returncode for one in started):
        raise SystemExit("one of the processes failed: see above")
    return json.loads(outputs[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="of the oracle's minibatch")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", nargs=2, metavar=("WHAT", "IMAGES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        what, images = args.work[0], int(args.work[1])
        time_oracle(images) if what == "oracle" else peak_of(what, images)
        return
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for number in range(args.runs):
        for case, (processes, threads) in CASES.items():
            found[case].append(ask(["--work", "oracle", str(args.images)], processes, threads))
            print(f"{case}, run {number + 1}: {found[case][-1]['seconds']:.1f} s", flush=True)
    seconds = {case: statistics.median(run["seconds"] for run in runs) for case, runs in found.items()}
    base = seconds["one process, one thread"]
    sums = [run["sum"] for runs in found.values() for run in runs]
    spread = (max(sums) - min(sums)) / abs(sums[0])
    memory: dict[str, Any] = {}
    for criterion in CRITERIA:
        few, many = (ask(["--work", criterion, str(images)])["bytes"] for images in (FEW, MANY))
        memory[criterion] = {f"{FEW} images, bytes": few, f"{MANY} images, bytes": many, "ratio": many / few}
        print(f"{criterion}: {few / 1e6:.0f} MB, {many / 1e6:.0f} MB", flush=True)
    ratios = {case: value / base for case, value in seconds.items()}
    tree = {
        "header": {
            "command": f"python benchmarks/processes.py --images {args.images} --runs {args.runs}",
            "environment": environment(),
        },
        "oracle": {
            "seconds": {case: [run["seconds"] for run in runs] for case, runs in found.items()},
            "median": seconds,
            "ratio": ratios,
            "largest difference of the scores' sum, relative": spread,
            "target": 0.6,
            "met": ratios["two processes, one thread each"] <= 0.6,
        },
        "memory": {"criteria": memory, "target": 1.05, "met": all(row["ratio"] <= 1.05 for row in memory.values())},
    }
    write_atomically(RESULT, (json.dumps(tree, indent=2) + "\n").encode())
    print(json.dumps(ratios, indent=2))


if __name__ == "__main__":
    main()
