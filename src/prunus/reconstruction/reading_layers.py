"""Which layers read channels through a plain parameter, and where a constant can be added behind each of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateUsage]
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.graph.labels import named_tensors
from prunus.importance.readers import TRANSPOSED, ReadingCall, reading_call

_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_RAW_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")
_NORM_PARAMETERS: dict[Any, tuple[str, ...]] = {F.batch_norm: _NORM, torch.batch_norm: _RAW_NORM}


@dataclass(frozen=True)
class Outlet:
    """A vector along a layer's outputs; adding ``sign * amount`` to it adds ``amount`` to what the layer computes."""

    parameter: str
    sign: int


@dataclass(frozen=True, eq=False)
class CallShape:
    """One call of a layer, without its numbers: the function, its settings, and the extent of one input (channels first)."""

    func: Callable[..., Any]
    settings: Mapping[str, Any]
    extent: tuple[int, ...]
    kernel: tuple[int, ...]

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.func in TRANSPOSED

    @property
    def uniform(self) -> bool:
        """Whether a constant input gives one constant for each output at every position: no padding, not transposed."""
        padding = self.settings.get("padding", 0)
        if padding == "same":
            padded = any(size > 1 for size in self.kernel)
        elif isinstance(padding, str):
            padded = False
        else:
            padded = any(cast("tuple[int, ...]", padding)) if isinstance(padding, (tuple, list)) else padding != 0
        return not self.transposed and not padded

    def response(self, weight: Tensor, values: Tensor) -> Tensor:
        """What the layer adds for one constant on each input, (inputs,), without its bias: float64 (outputs, positions)."""
        rank = len(self.kernel)
        extent, settings = self.extent, {**self.settings, "bias": None}
        if self.uniform and rank:  # one position is like all others
            extent, settings = self.kernel, {**settings, "padding": 0, "dilation": 1}
        constant = values.double().view(-1, *[1] * rank).expand(-1, *extent)
        result: Tensor = self.func(constant.unsqueeze(0) if rank else values.double(), weight.detach().double(), **settings)
        return result.reshape(-1, 1) if rank == 0 else result[0].flatten(1)


@dataclass(eq=False)
class _Call:
    weight: str
    shape: CallShape
    bias: str | None
    has_bias: bool
    norms: list[str | None] = field(default_factory=lambda: list[str | None]())
    elsewhere: bool = False


@dataclass(frozen=True, eq=False)
class ReadingLayer:
    """All calls that read through one parameter. ``outlets`` is empty where no constant can be added, for the reason ``why``;
    ``width``: inputs of a call, which for a grouped convolution are more than the entries of the weight's axis."""

    weight: str
    axis: int
    width: int
    calls: tuple[CallShape, ...]
    outlets: tuple[Outlet, ...]
    why: str = ""
    has_bias: bool = False

    @property
    def uniform(self) -> bool:
        """Whether constants pass every call as constants."""
        return all(call.uniform for call in self.calls)


