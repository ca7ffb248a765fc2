"""Run a network again behind the layers that read a group: what doesn't depend on the silenced channels is not computed twice.

One forward pass is recorded: every torch function with the identity of its arguments, and its result. To try k silenced versions
of a group, the network's own code runs once more under `torch.vmap`, a lane for each version. A function whose arguments are all
as recorded returns what it returned; the layers that read the group are corrected by the silenced channel's contribution; only
what lies behind them is computed, for all lanes at once. vmap keeps lanes apart whatever the network does, or refuses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateUsage]

from prunus.importance.readers import TRANSPOSED, ReadingCall, reading_call

Lanes: TypeAlias = "dict[int, dict[str, Tensor]]"
"""Identity of a reading weight -> ``gate`` (k, length of its reading axis) and, where a lane silences one channel, its
``positions`` (k, p)."""

LANE_BYTES = 2**23
"""The largest tensor behind the reading layers may have so many bytes, all lanes together: they should stay in the cache."""
MOST_LANES = 256


class NotReplayable(Exception):
    """The network can't be re-entered exactly; the plain loop can still evaluate it."""


class Recording(TorchFunctionMode):
    """One forward pass: call -> result. Arguments and results are kept alive, so that an identity stands for one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[Hashable, Any] = {}
        self.products: dict[Hashable, Tensor] = {}
        self.reads: list[tuple[ReadingCall, Tensor]] = []
        self.versions: dict[int, int] = {}
        self.sizes: list[int] = []
        self.first_read: dict[int, int] = {}
        self._alive: list[Any] = []
        self._uses: list[tuple[Tensor, int]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tensors_in((args, kwargs))
        before = [_version(tensor) for tensor in given]
        result = func(*args, **kwargs)
        made = tensors_in(result)
        self._alive.append((args, kwargs, result))
        changed = any(_version(tensor) != version for tensor, version in zip(given, before, strict=True))
        key = _call_key(func, args, kwargs)
        if key is not None:
            self.results[key] = result
        call = reading_call(func, args, kwargs)
        data = {id(tensor) for tensor in given if not isinstance(tensor, nn.Parameter)}
        if call is not None or (len(data) > 1 and (made or changed)):  # a function of one tensor is never run on a recorded one
            used = zip(given, before, strict=True)
            self._uses += [(tensor, version) for tensor, version in used if id(tensor) in data and _version(tensor) == version]
        if call is not None:
            if key is not None:
                self.products[key] = result.clone()  # an activation function in place may change the result itself
            self.reads.append((call, result))
            self.first_read.setdefault(id(call.weight), len(self.sizes))
        self.sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in made))
        return result

    def finish(self) -> None:
        """Close the recording.

        Raises:
            NotReplayable: a tensor was used and then changed in place, so that what its user saw is gone.
        """
        if any(_version(tensor) != version for tensor, version in self._uses):
            raise NotReplayable("a tensor is changed in place after something else has read it")
        self.versions = {id(t): _version(t) for entry in self._alive for t in tensors_in(entry)}
        self._uses.clear()

    def lanes_at_once(self, weights: Mapping[int, Any]) -> int:
        """How many lanes fit in `LANE_BYTES`, by the largest tensor behind the first layer that reads through ``weights``."""
        start = min((self.first_read[w] for w in weights if w in self.first_read), default=len(self.sizes))
        return max(1, min(MOST_LANES, LANE_BYTES // max(self.sizes[start:], default=1)))


class Replay(TorchFunctionMode):
    """The forward pass of a recording with the reading layers of a group silenced as ``lanes`` says, inside `torch.vmap`."""

    def __init__(self, recording: Recording, lanes: Mapping[int, Mapping[str, Tensor]]) -> None:
        super().__init__()
        self._recording = recording
        self._lanes = lanes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        key = _call_key(func, args, kwargs)
        call = reading_call(func, args, kwargs)
        if call is not None:
            return self.reading(call, key)
        if key is not None and key in self._recording.results:
            return self._recording.results[key]
        if func is F.batch_norm:
            return _normalised(args, kwargs)
        result = func(*args, **kwargs)
        for tensor in tensors_in((args, kwargs)):
            if self._recording.versions.get(id(tensor), _UNKNOWN) not in (_UNKNOWN, _version(tensor)):
                raise NotReplayable(f"{getattr(func, '__name__', func)} changes a recorded tensor in place")
        return result

    def reading(self, call: ReadingCall, key: Hashable) -> Any:
        """What a convolution or linear function returns."""
        if id(call.weight) in self._lanes:
            return self._silenced(call, self._recording.products.get(key), self._lanes[id(call.weight)])
        return self._recording.results[key] if key in self._recording.results else call.run(call.x)

    def _silenced(self, call: ReadingCall, recorded: Tensor | None, lane: Mapping[str, Tensor]) -> Tensor:
        groups = call.settings.get("groups", 1)
        positions = lane.get("positions")
        if recorded is None or positions is None or (groups > 1 and call.func in TRANSPOSED):
            return call.run(_gated(call, lane["gate"]))
        length = call.weight.shape[call.weight_axis]
        repeats = call.x.shape[call.axis] // length
        index = (torch.arange(repeats, device=positions.device)[:, None] * length + positions).flatten()
        x = call.x[(slice(None),) * call.axis + (index,)]
        weight = call.weight[positions] if call.weight_axis == 0 else call.weight[:, positions]
        return _lane_by_lane(recorded - call.run(x, weight), recorded)


def _lane_by_lane(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in memory one lane after the other, each in the layout of ``like``, so that layers behind can view all lanes as one
    large batch; the correction comes out with the lanes inside."""
    if like.ndim != 4 or not like.is_contiguous(memory_format=torch.channels_last):
        return x.clone(memory_format=torch.contiguous_format)
    return x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def _gated(call: ReadingCall, gate: Tensor) -> Tensor:
    repeats = call.x.shape[call.axis] // gate.shape[0]
    return call.x * gate.repeat(repeats).reshape(-1, *[1] * (call.x.ndim - call.axis - 1))


