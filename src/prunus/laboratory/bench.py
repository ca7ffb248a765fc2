"""`bench`: networks timed side by side in several runtimes and settings, and why one isn't as fast as its multiply-adds say."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from prunus.budgets import Timing
from prunus.errors import ExportError, PrunusWarning, UnknownName, UnsupportedNetwork
from prunus.export.fresh_process import NetworkTimer
from prunus.export.runtimes import RUNTIMES, summary
from prunus.graph import trace
from prunus.laboratory.bench_layers import layer_json, peaks_with, time_layers_of
from prunus.laboratory.bench_reasons import Timed, causes, reasons
from prunus.laboratory.bench_statistics import BUSY, median_interval, ratio_interval, spread, verdict
from prunus.pipeline.machine import environment
from prunus.pipeline.networks import digest
from prunus.pipeline.stages import Stages, write_json
from prunus.pipeline.timer import check_device
from prunus.report.bench import write_bench
from prunus.types import ChannelGraph, ExampleInputs

NEAR = 0.9
"""A speed-up of this share of the MACs ratio counts as reached."""


@dataclass(frozen=True)
class Case:
    """One setting: a runtime with its CPU threads, images a pass and memory format."""

    runtime: str
    threads: int = 1
    batch: int = 1
    channels_last: bool = False

    @property
    def timing(self) -> Timing:
        """As the timers take it."""
        return Timing(self.threads, self.batch, channels_last=self.channels_last)

    def __str__(self) -> str:
        layout = ", channels_last" if self.channels_last else ""
        return f"{self.runtime}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}{layout}"


@dataclass(frozen=True)
class BenchSettings:
    """What is measured: every runtime with every batch size and number of threads.

    ``channels_last``: PyTorch's own runtimes in that memory format, too. Each setting takes ``processes`` fresh processes, in
    each of which the networks take turns for about ``seconds``. ``layers``: time every layer alone, to tell why a network
    isn't faster. ``memory``: run each network in a process of its own for its peak.
    """

    runtimes: tuple[str, ...] = ("eager", "onnxruntime")
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    channels_last: bool = False
    processes: int = 3
    seconds: float = 3.0
    layers: bool = True
    layer_seconds: float = 0.2
    memory: bool = True

    def cases(self) -> list[Case]:
        """Every setting, in the order in which it is measured.

        Raises:
            UnknownName: no such runtime.
            ExportError: a count is below one, or there is nothing to measure.
        """
        for name in self.runtimes:
            if name not in RUNTIMES:
                raise UnknownName.among("runtime", name, RUNTIMES)
        counts = (*self.batches, *self.threads, self.processes)
        if not (self.runtimes and self.batches and self.threads) or min(counts) < 1:
            raise ExportError("a bench needs at least one runtime, and batch sizes, threads and processes of at least 1")
        found = [Case(runtime, threads, batch) for runtime in self.runtimes for threads in self.threads for batch in self.batches]
        own = [case for case in found if RUNTIMES[case.runtime].write is None and self.channels_last]
        return list(dict.fromkeys([*found, *(replace(case, channels_last=True) for case in own)]))

    def of_case(self) -> dict[str, Any]:
        """What the result of a case depends on beside the case itself."""
        return {name: getattr(self, name) for name in ("processes", "seconds", "layers", "layer_seconds", "memory")}


def bench(
    networks: Mapping[str, nn.Module],
    example_inputs: ExampleInputs,
    out: Path,
    settings: BenchSettings = BenchSettings(),
    *,
    about: Mapping[str, Any] | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Time ``networks`` side by side, the first of them the reference; returns what ``bench.json`` in ``out`` holds.

    The folder also gets ``bench.html``. Cases that are finished are kept until all are: the same call goes on where a stopped
    one ended; after that it measures anew. A case that can't be measured (a runtime that isn't installed, a network that can't be
    exported) says why in its ``error``, and the others go on. ``about`` goes into the result; ``announce`` is told each case.

    Raises:
        UnknownName, ExportError: see `BenchSettings.cases`; or no case could be measured.
        InvalidBudget: a network isn't on the CPU.
        RecipeError: ``out`` holds a bench of something else that was stopped.
    """
    if not networks:
        raise ExportError("there is nothing to bench: give at least one network by name")
    cases = settings.cases()
    for network in networks.values():
        check_device(network)
    recipe = {
        "networks": {name: digest(network) for name, network in networks.items()},
        "settings": settings.of_case(),
        "subject": dict(about or {}),
    }
    stages = Stages(out, json.loads(json.dumps(recipe, default=str)), True, lambda _: None)
    with ExitStack() as stack:
        work = _Bench(networks, example_inputs, settings, stages, announce, stack)
        result = work.execute(cases, recipe["subject"])
    if all(row["error"] for row in result["cases"]):
        raise ExportError(f"nothing could be measured: {result['cases'][0]['case']}: {result['cases'][0]['error']}")
    write_json(out / "bench.json", result)
    write_bench(result, out / "bench.html")
    shutil.rmtree(out / "stages")
    (out / "recipe.json").unlink()
    return result


