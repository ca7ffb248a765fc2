"""A new classifier on a trained network: where the old one sits, and what is put in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.errors import RecipeError

HeadKind = Literal["linear", "mlp"]
_PASSING = (nn.Linear, nn.Dropout, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Identity)


def replace_head(
    model: nn.Module, example: Tensor, num_classes: int, *, kind: HeadKind = "linear", hidden: int = 4096, dropout: float = 0.5
) -> str:
    """Put a new head with ``num_classes`` outputs on ``model``, in place, and return the module name of the main one.

    The old head is the layer that produced the output of ``model(example)``: a linear layer, or a convolution in front of pooling
    (SqueezeNet). ``linear`` replaces that one layer. ``mlp`` replaces the whole classifier, the largest container around that
    layer with nothing but linear layers, activations and dropout in it, by dropout - linear - ReLU - dropout - linear - ReLU -
    linear. Heads that only training runs (auxiliary classifiers) get one new layer each. New weights are drawn from torch's
    global generator.

    Raises:
        RecipeError: no such layer is found, or it is a convolution and ``mlp`` was asked for.
    """
    main = next(iter(_heads(model, example, training=False)), None)
    if main is None:
        raise RecipeError(
            f"{type(model).__name__}: no linear layer or convolution produces the output, so the head can't be replaced: "
            f"replace it in a function of your own (path/to/file.py:function) and leave [transfer] out"
        )
    others = {name for name in _heads(model, example, training=True) if name != main}
    if kind == "mlp":
        main = _container(model, main)
        _set(model, main, _mlp(model.get_submodule(main), num_classes, hidden, dropout))
    else:
        _set(model, main, _like(model.get_submodule(main), num_classes))
    for name in others:
        _set(model, name, _like(model.get_submodule(name), num_classes))
    return main


def _heads(model: nn.Module, example: Tensor, training: bool) -> list[str]:
    """Names of the layers whose outputs are (up to pooling) the network's outputs, the main one first."""
    twin = copy.deepcopy(model).train(training)  # the pass moves batch-norm statistics
    calls: list[tuple[str, Tensor]] = []
    for name, module in twin.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(_recorder(name, calls))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = _tensors(twin(example))
    found: list[str] = []
    for output in outputs:
        direct = [name for name, value in calls if value.data_ptr() == output.data_ptr()]
        # SqueezeNet pools behind its last convolution: no layer's output is the network's, but the last one's has its channels.
        pooled = [name for name, value in calls[-1:] if value.dim() > 1 and value.shape[1] == output.shape[1]]
        found += (direct or ([] if found else pooled))[-1:]
    return list(dict.fromkeys(found))


def _recorder(name: str, calls: list[tuple[str, Tensor]]) -> Callable[[nn.Module, Any, Tensor], None]:
    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls.append((name, output))  # kept alive, so that no later tensor can get its address

    return record


def _tensors(output: Any) -> list[Tensor]:
    parts = output if isinstance(output, tuple | list) else [output]
    return [part for part in parts if isinstance(part, Tensor) and part.dim() == 2]  # pyright: ignore[reportUnknownVariableType]


def _container(model: nn.Module, name: str) -> str:
    """The largest module around layer ``name`` that holds nothing but a classifier's layers."""
    if not isinstance(model.get_submodule(name), nn.Linear):
        raise RecipeError(f"the head `{name}` is a convolution, which an mlp can't replace: set transfer.head = 'linear'")
    largest = name
    while "." in name:
        name = name.rpartition(".")[0]
        around = model.get_submodule(name)
        if not isinstance(around, nn.Sequential) or not all(isinstance(part, _PASSING) for part in around):
            break
        largest = name
    return largest


def _mlp(old: nn.Module, num_classes: int, hidden: int, dropout: float) -> nn.Module:
    features = next(part.in_features for part in old.modules() if isinstance(part, nn.Linear))
    return nn.Sequential(
        *(nn.Dropout(dropout), nn.Linear(features, hidden), nn.ReLU()),
        *(nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, num_classes),
    )


def _like(old: nn.Module, num_classes: int) -> nn.Module:
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, num_classes, bias=old.bias is not None)  # pyright: ignore[reportUnnecessaryComparison]
    assert isinstance(old, nn.Conv2d)
    return nn.Conv2d(old.in_channels, num_classes, old.kernel_size, old.stride, old.padding)  # pyright: ignore[reportArgumentType]


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
