"""Latency budgets end to end on machines that are made up: layers, calls and memory cost what the test says, with noise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunus
from prunus import Budget, BudgetNotMet, InvalidBudget
from prunus.budgets import Timing
from prunus.export.layer_timing import LayerShape
from prunus.export.runtimes import Latency
from prunus.pipeline.time_layers import time_layers
from prunus.pipeline.timer import MachineTimer, liked_multiple, widths_to_measure
from small_nets import build, images


class FakeMachine:
    """A layer takes ``per_mac`` a multiply-add in blocks of ``block`` channels plus ``launch``; a whole network ``context`` times
    its layers, ``per_byte`` for all that is written and ``call``; whole networks are noisy by ``noise``."""

    def __init__(
        self,
        per_mac: float = 1e-5,
        launch: float = 0.002,
        block: int = 1,
        context: float = 1.0,
        per_byte: float = 0.0,
        call: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        self.per_mac, self.launch, self.block = per_mac, launch, block
        self.context, self.per_byte, self.call, self.noise = context, per_byte, call, noise
        self.draw = np.random.default_rng(0)
        self.layers_timed: list[tuple[LayerShape, int]] = []
        self.networks_timed: list[tuple[str, ...]] = []

    def blocks(self, width: int) -> int:
        return -(-width // self.block) * self.block

    def one(self, shape: LayerShape, reads: int, writes: int) -> float:
        narrow = shape.depthwise or reads < self.block
        macs, _ = shape.work(reads if narrow else self.blocks(reads), self.blocks(writes) if writes > self.block else writes)
        return self.launch + self.per_mac * macs

    def layer(self, shape: LayerShape, widths: Sequence[tuple[int, int]]) -> list[float]:
        self.layers_timed.append((shape, len(widths)))
        return [self.one(shape, *pair) for pair in widths]

    def networks(self, networks: Mapping[str, nn.Module]) -> dict[str, Latency]:
        self.networks_timed.append(tuple(networks))
        return {name: self.latency(network) for name, network in networks.items()}

    def latency(self, network: nn.Module) -> Latency:
        ms = self.true(network) * self.draw.normal(1, self.noise)
        return Latency(ms, ms * (1 - self.noise), ms * (1 + self.noise), 30, 1, 1, "fake")

    def true(self, network: nn.Module) -> float:
        graph = prunus.trace(getattr(network, "model", network), images())
        layers = sum(self.one(LayerShape.of(one, 3, 1), len(one.reads), len(one.writes)) for one in graph.layers)
        written: Any = graph.cost_model
        return self.context * layers + self.per_byte * float(written.written_bytes([], np.zeros((1, 0)))[0]) + self.call


def wide() -> nn.Module:
    """Three layers of 64 channels: wide enough to probe."""
    torch.manual_seed(0)
    widths = (1, 64, 64, 64)
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*layers, nn.Conv2d(64, 4, 1))


def prune(machine: FakeMachine, net: str = "Residual", **asked: Any) -> prunus.PruneResult:
    settings = {"tolerance": 0.02, **asked}
    return prunus.prune(build(net), images(), Budget(**settings), timer=machine)


MACHINES = {
    "arithmetic": FakeMachine,
    "slower in context": lambda: FakeMachine(context=1.4, call=0.005),
    "much memory": lambda: FakeMachine(per_byte=1.5e-7),
    "blocks of two": lambda: FakeMachine(block=2, context=0.8, call=0.003),
    "noisy": lambda: FakeMachine(context=1.2, per_byte=5e-8, call=0.004, noise=0.01),
}


@pytest.mark.parametrize("share", [0.8, 0.6])
@pytest.mark.parametrize("kind", MACHINES)
def test_measured_latency_comes_within_5_percent(kind: str, share: float) -> None:
    """Layers alone predict none of these machines; a few measured networks do."""
    machine = MACHINES[kind]()
    model = build("Residual")
    result = prune(machine, latency=share)
    truth = machine.true(result.model) / machine.true(model)
    assert truth == pytest.approx(share, rel=0.05)
    (row,) = result.plan.provenance["budget"]
    assert row["met"] and row["requested"] == pytest.approx(share * row["full"])
    assert result.after.latency_ms == row["achieved"] and result.before.latency_ms == row["full"]
    assert row["achieved"] == pytest.approx(row["requested"], rel=0.05)
    assert row["predicted"] == pytest.approx(row["achieved"], rel=0.2)
    assert len(machine.networks_timed) <= 10
    assert result.verification is not None and result.verification.passed


def test_what_is_measured_and_what_it_says() -> None:
    """The full network and two uniform ones calibrate; then every plan is timed beside the full one."""
    machine = FakeMachine(context=1.3, call=0.01)
    result = prune(machine, latency=0.6)
    assert machine.networks_timed[:3] == [("full",), ("full", "0", "1"), ("full", "small")]
    assert set(machine.networks_timed[2:]) == {("full", "small")}
    told = result.plan.provenance["latency"]
    settings = {name: told[name] for name in ("runtime", "threads", "batch", "dtype", "channels_last")}
    assert settings == {"runtime": "eager", "threads": 1, "batch": 1, "dtype": "float32", "channels_last": False}
    assert [m["predicted_ms"] is None for m in told["measured"][:3]] == [True, True, False]
    assert result.plan.provenance["allocator"] == "knapsack"
    line = str(result).splitlines()[0]
    assert re.match(
        r"latency: [\d.]+ ms -> [\d.]+ ms, asked for <= [\d.]+ ms; measured on eager, 1 thread, batch 1; [\d.]+", line
    )


def test_every_shape_is_timed_once() -> None:
    machine = FakeMachine()
    graph = prunus.trace(build("Residual"), images())
    time_layers(graph, images(), Timing(), machine)
    shapes = [shape for shape, _ in machine.layers_timed]
    assert len(shapes) == len(set(shapes)) < len(graph.layers)


def test_absolute_milliseconds() -> None:
    machine = FakeMachine(context=1.2)
    full = machine.true(build("Residual"))
    result = prune(machine, latency=f"{0.7 * full}ms")
    assert machine.true(result.model) == pytest.approx(0.7 * full, rel=0.05)


def test_all_targets_hold() -> None:
    """Multiply-adds are the tighter one: latency is met with room to spare."""
    machine = FakeMachine()
    result = prune(machine, latency=0.8, macs=0.4)
    rows = {row["target"]: row for row in result.plan.provenance["budget"]}
    assert rows["macs"]["met"] and rows["latency"]["met"]
    assert 0.95 * 0.4 <= result.after.macs / result.before.macs <= 0.4
    assert machine.true(result.model) < 0.8 * machine.true(build("Residual"))


def test_another_allocator_and_a_call_of_ones_own() -> None:
    machine = FakeMachine(call=0.01)
    result = prunus.prune(
        build("Residual"),
        images(),
        Budget(latency=0.6, tolerance=0.02),
        allocator="global_per_cost",
        forward_fn=lambda model, inputs: model(inputs),
        timer=machine,
    )
    assert result.plan.provenance["allocator"] == "global_per_cost"
    assert result.plan.provenance["budget"][0]["met"]


def test_liked_widths_without_a_latency_target() -> None:
    """Blocks of eight are found, and used for a budget on MACs."""
    machine = FakeMachine(block=8)
    result = prunus.prune(wide(), images(), Budget(macs=0.5, multiple_of="auto", tolerance=0.15), timer=machine)
    assert all(kept % 8 == 0 for kept in result.plan.counts().values())
    assert machine.networks_timed == []


# -- what can't be had


def test_launch_bound() -> None:
    machine = FakeMachine(launch=0.5, per_mac=1e-6)
    with pytest.raises(BudgetNotMet) as caught:
        prune(machine, latency=0.3)
    text = str(caught.value)
    assert re.search(r"the budget latency <= [\d.]+ ms \(30\.0% of [\d.]+ ms\) on eager isn't met: the nearest of \d meas", text)
    assert re.search(r"It is launch-bound: \d+% of its time is what its 6 layers take at any width", text)
    assert caught.value.plan is not None and not caught.value.plan.provenance["budget"][0]["met"]


def test_memory_bound() -> None:
    machine = FakeMachine(per_mac=1e-9, launch=0.0001, per_byte=1e-6, call=0.0)
    with pytest.raises(BudgetNotMet, match=r"memory-bound: \d+% of its time goes to operations that only read and write"):
        prune(machine, latency=0.1, max_pruning_ratio=0.5)


def test_a_busy_machine_and_coarse_steps_are_named() -> None:
    with pytest.raises(BudgetNotMet, match=r"Timings vary by \d+% from pass to pass: the machine is busy"):
        prune(FakeMachine(noise=0.3), latency=0.55)
    with pytest.raises(BudgetNotMet, match=r"Widths come in steps that are too coarse, or most channels are frozen"):
        prune(FakeMachine(launch=0.0), latency=0.75, multiple_of=16, min_channels=16, max_pruning_ratio=0.9)


def test_odd_widths_are_named() -> None:
    """Whole networks of odd widths take 60 % of the full one's time at least, which layers at multiples of 8 don't show."""

    class Odd(FakeMachine):
        def true(self, network: nn.Module) -> float:
            graph = prunus.trace(getattr(network, "model", network), images())
            odd = any(len(layer.writes) % 8 for layer in graph.layers[:-1])
            return max(super().true(network), 0.6 * super().true(wide())) if odd else super().true(network)

    with pytest.raises(BudgetNotMet, match=r"[Ii]ts widths are odd ones: here multiples of \d+ are fast"):
        prunus.prune(wide(), images(), Budget(latency=0.35, multiple_of=1), timer=Odd(block=8))


def test_settings_that_a_runtime_lacks() -> None:
    with pytest.raises(InvalidBudget, match="onnxruntime runs the exported network in float32 and chooses the memory format"):
        prunus.prune(build("Plain"), images(), Budget(latency="0.5@onnxruntime"), timing=Timing(channels_last=True))
    with pytest.raises(InvalidBudget, match="timing needs threads >= 1 and batch >= 1, not threads=0, batch=1"):
        Timing(threads=0)
    with pytest.raises(InvalidBudget, match="timing with dtype='int8': known are float32, bfloat16"):
        Timing(dtype="int8")
    with pytest.raises(InvalidBudget, match="latency is measured on the CPU, but the network is on meta: move it first"):
        from prunus.pipeline.timer import check_device

        check_device(nn.Linear(1, 1, device="meta"))


# -- which widths


def conv(reads: int, writes: int, groups: int = 1) -> LayerShape:
    return LayerShape("convolution", reads, writes, 1, 0, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), (0, 0), groups)


def test_widths_that_are_measured() -> None:
    assert widths_to_measure(conv(64, 128), (True, True)) == ([16, 32, 48, 64], [16, 48, 80, 128])
    assert widths_to_measure(conv(3, 64), (False, True)) == ([3], [16, 32, 48, 64])
    assert widths_to_measure(conv(64, 10), (True, False)) == ([16, 32, 48, 64], [10])
    assert widths_to_measure(conv(1, 128, groups=128), (False, True)) == ([1], [16, 32, 64, 96, 128])
    assert widths_to_measure(conv(4, 128, groups=32), (True, True))[1] == [32, 64, 96, 128]


@pytest.mark.parametrize("block", [1, 4, 8, 16, 32])
def test_the_multiple_that_the_machine_has(block: int) -> None:
    machine = FakeMachine(block=block, launch=0.0)
    assert liked_multiple(machine, [conv(256, 256), conv(128, 128)]) == block


def test_no_plain_convolution_to_probe() -> None:
    assert liked_multiple(FakeMachine(block=8), [conv(1, 96, groups=96), conv(16, 16)]) == 1


# -- for real


def test_a_tiny_network_on_this_machine(tmp_path: Any) -> None:
    """Every part runs: layers, cache, two fresh processes; how near it comes depends on the machine."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3))
    inputs = torch.randn(1, 3, 40, 40)
    graph = prunus.time_network(model, prunus.trace(model, inputs), inputs, timing=Timing(cache=tmp_path))
    full = graph.cost().latency_ms
    assert full is not None and 0.01 < full < 1000
    plan = prunus.allocate(graph, prunus.score(model, graph, "l1"), Budget(latency=0.6, tolerance=0.3))
    assert 0.3 * full <= plan.predicted.latency_ms <= 0.6 * full
    (file,) = tmp_path.glob("layer-times-*.json")
    before = file.read_text()
    with MachineTimer(inputs, "eager", Timing(cache=tmp_path)) as timer:
        again = time_layers(prunus.trace(model, inputs), inputs, Timing(), timer)
    assert again.cost().latency_ms == pytest.approx(sum(layer.table.ms[-1, -1] for layer in graph.cost_model.layers))
    assert file.read_text() == before
