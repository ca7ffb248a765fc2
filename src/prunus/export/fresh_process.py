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

from prunus.budgets import EXPORTED, Timing
from prunus.errors import ExportError, PrunusWarning
from prunus.export.onnx import export_onnx
from prunus.export.runtimes import Latency
from prunus.export.signature import FlatInputs
from prunus.export.timing_process import time_networks
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
        if self.runtime in EXPORTED:
            files = {name: self._file(network, self._export) for name, network in networks.items()}
            return self._in_fresh_process(files, self.inputs)
        prepared = {name: self._prepared(network) for name, network in networks.items()}
        inputs = map_tensors(self._placed, self.inputs)
        if self.fresh:
            try:
                files = {name: self._file(prepared[name], self._save, key=networks[name]) for name in networks}
                return self._in_fresh_process(files, inputs)
            except _Stays as why:
                self.fresh = False
                text = f"the network is timed in this process, not in a fresh one, which can't load it: {why}"
                warnings.warn(text, PrunusWarning, stacklevel=2)
        return time_networks(prepared, inputs, self.runtime, self.timing.threads, self.seconds)

    def _prepared(self, network: nn.Module) -> nn.Module:
        twin = copy.deepcopy(network).eval().to(getattr(torch, self.timing.dtype))
        return twin.to(memory_format=torch.channels_last) if self.timing.channels_last else twin  # pyright: ignore[reportCallIssue]

    def _placed(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(getattr(torch, self.timing.dtype)) if tensor.is_floating_point() else tensor
        last = self.timing.channels_last and tensor.ndim == 4
        return tensor.to(memory_format=torch.channels_last) if last else tensor

    def _file(self, network: nn.Module, write: Any, key: nn.Module | None = None) -> Path:
        """The network's file, written once; its key is kept alive, and so its identity."""
        key = key or network
        if id(key) not in self._written:
            path = Path(self._folder.name) / f"{len(self._written)}"
            write(network, path)
            self._written[id(key)] = key, path
        return self._written[id(key)][1]

    def _export(self, network: nn.Module, path: Path) -> None:
        export_onnx(network, self.inputs, path)

    def _save(self, network: nn.Module, path: Path) -> None:
        try:
            torch.save(network, path)  # only this class's own process ever reads it
        except Exception as error:  # whatever a user's class does when it is pickled
            raise _Stays(f"{type(error).__name__}: {error}") from error

    def _in_fresh_process(self, files: Mapping[str, Path], inputs: Any) -> dict[str, Latency]:
        folder = Path(self._folder.name)
        torch.save(inputs, folder / "inputs")
        job = {
            "networks": {name: str(path) for name, path in files.items()},
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
            found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            return {name: Latency(**row) for name, row in found.items()}
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if self.runtime in EXPORTED:
            raise ExportError(f"the process that times the network in {self.runtime} failed: {told}")
        raise _Stays(told)


class _Stays(Exception):
    """The network can't go to another process."""
