"""Latency of whole networks in a process of its own, which nothing that ran before can have slowed down or warmed up."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.budgets import Timing
from prunus.errors import ExportError, PrunusWarning
from prunus.export.runtimes import RUNTIMES, WARMUP, Latency, summary, time_in_turns
from prunus.export.signature import FlatInputs
from prunus.types import map_tensors


class NetworkTimer:
    """Times networks side by side on the same inputs; a context manager, whose files go when it ends.

    Each call is a fresh process. A network that can't be sent to one (it holds a function or class that no other process can
    import) is timed in this process, which a `PrunusWarning` says and ``fresh`` tells.
    """

    def __init__(self, inputs: Any, runtime: str, timing: Timing, seconds: float = 3.0) -> None:
        """``seconds``: about how long the timed passes of a call take in all."""
        self.inputs = FlatInputs.of(inputs).at_batch(timing.batch).nest()
        self.runtime, self.timing, self.seconds, self.fresh = runtime, timing, seconds, True
        self._row = RUNTIMES[runtime]
        self._folder = tempfile.TemporaryDirectory(prefix="prunus-timing-")
        self._written: dict[int, tuple[nn.Module, Path]] = {}

    def __enter__(self) -> NetworkTimer:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def __call__(self, networks: Mapping[str, nn.Module]) -> dict[str, Latency]:
        """Latency by name, in turns (A, B, A, B, ...).

        Raises:
            ExportError: the runtime isn't installed or can't run a network.
        """
        found = self.passes(networks)
        return {name: summary(ms, self.timing.threads, self.timing.batch, self.runtime) for name, ms in found.items()}

    def passes(self, networks: Mapping[str, nn.Module]) -> dict[str, list[float]]:
        """The same, as the milliseconds of every pass: the n-th ones of all networks are from the same turn."""
        if self._row.write is None and not self.fresh:
            return self._in_this_process(networks)
        try:
            return self._in_fresh_process("passes", networks)
        except _Stays as why:
            self.fresh = False
            text = f"the network is timed in this process, not in a fresh one, which can't load it: {why}"
            warnings.warn(text, PrunusWarning, stacklevel=2)
            return self._in_this_process(networks)

    def memory(self, network: nn.Module) -> dict[str, int] | None:
        """See `peak_of_passes`; None for a network that can't go to a process of its own, where nothing could be told apart."""
        try:
            return self._in_fresh_process("memory", {"network": network}) if self._row.write or self.fresh else None
        except _Stays:
            return None

    def _in_this_process(self, networks: Mapping[str, nn.Module]) -> dict[str, list[float]]:
        prepared = {name: self._prepared(network) for name, network in networks.items()}
        inputs = map_tensors(self._placed, self.inputs)
        return time_in_turns(prepared, inputs, self.runtime, threads=self.timing.threads, warmup=WARMUP, seconds=self.seconds)

    def _prepared(self, network: nn.Module) -> nn.Module:
        twin = copy.deepcopy(network).eval().to(getattr(torch, self.timing.dtype))
        return twin.to(memory_format=torch.channels_last) if self.timing.channels_last else twin  # pyright: ignore[reportCallIssue]

    def _placed(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(getattr(torch, self.timing.dtype)) if tensor.is_floating_point() else tensor
        last = self.timing.channels_last and tensor.ndim == 4
        return tensor.to(memory_format=torch.channels_last) if last else tensor

    def _file(self, network: nn.Module) -> Path:
        """The network's file, written once; the network is kept alive, and so its identity."""
        if id(network) not in self._written:
            path = Path(self._folder.name) / f"{len(self._written)}"
            if self._row.write:
                self._row.write(network, self.inputs, path)
            else:
                self._pickle(network, path)
            self._written[id(network)] = network, path
        return self._written[id(network)][1]

    def _pickle(self, network: nn.Module, path: Path) -> None:
        try:
            torch.save(self._prepared(network), path)  # only this class's own process ever reads it
        except Exception as error:  # whatever a user's class does when it is pickled
            raise _Stays(f"{type(error).__name__}: {error}") from error

    def _in_fresh_process(self, what: str, networks: Mapping[str, nn.Module]) -> Any:
        """What the process that does the job finds."""
        folder, write = Path(self._folder.name), self._row.write
        inputs = self.inputs if write else map_tensors(self._placed, self.inputs)
        torch.save(inputs, folder / "inputs")
        job = {
            "what": what,
            "networks": {name: str(self._file(network)) for name, network in networks.items()},
            "inputs": str(folder / "inputs"),
            "runtime": self.runtime,
            "threads": self.timing.threads,
            "seconds": self.seconds,
            "result": str(folder / "result.json"),
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (folder / "result.json").unlink(missing_ok=True)
        threads = str(self.timing.threads)
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        command = [sys.executable, "-m", "prunus.export.timing_process", str(folder / "job.json")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return json.loads((folder / "result.json").read_text(encoding="utf-8"))
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if write is not None:
            raise ExportError(f"the process that times the network in {self.runtime} failed: {told}")
        raise _Stays(told)


class _Stays(Exception):
    """The network can't go to another process."""
