"""The process that times networks for `NetworkTimer`: ``python -m prunus.export.timing_process job.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.export.runtimes import Latency, measure_latency, measure_sessions
from prunus.export.sessions import FILE_RUNTIMES, open_session

LEAST, MOST = 15, 400
"""Timed passes of each network."""
_SAMPLE = 3


def time_networks(
    networks: Mapping[str, nn.Module], inputs: Any, runtime: str, threads: int, seconds: float
) -> dict[str, Latency]:
    """Latency in eager PyTorch, or compiled, over as many turns as take about ``seconds``."""
    if runtime == "compile":
        networks = {name: torch.compile(network, dynamic=False) for name, network in networks.items()}  # pyright: ignore

    def measure(runs: int) -> dict[str, Latency]:
        return measure_latency(networks, inputs, runs=runs, warmup=_SAMPLE, threads=threads)

    return {name: replace(found, runtime=runtime) for name, found in _long_enough(measure, seconds).items()}


def _long_enough(measure: Callable[[int], dict[str, Latency]], seconds: float) -> dict[str, Latency]:
    """A short measurement says how many turns the long one has."""
    turn = sum(latency.median_ms for latency in measure(_SAMPLE).values())
    return measure(max(LEAST, min(MOST, int(1e3 * seconds / max(turn, 1e-6)))))


def main(path: Path) -> None:
    """Do the job and write its result."""
    job = json.loads(path.read_text(encoding="utf-8"))
    inputs = torch.load(job["inputs"], weights_only=False)
    if job["runtime"] in FILE_RUNTIMES:
        files = {name: Path(file) for name, file in job["networks"].items()}
        threads, sessions = job["threads"], {n: open_session(file, job["threads"], job["runtime"]) for n, file in files.items()}
        found = _long_enough(lambda runs: measure_sessions(sessions, inputs, runs, _SAMPLE, threads), job["seconds"])
    else:
        networks = {name: torch.load(file, weights_only=False) for name, file in job["networks"].items()}
        found = time_networks(networks, inputs, job["runtime"], job["threads"], job["seconds"])
    Path(job["result"]).write_text(json.dumps({name: asdict(row) for name, row in found.items()}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