class _Bench:
    """One bench in one folder."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        inputs: ExampleInputs,
        settings: BenchSettings,
        stages: Stages,
        announce: Callable[[str], None],
        stack: ExitStack,
    ) -> None:
        self.networks, self.inputs, self.settings = networks, inputs, settings
        self.stages, self.announce, self.stack = stages, announce, stack
        self.timers: dict[tuple[str, int, bool], NetworkTimer] = {}

    def execute(self, cases: Sequence[Case], subject: Mapping[str, Any]) -> dict[str, Any]:
        """The content of ``bench.json``."""
        rows: list[dict[str, Any]] = []
        for number, case in enumerate(cases, start=1):
            name = f"{case.runtime}-{case.threads}-{case.batch}{'-channels_last' * case.channels_last}"
            found = self.stages.run(name, lambda case=case, n=number: self._measured(case, f"{n} of {len(cases)}: {case}"))
            rows.append(self._row(case, found))
        machine = environment()
        return {
            "prunus": machine["prunus"],
            "subject": dict(subject),
            "settings": json.loads(json.dumps(asdict(self.settings))),
            "reference": next(iter(self.networks)),
            "networks": [{"name": name, **self._costs(name)} for name in self.networks],
            "cases": rows,
            "notes": self.untraced,
            "environment": machine,
        }

    # -- networks

    @cached_property
    def graphs(self) -> dict[str, ChannelGraph]:
        """Traced networks; those that can't be are timed all the same."""
        found: dict[str, ChannelGraph] = {}
        self.untraced: list[str] = []
        for name, network in self.networks.items():
            try:
                found[name] = trace(network, self.inputs)
            except UnsupportedNetwork as error:
                self.untraced.append(f"{name} can't be traced, so that its multiply-adds aren't known: {error}")
        return found

    def _costs(self, name: str) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in self.networks[name].parameters())
        cost = self.graphs[name].cost() if name in self.graphs else None
        return {"parameters": parameters, "macs": cost and cost.macs, "activation_bytes": cost and cost.activation_bytes}

    # -- one case

    def _measured(self, case: Case, text: str) -> dict[str, Any]:
        """What is kept of a case: every pass, bytes, layers; or why it can't be measured."""
        self.announce(text)
        try:
            timer = self._timer(case)
            passes = [timer.passes(self.networks) for _ in range(self.settings.processes)]
            memory = {name: timer.memory(net) if self.settings.memory else None for name, net in self.networks.items()}
        except ExportError as error:
            warnings.warn(f"{case} can't be measured: {error}", PrunusWarning, stacklevel=2)
            return {"error": str(error)}
        by_network = {name: [found[name] for found in passes] for name in self.networks}
        measured = {"error": None, "passes": by_network, "memory": memory, "fresh_process": timer.fresh}
        return {**measured, **self._layers(case)}

    def _timer(self, case: Case) -> NetworkTimer:
        """One for all numbers of threads, so that networks are exported once."""
        key = case.runtime, case.batch, case.channels_last
        if key not in self.timers:
            self.timers[key] = self.stack.enter_context(
                NetworkTimer(self.inputs, case.runtime, case.timing, self.settings.seconds)
            )
        self.timers[key].timing = case.timing
        return self.timers[key]

    def _layers(self, case: Case) -> dict[str, Any]:
        runtime = RUNTIMES[case.runtime].layers
        if not self.settings.layers or runtime is None or not self.graphs:
            return {"machine": None, "layers": {}, "layers_in": None}
        found = time_layers_of(self.graphs, self.inputs, runtime, case.timing, self.settings.layer_seconds)
        peaks = peaks_with(found, case.timing)
        layers = {name: [layer_json(row, case.timing, peaks) for row in rows] for name, rows in found.items()}
        return {"machine": peaks, "layers": layers, "layers_in": runtime}

    # -- what is told of it

    def _row(self, case: Case, found: Mapping[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {"case": str(case), **asdict(case), "error": found["error"], "notes": list(found["warnings"])}
        if found["error"] is not None:
            return {**row, "networks": {}, "compared": {}, "layers": {}}
        rows = {name: self._figures(case, rounds, found["memory"][name]) for name, rounds in found["passes"].items()}
        widest = max(rows, key=lambda name: rows[name]["spread"])
        if rows[widest]["spread"] >= BUSY:
            text = f"passes of {widest} vary by {rows[widest]['spread']:.0%} of their median: the machine is busy, measure again "
            row["notes"].append(f"{text}when it isn't")
            warnings.warn(f"{case}: {row['notes'][-1]}", PrunusWarning, stacklevel=4)
        first = next(iter(rows))
        others = {name: self._compared(case, first, name, rows, found) for name in rows if name != first}
        kept = {key: found[key] for key in ("machine", "layers", "layers_in", "fresh_process")}
        return {**row, **kept, "networks": rows, "compared": others}

    def _figures(self, case: Case, rounds: list[list[float]], memory: Mapping[str, int] | None) -> dict[str, Any]:
        every = [ms for times in rounds for ms in times]
        found = summary(every, case.threads, case.batch, case.runtime)
        return {
            "p50_ms": found.median_ms,
            "interval_ms": list(median_interval(rounds)),
            "p10_ms": found.p10_ms,
            "p90_ms": found.p90_ms,
            "p99_ms": found.p99_ms,
            "runs": found.runs,
            "medians_ms": [median(times) for times in rounds],
            "spread": spread(rounds),
            "images_per_second": 1e3 * case.batch / found.median_ms,
            "memory_bytes": memory and memory["peak_bytes"] - memory["before_bytes"],
            "process_bytes": memory and memory["peak_bytes"],
        }

    def _compared(self, case: Case, first: str, name: str, rows: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        """A network beside the reference: speed-up with its interval, the ideal, and the reasons where it falls short of that."""
        interval = ratio_interval(found["passes"][first], found["passes"][name])
        speed_up = rows[first]["p50_ms"] / rows[name]["p50_ms"]
        told = {"speed_up": speed_up, "interval": list(interval), "verdict": verdict(interval)}
        macs = [self._costs(each)["macs"] for each in (first, name)]
        if not all(macs):
            return {**told, "ideal": None, "of_ideal": None, "short": None, "causes": {}, "reasons": []}
        ideal = macs[0] / macs[1]
        told |= {"ideal": ideal, "of_ideal": speed_up / ideal, "short": interval[1] < ideal}
        reference = Timed(rows[first]["p50_ms"], macs[0], found["layers"].get(first, []))
        small = Timed(rows[name]["p50_ms"], macs[1], found["layers"].get(name, []))
        if not (reference.layers and small.layers):
            return {**told, "causes": {}, "reasons": []}
        why = reasons(reference, small, case.runtime) if told["short"] else []
        return {**told, "causes": causes(reference, small), "reasons": why}
