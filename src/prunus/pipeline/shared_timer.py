"""Latencies for a run in several processes: one of them measures, and all plan by the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from prunus.budgets import Timing
from prunus.export.layer_timing import LayerShape
from prunus.export.runtimes import Latency
from prunus.pipeline.timer import MachineTimer
from prunus.training.processes import Processes


class SharedTimer:
    """A `Timer` on the machine of the main process, while the others wait."""

    def __init__(self, processes: Processes, inputs: Any, runtime: str, timing: Timing) -> None:
        """Raises `InvalidBudget` where the runtime doesn't have what ``timing`` asks for."""
        self.processes = processes
        self._timer = MachineTimer(inputs, runtime, timing)

    @property
    def in_fresh_process(self) -> bool:
        """See `MachineTimer`."""
        return self._timer.in_fresh_process

    def __enter__(self) -> SharedTimer:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.__exit__()

    def layer(self, shape: LayerShape, widths: Sequence[tuple[int, int]]) -> list[float]:
        """See `Timer`."""
        return self.processes.by_main(lambda: self._timer.layer(shape, widths))

    def networks(self, networks: Mapping[str, nn.Module]) -> Mapping[str, Latency]:
        """See `Timer`."""
        return self.processes.by_main(lambda: dict(self._timer.networks(networks)))
