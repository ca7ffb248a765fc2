"""What stands behind each layer on its own way to the next: a batch norm, the sum of a residual block, a ReLU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateUsage]
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.graph.labels import named_tensors
from prunus.importance.readers import reading_call
from prunus.reconstruction.reading_layers import ReadingLayer, ReadingLayers, in_evaluation, norm_call
from prunus.types import ForwardFn, call_model

_SUMS = frozenset({torch.add, torch.Tensor.add, torch.Tensor.add_})
_RELUS = frozenset({F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_})
_DROPOUTS = frozenset({F.dropout, F.dropout1d, F.dropout2d, F.dropout3d})
_Kind: TypeAlias = Literal["norm", "same", "sum", "relu", "other"]


@dataclass(frozen=True)
class Norm:
    """A batch norm in evaluation mode, by the names of its parameters and buffers."""

    mean: str
    variance: str
    scale: str | None
    shift: str | None
    eps: float


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that can be refitted and what its outputs alone go through next, in this order.

    ``norm``: the batch norm behind it; ``in_sum``: then a tensor of the same shape is added, the shortcut of a residual block;
    ``relu``: then comes a ReLU. ``bias``: the name of its own bias, if it has one.
    """

    layer: ReadingLayer
    bias: str | None
    norm: Norm | None
    in_sum: bool
    relu: bool

    @property
    def weight(self) -> str:
        """Name of the weight, by which the layer goes."""
        return self.layer.weight

    def affine(self, tensors: Mapping[str, Tensor], outputs: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of the norm, with a network's tensors: each float64 (outputs,)."""
        if self.norm is None:
            some = next(iter(tensors.values()))
            return some.new_ones(outputs, dtype=torch.float64), some.new_zeros(outputs, dtype=torch.float64)
        mean, variance = tensors[self.norm.mean].double(), tensors[self.norm.variance].double()
        scale = (variance + self.norm.eps).rsqrt()
        if self.norm.scale is not None:
            scale = scale * tensors[self.norm.scale].double()
        shift = -mean * scale
        return scale, shift if self.norm.shift is None else shift + tensors[self.norm.shift].double()


def find_sites(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None = None) -> dict[str, Site]:
    """Weight -> site, in the order of execution, of layers that read through a plain parameter used in no other way."""
    watch, trails = ReadingLayers(model), _Trails(model)
    with in_evaluation(model), watch, trails:
        output = call_model(model, inputs, forward_fn)
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            trails.use(leaf, "other")
    return {name: trails.site(layer) for name, layer in watch.layers(output).items()}


@dataclass(eq=False)
class _Node:
    """A tensor on a layer's way: which layer's, and what is done with it."""

    order: int
    uses: list[tuple[_Kind, Norm | None, _Node | None]] = field(
        default_factory=lambda: list[tuple[_Kind, "Norm | None", "_Node | None"]]()
    )


class _Trails(TorchFunctionMode):
    """While active, notes for every layer's output what is done with it, step by step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in named_tensors(model)}
        self._nodes: Any = WeakTensorKeyDictionary()
        self._first: dict[str, tuple[_Node, str | None]] = {}
        self._calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {id(tensor): self._nodes[tensor] for tensor in tensors if tensor in self._nodes}
        shapes = [tensor.shape for tensor in tensors]
        out = func(*args, **kwargs)
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(out)):
            return out  # a size, a flag
        kind, norm = self._kind(func, args, kwargs, shapes)
        owner = max(known.values(), key=lambda node: node.order, default=None) if kind != "other" else None
        following = _Node(owner.order) if owner is not None else None
        for node in {id(node): node for node in known.values()}.values():
            node.uses.append((kind, norm, following) if node is owner else ("other", None, None))
        call = reading_call(func, args, kwargs)
        if call is not None and id(call.weight) in self._names:
            self._calls += 1
            following = _Node(self._calls)
            bias = call.settings.get("bias")
            name = self._names[id(call.weight)]
            self._first.setdefault(name, (following, None if bias is None else self._names.get(id(bias))))
        if following is not None:
            self._nodes[out] = following
        return out

    def use(self, tensor: Tensor, kind: _Kind) -> None:
        """Note one more use of a tensor."""
        if tensor in self._nodes:
            self._nodes[tensor].uses.append((kind, None, None))

    def _kind(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: list[Any]) -> tuple[_Kind, Norm | None]:
        if func in _RELUS:
            return "relu", None
        if is_sum(func, args, kwargs, shapes):
            return "sum", None
        if is_open_dropout(func, args, kwargs):
            return "same", None
        called = norm_call(func, args, kwargs)
        norm = None if called is None or called.get("training") else self._norm(called)
        return ("other", None) if norm is None else ("norm", norm)

    def _norm(self, called: Mapping[str, Any]) -> Norm | None:
        parts = [called.get(key) for key in ("running_mean", "running_var", "weight", "bias")]
        if parts[0] is None or any(part is not None and id(part) not in self._names for part in parts):
            return None
        mean, variance, scale, shift = (None if part is None else self._names[id(part)] for part in parts)
        return Norm(cast("str", mean), cast("str", variance), scale, shift, float(called.get("eps", 1e-5)))

    def site(self, layer: ReadingLayer) -> Site:
        """What stands behind the layer, as far as its outputs go there alone."""
        node, bias = self._first[layer.weight]
        norm, in_sum, relu = None, False, False
        while len(layer.calls) == 1 and node is not None and len(node.uses) == 1 and not relu:
            kind, found, node = node.uses[0]
            if kind == "other" or (kind == "norm" and (norm is not None or in_sum)) or (kind == "sum" and in_sum):
                break
            norm, in_sum, relu = found or norm, in_sum or kind == "sum", kind == "relu"
        return Site(layer, bias, norm, in_sum, relu)


def is_sum(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: list[Any]) -> bool:
    """Whether it is the plain sum of two tensors of one shape."""
    return func in _SUMS and len(args) == 2 and not kwargs and len(shapes) == 2 and shapes[0] == shapes[1]


def is_open_dropout(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether it is dropout that lets everything through."""
    return func in _DROPOUTS and not (args[2] if len(args) > 2 else kwargs.get("training", True))
