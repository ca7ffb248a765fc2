"""What a network computes without having seen its input: the constants by construction, found without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.errors import UnsupportedNetwork
from prunus.graph.labels import named_tensors
from prunus.graph.op_call import is_pointwise
from prunus.graph.trace import tensors_in
from prunus.importance.readers import ReadingCall, reading_call
from prunus.reconstruction.reading_layers import in_evaluation, norm_call
from prunus.types import ForwardFn, call_model, map_tensors


def known_values(model: nn.Module, inputs: Any, *, forward_fn: ForwardFn | None = None) -> dict[str, Tensor]:
    """Inputs of convolutions and linear layers that are constants whatever the network's input is, in evaluation mode.

    Every number of the input is replaced by NaN, the sign of *unknown*, which arithmetic passes on. Where a weight is exactly
    zero the layer doesn't read the number, and where the scale (gamma) of a batch norm is exactly zero it emits its shift (beta).
    What is still a number where a layer reads is a constant. Zeros are tested exactly, never against a threshold.

    Returns:
        Parameter name -> (inputs,), the constant of each input channel; NaN where it depends on the input, or on the position.

    Raises:
        UnsupportedNetwork: an input isn't floating point, so nothing can be unknown in it, or the network doesn't run on NaN.
    """
    tensors = tensors_in(inputs)
    if not tensors or not all(tensor.is_floating_point() for tensor in tensors):
        raise UnsupportedNetwork(
            "constants are found by making the inputs unknown (NaN), which needs inputs of floating-point numbers only; "
            "this network takes integers, so what depends on its input can't be told from what doesn't"
        )
    unknown = map_tensors(lambda tensor: torch.full_like(tensor, torch.nan), inputs)
    guard = _Guard()
    watch = _Unknowns(model, guard)
    try:
        with in_evaluation(model, tensors[0].dtype), guard, watch:
            call_model(model, unknown, forward_fn)
    except UnsupportedNetwork as error:
        raise UnsupportedNetwork(f"constants by construction can't be found: {error}") from error
    except Exception as error:
        raise UnsupportedNetwork(
            f"the network doesn't run on unknown inputs (NaN): {type(error).__name__}: {error}; its constants can't be found"
        ) from error
    return watch.values


class _Unknowns(TorchFunctionMode):
    """While active, NaN means *unknown*: weights and scales of exactly zero stop it. Constants that are read are kept."""

    def __init__(self, model: nn.Module, guard: _Guard) -> None:
        super().__init__()
        self._guard = guard
        self._names = {id(tensor): name for name, tensor in named_tensors(model)}
        self.values: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        read, norm = reading_call(func, args, kwargs), norm_call(func, args, kwargs)
        self._guard.paused = read is not None
        try:
            if read is not None:
                self._note(read)
                return _what_is_read(read)
            out = func(*args, **kwargs)
            self._guard.paused = True
            if norm is not None:
                _emit_shift(out, norm)
            return out
        finally:
            self._guard.paused = False

    def _note(self, call: ReadingCall) -> None:
        name = self._names.get(id(call.weight))
        if name is None:
            return
        found = _constants(call.x, call.axis)
        before = self.values.get(name, found)
        same = found == before if found.shape == before.shape else torch.zeros_like(found, dtype=torch.bool)
        self.values[name] = torch.where(same, found, torch.nan)


class _Guard(TorchDispatchMode):
    """Keeps track of what is unknown where NaN alone would be lost: in comparisons, integers, rounding and the like.

    Operations that aren't PyTorch's own (regions of interest, deformable convolutions) and casts to integers work on zeros
    instead of NaN, which they might take for an index; what they give is unknown all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self._unknown: Any = WeakTensorKeyDictionary()  # integers and truth values, which can't be NaN

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        tensors = tensors_in([args, kwargs])
        hidden = any(tensor in self._unknown for tensor in tensors)
        unknown = [mask for tensor in tensors if tensor.is_floating_point() and bool((mask := tensor.isnan()).any())]
        if not hidden and not unknown:
            return func(*args, **kwargs)
        foreign = func.namespace not in ("aten", "prim", "prims")
        if foreign or _casts_to_integers(func, args, kwargs):
            out, hidden = func(*map_tensors(_zeros_for_unknown, args), **kwargs), True
        else:
            out = func(*args, **kwargs)
        if not tensors_in(out):
            raise UnsupportedNetwork(f"the program looks at values that depend on the input (`{func}`)")
        for tensor in tensors_in(out):
            if not tensor.is_floating_point():
                self._unknown[tensor] = True
            elif hidden:
                tensor.fill_(torch.nan)
            elif is_pointwise(func):
                for mask in unknown:
                    tensor.masked_fill_(mask, torch.nan)
        return out


def _casts_to_integers(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if func is torch.ops.aten.copy_.default:
        return not args[0].is_floating_point()
    dtype: torch.dtype | None = kwargs.get("dtype") if func is torch.ops.aten._to_copy.default else None
    return dtype is not None and not (dtype.is_floating_point or dtype.is_complex)


def _zeros_for_unknown(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0.0) if tensor.is_floating_point() else tensor


def _constants(x: Tensor, axis: int) -> Tensor:
    """The one value along each index of ``axis``, (inputs,); NaN where there are several, or one that isn't finite."""
    rows = x.movedim(axis, 0).flatten(1)
    low, high = rows.aminmax(dim=1)
    return torch.where((low == high) & low.isfinite(), low, torch.nan)


def _what_is_read(call: ReadingCall) -> Tensor:
    """The call's result, unknown only where a weight that isn't zero reads an unknown number."""
    unknown = call.x.isnan()
    out = call.run(call.x.masked_fill(unknown, 0))
    reached = call.run(unknown.to(call.x.dtype), (call.weight != 0).to(call.x.dtype))
    return out.masked_fill(reached > 0, torch.nan)


def _emit_shift(out: Tensor, norm: Mapping[str, Any]) -> None:
    """In place: where the scale is zero, the result is the shift, whatever was read."""
    scale, shift = norm.get("weight"), norm.get("bias")
    if scale is None or norm.get("training"):
        return
    closed = (scale == 0).nonzero().squeeze(1)
    values = torch.zeros_like(scale) if shift is None else shift
    out[:, closed] = values[closed].view(1, -1, *[1] * (out.ndim - 2)).to(out)
