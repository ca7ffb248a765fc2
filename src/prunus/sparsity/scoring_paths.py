"""Scoring paths: beside the forward pass, each reading layer runs once more without some channels, and no other layer does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.graph.gates import READING_FUNCTIONS, Gates
from prunus.importance.readers import reading_call
from prunus.types import ChannelGraph

NextOutputs = Literal["alive", "all"]
ACTIVATIONS: frozenset[Any] = frozenset(
    {
        *(F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.leaky_relu, F.prelu),
        *(F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.softplus),
        *(torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh),
    }
)
"""Functions of one tensor, entry by entry, that a scoring path goes through."""


class _Shadow:
    """A tensor of the forward pass, and what it would be without the drawn channels: group name -> tensor."""

    def __init__(self, base: Tensor, without: dict[str, Tensor], outputs: Tensor | None) -> None:
        self.base, self.without, self.outputs = base, without, outputs


class ScoringPaths(Gates):
    """Gates, and with ``drawn`` set: what the next layer loses when these channels are silenced besides.

        t = sum of (base - ablated)^2 / sum of base^2      over the next layer's outputs behind its norm and activation

    Ding et al., AOFP, ICML 2019. The ablated tensor ends where the next layer does, so that all groups are scored in one
    pass, each at the cost of one layer more, without gradients. A batch norm that follows is applied with the statistics that
    the base path has in this batch: running statistics never see the ablated tensors. Departure: in front of a residual
    addition the path ends (the paper's networks are scored inside of blocks only).

    ``drawn``: group name -> bool (num_channels,), the channels to silence. ``changed`` and ``energy``: group name -> the two
    sums, () in float64, of all forward passes since `clear`. ``next_outputs``: whether outputs of the next layer that are
    silenced themselves count.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, values: Mapping[str, Tensor], next_outputs: NextOutputs = "alive"
    ) -> None:
        super().__init__(model, graph, values)
        self._written = self._positions(model, graph, "writes") if next_outputs == "alive" else {}
        self._slices = {n: slice(1 + a, 1 + b) for n, a, b in zip(self.values, self._offsets, self._offsets[1:], strict=False)}
        self._read_by = {
            weight: [name for name, part in self._slices.items() if bool(((index >= part.start) & (index < part.stop)).any())]
            for weight, index in self._index.items()
        }
        self.drawn: dict[str, Tensor] = {}
        self.clear()

    def clear(self) -> None:
        """Forget the sums."""
        self.changed: dict[str, Tensor] = {}
        self.energy: dict[str, Tensor] = {}
        self._shadows: dict[int, _Shadow] = {}

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        shadows, self._shadows = list(self._shadows.values()), {}
        for shadow in shadows if exc_type is None else []:
            self._measure(shadow)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in READING_FUNCTIONS:
            return self._read(func, args, kwargs)
        shadowed = [shadow for value in args if isinstance(value, Tensor) and (shadow := self._shadow_of(value)) is not None]
        if not shadowed:
            return func(*args, **kwargs)
        if func is F.batch_norm or func in ACTIVATIONS:
            return self._follow(shadowed[0], func, args, kwargs)
        if func.__name__.endswith("_") and not func.__name__.startswith("__get"):  # it may write to the tensor: now or never
            self._end(shadowed)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._end(shadowed)
        return result

    def _shadow_of(self, value: Tensor) -> _Shadow | None:
        shadow = self._shadows.get(id(value))
        return shadow if shadow is not None and shadow.base is value else None

    def _read(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        call = reading_call(func, args, kwargs)
        assert call is not None
        shadow = self._shadow_of(call.x)
        if shadow is not None:  # a layer reads what another wrote, without norm or activation in between
            self._end([shadow])
        index = self._index.get(id(call.weight))
        if index is None:
            return func(*args, **kwargs)
        gated = self._gated(call.x, index, READING_FUNCTIONS[func])
        output = call.run(gated)
        drawn = [name for name in self._read_by[id(call.weight)] if name in self.drawn]
        if drawn:
            with torch.no_grad():
                without = {name: call.run(self._without(name, gated.detach(), index, READING_FUNCTIONS[func])) for name in drawn}
                self._shadows[id(output)] = _Shadow(output, without, self._counted(call.weight, output, READING_FUNCTIONS[func]))
        return output

    def _without(self, name: str, x: Tensor, index: Tensor, channels_first: bool) -> Tensor:
        joined, here = self._joined, self._slices[name]
        assert joined is not None
        kept = torch.ones_like(joined)
        kept[here] = (~self.drawn[name]).to(joined)
        self._joined = kept
        try:
            return self._gated(x, index, channels_first)
        finally:
            self._joined = joined

    def _counted(self, weight: Tensor, output: Tensor, channels_first: bool) -> Tensor | None:
        """Gates of the outputs, shaped to multiply them, or None where all count."""
        index = self._written.get(id(weight))
        if index is None:
            return None
        assert self._joined is not None
        width = output.shape[1] if channels_first else output.shape[-1]
        gate = self._joined[index.to(output.device).repeat(width // len(index))]
        return gate.reshape(-1, *[1] * (output.ndim - 2)) if channels_first else gate

    def _follow(self, shadow: _Shadow, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A norm or activation: the same for the ablated tensors."""
        del self._shadows[id(shadow.base)]
        with torch.no_grad():
            if func is F.batch_norm:
                without = _normed(shadow.without, args, kwargs)
            else:
                without = {name: func(x, *args[1:], **kwargs) for name, x in shadow.without.items()}
        result = func(*args, **kwargs)
        self._shadows[id(result)] = _Shadow(result, without, shadow.outputs)
        return result

    def _end(self, shadows: list[_Shadow]) -> None:
        for shadow in shadows:
            if self._shadows.pop(id(shadow.base), None) is not None:
                self._measure(shadow)

    def _measure(self, shadow: _Shadow) -> None:
        with torch.no_grad():
            base = shadow.base.detach().float() if shadow.base.dtype != torch.float64 else shadow.base.detach()
            counted = 1.0 if shadow.outputs is None else shadow.outputs.detach().to(base.dtype)
            energy = (base * counted).square().sum(dtype=torch.float64)
            for name, ablated in shadow.without.items():
                changed = ((base - ablated.to(base.dtype)) * counted).square().sum(dtype=torch.float64)
                self.changed[name] = self.changed.get(name, 0) + changed
                self.energy[name] = self.energy.get(name, 0) + energy


def _normed(tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The batch norm that the base tensor is about to have, with the statistics that it uses, for other tensors."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given: dict[str, Any] = {"training": False, "eps": 1e-5, **dict(zip(names, args, strict=False)), **kwargs}
    base: Tensor = given["input"]
    mean, variance = given.get("running_mean"), given.get("running_var")
    if given["training"] or mean is None:
        others = [i for i in range(base.ndim) if i != 1]
        wide = base.detach().to(torch.promote_types(base.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, others, correction=0)
    own = [None if t is None else t.detach() for t in (mean, variance, given.get("weight"), given.get("bias"))]
    found: dict[str, Tensor] = {}
    for name, x in tensors.items():
        mean, variance, scale, shift = (None if t is None else t.to(x.dtype) for t in own)
        found[name] = F.batch_norm(x, mean, variance, scale, shift, False, 0.0, given["eps"])
    return found
