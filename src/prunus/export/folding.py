"""Batch norms folded into the convolutions in front of them, for formats whose runtime doesn't do it by itself."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded(network: nn.Module, program: Any) -> nn.Module | None:
    """A copy of ``network`` (in eval mode) without the batch norms that can be folded; None: there are none.

    ``program`` is what `torch.export` makes of it, and shows who reads what. A pair is
    folded where the norm alone reads the convolution, both are PyTorch's own modules, and each is called once.
    """
    pairs = _pairs(network, program)
    if not pairs:
        return None
    twin = copy.deepcopy(network)
    for convolution, norm in pairs:
        twin.set_submodule(convolution, fuse_conv_bn_eval(twin.get_submodule(convolution), twin.get_submodule(norm)))  # pyright: ignore
        twin.set_submodule(norm, nn.Identity())
    return twin


def _pairs(network: nn.Module, program: Any) -> list[tuple[str, str]]:
    """Names of the modules of every convolution that only a batch norm reads, and of that norm."""
    signature, nodes = program.graph_signature, list(program.graph.nodes)
    names: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    calls: Counter[str] = Counter()  # of modules, by the weight they read
    found: list[tuple[str, str]] = []
    for node in nodes:
        owner = _owner(node, names)
        if owner is not None:
            calls[owner] += 1
        if not str(node.target).startswith("aten.batch_norm") or owner is None:
            continue
        source = node.args[0]
        before = _owner(source, names)
        if before is not None and str(source.target).startswith("aten.conv") and len(source.users) == 1:
            found.append((before, owner))
    once = [pair for pair in found if calls[pair[0]] == calls[pair[1]] == 1]
    return [(c, n) for c, n in once if _plain(network, c, _CONVOLUTIONS) and _plain(network, n, _NORMS)]


def _owner(node: Any, names: dict[str, str]) -> str | None:
    """The module whose weight a node reads as its second argument."""
    weight = node.args[1] if node.op == "call_function" and len(node.args) > 1 else None
    name = names.get(getattr(weight, "name", ""))
    return None if name is None else name.rpartition(".")[0]


def _plain(network: nn.Module, name: str, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether the module is exactly one of these: a subclass, a hook or a parametrisation may do anything."""
    try:
        module = network.get_submodule(name)
    except AttributeError:
        return False
    hooks: Any = (module._forward_hooks, module._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
    shared = [other for other, found in network.named_modules(remove_duplicate=False) if found is module]
    return (
        type(module) in kinds and not any(hooks) and len(shared) == 1 and not torch.nn.utils.parametrize.is_parametrized(module)
    )