def _normalised(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Batch norm with its running statistics as one scale and shift: vmap's own rule takes several times as long."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, mean, variance = given["input"], given["running_mean"], given["running_var"]
    if given.get("training", False) or mean is None or variance is None:
        return F.batch_norm(*args, **kwargs)
    scale = torch.rsqrt(variance + given.get("eps", 1e-5))
    scale = scale if given.get("weight") is None else scale * given["weight"]
    shift = -mean * scale if given.get("bias") is None else given["bias"] - mean * scale
    shape = (-1, *[1] * (x.ndim - 2))
    return (x * scale.reshape(shape).to(x.dtype)).add_(shift.reshape(shape).to(x.dtype))


def record(forward: Callable[[], Any]) -> tuple[Recording, Any]:
    """Run ``forward`` and remember everything it computes: the recording and the output.

    Raises:
        NotReplayable: see `Recording.finish`.
    """
    recording = Recording()
    with recording:
        output = forward()
    recording.finish()
    return recording, output


def replay(recording: Recording, forward: Callable[[], Any], lanes: Lanes, number: int) -> list[Any]:
    """The outputs of ``forward`` in each of the ``number`` lanes.

    Raises:
        NotReplayable: vmap can't keep the lanes apart (an operation on data, in place on what is shared), or a changed tensor.
    """
    spec: list[Any] = []

    def lane(values: Lanes) -> list[Tensor]:
        with Replay(recording, values):
            output = forward()
        leaves, structure = pytree.tree_flatten(output)
        spec[:] = [leaves, structure]
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    stacked = vmapped(lane, lanes)
    return [_unstacked(spec[0], spec[1], stacked, i) for i in range(number)]


def vmapped(lane: Callable[[Lanes], Any], lanes: Lanes) -> Any:
    """``lane`` of every lane at once, results stacked along a new first axis.

    Raises:
        NotReplayable: see `replay`.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            return torch.vmap(lane, randomness="same")(lanes)
    except NotReplayable:
        raise
    except Exception as error:  # whatever vmap refuses, and whatever a network's own code makes of it
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise NotReplayable(f"{type(error).__name__}: {first[:160]}") from error


def _unstacked(leaves: list[Any], structure: Any, stacked: list[Tensor], lane: int) -> Any:
    rows = iter(stacked)
    return pytree.tree_unflatten([next(rows)[lane] if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a nest of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for item in cast("tuple[Any, ...]", value) for tensor in tensors_in(item)]
    if isinstance(value, dict):
        return [tensor for item in cast("dict[Any, Any]", value).values() for tensor in tensors_in(item)]
    return []


_UNKNOWN = -1


def _version(tensor: Tensor) -> int:
    """How often the tensor was changed in place."""
    if tensor.is_inference():
        raise NotReplayable("the network runs in inference mode, which doesn't count changes in place")
    return tensor._version  # pyright: ignore[reportPrivateUsage]


def _call_key(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """What tells a call from others, or None for a call that isn't on tensors or whose arguments have no hash."""
    try:
        key = (func, _value_key(args), _value_key(kwargs))
        hash(key)
    except TypeError:
        return None
    return key if tensors_in((args, kwargs)) else None


def _value_key(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return Tensor, id(value)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_value_key(item) for item in cast("tuple[Any, ...]", value))
    if isinstance(value, Mapping):
        return dict, tuple((name, _value_key(item)) for name, item in cast("Mapping[Any, Any]", value).items())
    if isinstance(value, slice):
        return slice, _value_key((value.start, value.stop, value.step))
    return cast("type[Any]", type(value)), cast("Hashable", value)
