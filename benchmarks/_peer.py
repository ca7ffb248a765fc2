"""torch-pruning on a network of the coverage matrix, used as its README says, beside Prunus in the same process.

Each tool prunes copies of the same network, alternating, on one thread; `_peer_judge` says whether what torch-pruning returns is
exact. Facts are printed as they are found, so that a process that is stopped keeps them.
"""

from __future__ import annotations

import copy
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _coverage_networks import Case, Network
from _coverage_one import emit
from _peer_judge import judge, with_unlike_values
from torch import Tensor, nn

import prunus
from prunus.graph.branches import OUTPUT
from prunus.graph.trace import tensors_in
from prunus.testing import random_plan
from prunus.types import ChannelGraph, call_model

REPEAT_BELOW = 5.0
"""CPU seconds: what took longer once isn't timed a second time."""


def survey_peer(network: Network, cpu_seconds: int, memory_gb: float) -> None:
    """Build the network, prune half of every layer but the heads with both tools, and print times and the verdict.

    The limit holds for each step (Prunus, torch-pruning, the comparison) apart, so that one can't use up the time of another.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory_gb * 2**30), resource.RLIM_INFINITY))
    emit(stage="build")
    case = network.build()
    original = with_unlike_values(case.model).eval()
    emit(stage="prunus")
    allow(cpu_seconds)
    graph, own = prune_with_prunus(original, case)
    emit(prunus_seconds=own)
    heads = last_layers(original, case, graph)
    emit(stage="peer", ignored_layers=heads)
    allow(cpu_seconds)
    pruned = copy.deepcopy(original)
    try:
        seconds = timed(lambda: prune(pruned, case, heads))
    except Exception as error:
        emit(verdict="error", error=f"{type(error).__name__}: {error}"[:500])
        return
    emit(stage="judge", seconds=seconds)
    allow(cpu_seconds)
    emit(**judge(original, pruned, case, mixes=graph is None or any(group.mixing for group in graph.groups)))
    if own is not None and own + seconds < REPEAT_BELOW:
        emit(stage="again")
        allow(cpu_seconds)
        _, again = prune_with_prunus(original, case)
        second = copy.deepcopy(original)
        emit(prunus_seconds=min(own, again or own), seconds=min(seconds, timed(lambda: prune(second, case, heads))))


def allow(cpu_seconds: int) -> None:
    """From now on, this much CPU time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + cpu_seconds, resource.RLIM_INFINITY))


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of ``work``."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def prune_with_prunus(model: nn.Module, case: Case) -> tuple[ChannelGraph | None, float | None]:
    """The graph and the CPU seconds of trace + plan + remove; None where Prunus refuses or fails."""
    graph: ChannelGraph | None = None

    def work() -> None:
        nonlocal graph
        graph = prunus.trace(model, case.inputs, forward_fn=case.forward_fn, train_inputs=case.train_inputs)
        if graph.prunable:
            prunus.remove(model, graph, random_plan(graph))

    try:
        return graph, timed(work)
    except Exception:
        return graph, None
    finally:
        model.eval()


def prune(model: nn.Module, case: Case, ignored: list[str]) -> None:
    """torch-pruning: half of the channels of every layer but the ignored ones, in place."""
    import torch_pruning

    options: dict[str, Any] = {}
    if case.forward_fn is not None:
        options["forward_fn"] = case.forward_fn
        options["output_transform"] = lambda outputs: sum(out.sum() for out in tensors_in(outputs) if out.is_floating_point())
    torch_pruning.pruner.BasePruner(
        model,
        case.inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model.get_submodule(name) for name in ignored],
        in_channel_groups={},  # its defaults are dicts that all pruners of a process share
        out_channel_groups={},
        num_heads={},
        **options,
    ).step()


def last_layers(model: nn.Module, case: Case, graph: ChannelGraph | None) -> list[str]:
    """The layers that write the network's outputs: a user would tell them to torch-pruning.

    Prunus' graph knows them; without one, it is the last convolution or linear layer that runs.
    """
    layers = {name for name, module in model.named_modules() if isinstance(module, _LAYERS)}
    if graph is not None:
        members = [m for g in graph.frozen if OUTPUT in (g.frozen_because or "") for m in g.with_role("writes")]
        found = {member.parameter_axis.parameter.rpartition(".")[0] for member in members} & layers
        if found:
            return sorted(found)
    return [_called(model, case)[-1]]


_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)  # pyright: ignore[reportPrivateUsage]


def _called(model: nn.Module, case: Case) -> list[str]:
    calls: list[str] = []

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda *_: calls.append(name)

    hooks = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if isinstance(m, _LAYERS)]
    with torch.no_grad():
        call_model(model, case.inputs, case.forward_fn)
    for hook in hooks:
        hook.remove()
    return calls