class ReadingLayers(TorchFunctionMode):
    """While active, notes the calls of convolutions and linear layers and the batch norms that follow them.

    Afterwards ``layers(output)`` tells what was found: parameter name -> `ReadingLayer`, for parameters that are used in no
    other way. A parameter that is, or from which a weight is computed, is in ``others``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in named_tensors(model)}
        self.others: set[str] = set()
        self._calls: dict[str, list[_Call]] = {}
        self._made: Any = WeakTensorKeyDictionary()
        self._bias_users: dict[str, set[str]] = {}
        self._norm_sources: dict[str, set[str]] = {}
        self._widths: dict[str, tuple[int, int]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = func(*args, **kwargs)
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(out)):
            return out  # a size, a flag
        read, norm = reading_call(func, args, kwargs), norm_call(func, args, kwargs)
        known: set[int] = set()
        if read is not None and isinstance(read.weight, nn.Parameter) and id(read.weight) in self.names:
            known = self._note_read(read, out)
        elif norm is not None:
            known = self._note_norm(norm)
        for tensor in tensors:
            if id(tensor) not in known:
                self._note_use(tensor)
        return out

    def _note_read(self, call: ReadingCall, out: Tensor) -> set[int]:
        weight, bias = self.names[id(call.weight)], call.settings.get("bias")
        name = self.names.get(id(bias)) if isinstance(bias, nn.Parameter) else None
        extent, kernel = tuple(call.x.shape[call.axis + 1 :]), tuple(call.weight.shape[2:])
        settings = {key: value for key, value in call.settings.items() if key != "bias"}
        found = _Call(weight, CallShape(call.func, settings, extent, kernel), name, bias is not None)
        self._calls.setdefault(weight, []).append(found)
        width = (call.weight_axis, call.x.shape[call.axis])
        if self._widths.setdefault(weight, width) != width:
            self.others.add(weight)  # an encoder's weight that decodes as well: one position of it means two things
        self._made[out] = found
        if name is not None:
            self._bias_users.setdefault(name, set()).add(weight)
        return {id(call.weight), id(bias)}

    def _note_norm(self, norm: Mapping[str, Any]) -> set[int]:
        mean = None if norm.get("training") else self.names.get(id(norm.get("running_mean")))
        call: _Call | None = self._made.get(norm["input"])
        if call is not None:
            call.norms.append(mean)
        if mean is not None:
            self._norm_sources.setdefault(mean, set()).add("" if call is None else call.weight)
        return {id(norm["input"]), id(norm.get("running_mean"))}

    def _note_use(self, tensor: Tensor) -> None:
        if id(tensor) in self.names:
            self.others.add(self.names[id(tensor)])
        elif tensor in self._made:
            self._made[tensor].elsewhere = True

    def layers(self, output: Any) -> dict[str, ReadingLayer]:
        """What was found; ``output`` is what the network returned."""
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._note_use(leaf)
        found: dict[str, ReadingLayer] = {}
        for weight, calls in self._calls.items():
            if weight not in self.others:
                outlets = self._outlets(calls)
                why, outlets = (outlets, ()) if isinstance(outlets, str) else ("", outlets)
                shapes, has_bias = tuple(c.shape for c in calls), any(c.has_bias for c in calls)
                found[weight] = ReadingLayer(weight, *self._widths[weight], shapes, outlets, why, has_bias)
        return found

    def _outlets(self, calls: list[_Call]) -> tuple[Outlet, ...] | str:
        """Where a constant can be added behind all of these calls of one weight, or why not."""
        if any(call.has_bias for call in calls):
            biases = {call.bias for call in calls}
            name = calls[0].bias
            if len(biases) > 1 or name is None or name in self.others or len(self._bias_users[name]) > 1:
                return "its bias is computed, or shared with another operation"
            return (Outlet(name, 1),)
        means: dict[str, None] = {}
        for call in calls:
            mean = call.norms[0] if len(call.norms) == 1 and not call.elsewhere else None
            if mean is None or mean in self.others or self._norm_sources[mean] != {call.weight}:
                return "it has no bias, and no batch norm with running statistics follows it and it alone"
            means[mean] = None
        return tuple(Outlet(mean, -1) for mean in means)


def norm_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a batch norm by name, or None where ``func`` is something else."""
    names = _NORM_PARAMETERS.get(func)
    return None if names is None else {**dict(zip(names, args, strict=False)), **kwargs}


@contextmanager
def in_evaluation(model: nn.Module, dtype: torch.dtype | None = None) -> Generator[None]:
    """Evaluation mode and, if given, a default type for the tensors that the network makes; both are put back."""
    modes = [(module, module.training) for module in model.modules()]
    before = torch.get_default_dtype()
    try:
        model.eval()
        torch.set_default_dtype(dtype or before)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(before)
        for module, mode in modes:
            module.training = mode
