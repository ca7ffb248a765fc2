"""What every row of `SPARSITY_METHODS` must do, on a small network that it trains for twelve steps."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus.errors import PrunusWarning, UnknownName, UnsupportedNetwork
from prunus.sparsity.methods import SPARSITY_METHODS, resolve_method
from prunus.training import train

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("sparse_training.py")


def _work() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sparse_training", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


work = _work()
every_method = pytest.mark.parametrize("name", SPARSITY_METHODS)


@pytest.fixture(autouse=True)
def twelve_steps_are_few() -> Any:
    """Methods may warn that training was too short to make channels vanish."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrunusWarning)
        yield


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# -- resume


class Stop(Exception):
    pass


@every_method
@pytest.mark.parametrize("step", [1, 6, 11])
def test_a_run_resumed_at_a_step_ends_with_the_same_bits(name: str, step: int, tmp_path: Path) -> None:
    whole, _, method = work.trained(name)
    path = tmp_path / "run.ckpt"
    calls = 0

    def stopping(model: nn.Module, inputs: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > step:
            raise Stop
        return model(inputs)

    with pytest.raises(Stop):
        work.trained(name, checkpoint=path, checkpoint_steps=1, forward_fn=stopping)
    model, _, again = work.prepared(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # the weights come from the checkpoint
    log = train(model, work.loader(), work.SETTINGS, seed=2, method=again, checkpoint=path, checkpoint_steps=1, resume=True)
    assert len(log.epochs) == 3
    before, after = state(whole), state(model)
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    first, second = method.plan(work.BUDGET), again.plan(work.BUDGET)
    assert all(torch.equal(first.keep[g], second.keep[g]) for g in first.keep)
    widths = [method.progress().widths, again.progress().widths]
    assert widths[0] == widths[1]


# -- the plan and the network that comes out


@every_method
def test_the_plan_meets_the_budget_counted_on_the_small_network(name: str) -> None:
    _, graph, method = work.trained(name)
    plan = method.plan(work.BUDGET)
    small, _ = prunus.remove(method.finish(), graph, plan)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(work.images(dtype=torch.float64))
    assert counter.get_total_flops() / 2 == plan.predicted.macs
    assert plan.num_removed > 0 and plan.predicted.macs <= 0.5 * graph.cost().macs
    assert all(row["met"] for row in plan.provenance["budget"])


@every_method
def test_the_small_network_is_the_masked_training_network(name: str) -> None:
    """1e-9 relative in float64: nothing that was trained is lost by merging what the method inserted."""
    model, graph, method = work.trained(name)
    plan = method.plan(work.BUDGET)
    masked = prunus.silence(copy.deepcopy(model).eval(), graph, plan)
    small, _ = prunus.remove(method.finish().eval(), graph, plan)
    x = work.images(7, dtype=torch.float64, seed=9)
    with torch.no_grad():
        expected = masked(x)
        assert relative(small(x), expected) < 1e-9
        assert relative(model.eval()(x), expected) > 1e-6 or method.progress().macs < graph.cost().macs  # something went


@every_method
def test_what_was_inserted_is_gone_in_the_end(name: str) -> None:
    original, (model, _, method) = work.network(), work.trained(name)
    with torch.no_grad():
        expected = model.eval()(work.images(3, dtype=torch.float64))
    finished = method.finish().eval()
    shapes = {n: t.shape for n, t in original.state_dict().items()}
    assert {n: t.shape for n, t in finished.state_dict().items()} == shapes
    assert [type(m) for m in finished.modules()] == [type(m) for m in original.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in finished.modules())
    with torch.no_grad():
        assert relative(finished(work.images(3, dtype=torch.float64)), expected) < 1e-9


@every_method
def test_progress_is_of_the_network_if_it_were_cut_now(name: str) -> None:
    _, graph, method = work.trained(name)
    progress = method.progress()
    groups = {g.name: g.num_channels for g in graph.prunable}
    assert progress.widths.keys() == progress.strengths.keys() == groups.keys()
    assert all(0 <= width <= groups[g] for g, width in progress.widths.items())
    assert progress.macs == graph.cost_model.cost(progress.widths).macs
    assert all(v.shape == (groups[g],) and float(v.min()) >= 0 for g, v in progress.strengths.items())


@every_method
def test_training_moves_the_loss_down(name: str) -> None:
    model, _, method = work.prepared(name)
    log = train(model, work.loader(), work.SETTINGS, seed=2, method=method)
    assert log.epochs[-1].loss < log.epochs[0].loss
    assert all(epoch.sparsity is not None and sum(epoch.sparsity["histogram"]["counts"]) == 32 for epoch in log.epochs)


# -- what is refused


@pytest.mark.parametrize("name", [name for name, row in SPARSITY_METHODS.items() if row.needs])
def test_a_network_without_what_a_method_needs_is_refused(name: str) -> None:
    model = work.network(norm=None)
    graph = prunus.trace(model, work.images(dtype=torch.float64))
    with pytest.raises(UnsupportedNetwork, match=r"none of the 3 prunable groups has .*batch norm"):
        SPARSITY_METHODS[name].build().prepare(model, graph, work.task())


@every_method
def test_options_are_those_of_the_class_and_checked(name: str) -> None:
    row = SPARSITY_METHODS[name]
    parameters = inspect.signature(row.method).parameters
    assert set(row.options) == set(parameters)
    assert {"paper", "short"} <= set(row.presets)
    for preset in row.presets.values():
        row.build("paper", **preset)  # its values are allowed ones
    assert all(p.default in row.options[o] if hasattr(row.options[o], "low") else True for o, p in parameters.items())
    with pytest.raises(UnknownName, match=f"unknown option of {name} 'strenght'"):
        row.build(strenght=1)
    with pytest.raises(UnknownName, match=f"unknown preset of {name} 'shrot': did you mean short"):
        row.build("shrot")


def test_an_unknown_method_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown sparsity method 'sliming': did you mean slimming"):
        resolve_method("sliming")
    with pytest.raises(UnknownName, match=r"slimming.strength='much' is not a number from 0 up"):
        resolve_method("slimming", "paper", {"strength": "much"})
    with pytest.raises(UnknownName, match=r"unknown value of slimming.released '1'"):
        resolve_method("slimming", "paper", {"released": 1})


# -- several processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The plan of every method in each of two processes that train together, on batches of six in each."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))
    runs = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder / rank)],
            env={**os.environ, **shared, "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        errors = [run.communicate(timeout=240)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], "\n".join(errors)
    return [json.loads((folder / rank).read_text()) for rank in "01"]


@every_method
def test_two_processes_plan_what_one_plans(two_processes: list[dict[str, Any]], name: str) -> None:
    alone = work.kept(name, batch=12)
    assert two_processes[0][name] == two_processes[1][name] == alone
    assert any(not all(mask) for mask in alone.values())
