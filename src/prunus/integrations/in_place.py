"""Surgery inside of a training that somebody else runs: who holds the network or its layers keeps holding them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prunus.errors import UnsupportedNetwork
from prunus.graph.labels import named_tensors
from prunus.graph.trace import tensors_in
from prunus.surgery import SurgeryRecord, remove
from prunus.types import ChannelGraph, ForwardFn, PruningPlan, call_model, map_tensors


class JoinedOptimizers:
    """The part of one or several optimizers that holds a network's parameters, as one optimizer that `remove` can move along.

    Frameworks have optimizers over more than the network that is pruned (a loss with parameters, a second network), and more
    than one. `hand_back` puts the moved parameters and their state where the old ones were.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], network: nn.Module) -> None:
        own = {id(parameter) for parameter in network.parameters()}
        self._optimizers = optimizers
        self._places = [
            (optimizer, group, [place for place, p in enumerate(group["params"]) if id(p) in own])
            for optimizer in optimizers
            for group in optimizer.param_groups
        ]
        self.param_groups: list[dict[str, Any]] = [
            {"params": [group["params"][place] for place in places]} for _, group, places in self._places
        ]
        held = {id(p) for group in self.param_groups for p in group["params"]}
        self.state: dict[Any, Any] = {
            p: state for optimizer in optimizers for p, state in optimizer.state.items() if id(p) in held
        }
        self._old = [p for group in self.param_groups for p in group["params"]]

    def hand_back(self) -> None:
        """The optimizers hold what this one does now."""
        for optimizer in self._optimizers:
            for parameter in self._old:
                optimizer.state.pop(parameter, None)
        for (optimizer, group, places), moved in zip(self._places, self.param_groups, strict=True):
            for place, parameter in zip(places, moved["params"], strict=True):
                group["params"][place] = parameter
                if parameter in self.state:
                    optimizer.state[parameter] = self.state[parameter]


def remove_in_place(
    network: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    optimizers: Sequence[torch.optim.Optimizer],
    ema: nn.Module | None,
    example_inputs: Any,
    forward_fn: ForwardFn | None,
) -> SurgeryRecord:
    """Carry out ``plan`` on ``network`` itself, whose module objects stay, and on its optimizers.

    Raises:
        UnsupportedNetwork: the network, taken apart and put together so, gives other outputs than the small one that was proven
            (a module keeps parameters where PyTorch doesn't look for them). It can't be used any more then.
    """
    joined = JoinedOptimizers(optimizers, network)
    small, record = remove(network, graph, plan, optimizer=joined, ema=ema)  # pyright: ignore[reportArgumentType]
    expected = _outputs(small, example_inputs, forward_fn)
    _adopt(network, small, record)
    joined.hand_back()
    problem = _misfit(network, small, expected, example_inputs, forward_fn)
    if problem is not None:
        raise UnsupportedNetwork(
            f"the network can't be pruned while a framework holds it: its modules, with the small one's parameters, {problem}. "
            "Some module keeps parameters elsewhere than as its attributes. Prune before training (prunus.prune), and train the "
            "result"
        )
    return record


def _misfit(
    network: nn.Module, small: nn.Module, expected: list[torch.Tensor], inputs: Any, forward_fn: ForwardFn | None
) -> str | None:
    """How the network that was put together in place differs from the small one, or None."""
    if [id(t) for _, t in named_tensors(network)] != [id(t) for _, t in named_tensors(small)]:
        return "hold others besides"
    try:
        found = _outputs(network, inputs, forward_fn)
    except Exception as error:  # the network's own code, which meets tensors of two widths
        return f"don't run ({type(error).__name__}: {error})"
    same = len(found) == len(expected) and all(map(_alike, found, expected))
    return None if same else "give other outputs than the small network does"


def _adopt(network: nn.Module, small: nn.Module, record: SurgeryRecord) -> None:
    """Parameters, buffers, widths and replaced layers of ``small`` become those of ``network``, module by module."""
    modules = dict(network.named_modules(remove_duplicate=False))
    for path, new in small.named_modules(remove_duplicate=False):
        old = modules.get(path)
        if old is None:
            continue
        for name, child in new.named_children():
            if type(child) is not type(getattr(old, name)):  # a layer of which nothing is left
                setattr(old, name, child)
        for name, parameter in new.named_parameters(recurse=False):
            setattr(old, name, parameter)  # not into _parameters: recurrent layers keep a list of theirs in step
        for name, buffer in new.named_buffers(recurse=False):
            setattr(old, name, buffer)
    for path, values in record.attributes.items():
        new = small.get_submodule(path)
        for attribute in values:
            if hasattr(new, attribute):  # what stands in for an emptied layer has no widths
                setattr(network.get_submodule(path), attribute, getattr(new, attribute))


def _outputs(network: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> list[torch.Tensor]:
    """What the network gives in evaluation mode; modes and the random state stay as they are."""
    modes = [(module, module.training) for module in network.modules()]
    own = map_tensors(torch.clone, inputs)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return tensors_in(call_model(network.eval(), own, forward_fn))
    finally:
        for module, mode in modes:
            module.training = mode


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same but for the last digits, which an accelerator may compute differently each time."""
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    return a.shape == b.shape and (a.numel() == 0 or bool((a - b).abs().max() <= 1e-4 * b.abs().max()))
