"""Which groups make a plan fail: by where the small network breaks, then by bisection over groups of one kind."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import raise_if_out_of_memory
from prunus.graph.trace import cloned
from prunus.types import ChannelGraph, ChannelGroup, ForwardFn, PruningPlan, call_model

_NOT_THE_NETWORK = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))


@dataclass(frozen=True)
class Crash:
    """A forward pass that failed: the dotted path of the innermost module that ran, the program's line, the error."""

    module: str
    line: str
    error: str


def crash_of(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None = None) -> Crash | None:
    """Run one forward pass in the mode ``model`` is in; None if it goes through."""
    paths = {id(module): name for name, module in model.named_modules()}
    running: list[str] = []

    def enter(module: nn.Module, _: Any) -> None:
        running.append(paths.get(id(module), running[-1] if running else ""))

    def leave(_: nn.Module, __: Any, ___: Any) -> None:
        running.pop()

    hooks = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),  # not called for a module that fails: its path stays on top
    )
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            call_model(model, cloned(inputs), forward_fn)
    except Exception as error:
        raise_if_out_of_memory(error)
        return Crash(running[-1] if running else "", _own_line(error), f"{type(error).__name__}: {error}")
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _own_line(error: Exception) -> str:
    """``file.py:12`` of the innermost frame of the network's own code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THE_NETWORK)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def find_culprits(
    graph: ChannelGraph, plan: PruningPlan, breaks: Callable[[PruningPlan], bool], near: str | None = None
) -> list[str]:
    """Groups of a failing plan that fail by themselves.

    Networks repeat their blocks, so that groups with the same members but for numbers in their names (`stages.0.conv`,
    `stages.1.conv`) are tried together, and given up together if the first and the last of them fail alone.

    Args:
        breaks: whether a plan, a part of the failing one, fails.
        near: the module in which the small network broke; the groups around it are tried first.
    """

    def fails(names: Sequence[str]) -> bool:
        return breaks(replace(plan, keep={name: plan.keep[name] for name in names}))

    def fails_together(kinds: Sequence[list[str]]) -> bool:
        return fails([name for kind in kinds for name in kind])

    groups = {group.name: group for group in graph.groups}
    kinds: dict[frozenset[str], list[str]] = {}
    for name, mask in plan.keep.items():
        if not bool(mask.all()):
            kinds.setdefault(_kind(groups[name]), []).append(name)
    suspects = list(kinds.values())
    for scope in _scopes(near):
        around = [kind for kind in suspects if any(_touches(groups[name], scope) for name in kind)]
        if around and len(around) < len(suspects) and fails_together(around):
            suspects = around
            break
    found: list[str] = []
    for kind in bisect(suspects, fails_together):
        if len(kind) > 2 and fails(kind[:1]) and fails(kind[-1:]):
            found += kind
        else:
            found += [name for part in bisect([[name] for name in kind], fails_together) for name in part]
    return found


def bisect(suspects: Sequence[list[str]], fails: Callable[[Sequence[list[str]]], bool]) -> list[list[str]]:
    """Members of a failing set that fail; where halves fail only together, what is left of the second one is given up."""
    if len(suspects) == 1:
        return list(suspects)
    first, second = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
    if not fails(first):
        return bisect(second, fails)
    return bisect(first, fails) + (bisect(second, fails) if fails(second) else [])


def _kind(group: ChannelGroup) -> frozenset[str]:
    """The group's members without the numbers in their names."""
    return frozenset(
        f"{re.sub(r'[0-9]+', '#', m.parameter_axis.parameter)} {m.parameter_axis.axis} {m.parameter_axis.role}"
        for m in group.members
    )


def _touches(group: ChannelGroup, scope: str) -> bool:
    return any(m.parameter_axis.parameter.startswith(f"{scope}.") for m in group.members)


def _scopes(path: str | None) -> list[str]:
    """A module's path and the paths around it, without the whole network."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
