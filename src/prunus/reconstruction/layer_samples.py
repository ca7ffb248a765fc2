"""What a layer reads and gives at sampled points, in a pass that stops as soon as it has been seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.errors import EvidenceError, UnsupportedNetwork
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun, to_device
from prunus.importance.points import draw_points, inputs_at, output_positions, outputs_at
from prunus.importance.readers import ReadingCall, reading_call
from prunus.reconstruction.layer_sites import Site, is_open_dropout, is_sum
from prunus.reconstruction.reading_layers import in_evaluation, norm_call
from prunus.types import call_model


@dataclass(frozen=True, eq=False)
class Sample:
    """Points of one call in both networks: x (points, inputs, kernel) of the small one, y (points, outputs) of the original, what
    each adds behind the layer (points, outputs) or None, and the number of the image that every point is of (points,)."""

    x: Tensor
    y: Tensor
    shortcut: Tensor | None
    shortcut_before: Tensor | None
    images: Tensor


def samples(
    small: nn.Module, full: nn.Module, site: Site, original: str, run: DataRun, points: int, seed: int
) -> Iterator[Sample]:
    """Pass the data through both networks as far as the layer, batch by batch; the same ``points`` of every image are taken.

    Nothing is kept from batch to batch. x is of ``small`` and y of the weight ``original`` in ``full``: what earlier layers do
    wrong is part of x.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    for batch in run:
        inputs = run.inputs(to_device(batch, small))
        now = _Visit(small, site.weight, site, lambda images, positions: draw_points(images, positions, points, generator), _read)
        now.run(small, inputs, run)
        drawn = iter([visited.places for visited in now.found])
        before = _Visit(full, original, site, lambda _, __, drawn=drawn: next(drawn), outputs_at)
        before.run(full, inputs, run)
        images = 0
        for a, b in zip(now.found, before.found, strict=True):
            images = max(images, a.images)
            yield Sample(a.values, b.values, a.shortcut, b.shortcut, seen + a.places.cpu() // a.positions)
        seen += images


_Take = Callable[[ReadingCall, Tensor, Tensor], Tensor]


def _read(call: ReadingCall, _: Tensor, places: Tensor) -> Tensor:
    return inputs_at(call, places)


class _Seen(BaseException):
    """Ends a pass; not an error, and nothing that a network's own ``except Exception`` should catch."""


@dataclass(eq=False)
class _Visited:
    places: Tensor
    images: int
    positions: int
    values: Tensor
    shortcut: Tensor | None = None


class _Visit(TorchFunctionMode):
    """While active, samples the calls of one layer and, in a residual block, the tensor that is added behind it."""

    def __init__(self, model: nn.Module, weight: str, site: Site, draw: Callable[[int, int], Tensor], take: _Take) -> None:
        super().__init__()
        self.found: list[_Visited] = []
        self._site, self._draw, self._take = site, draw, take
        self._weight = dict(named_tensors(model))[weight]
        self._way: Any = WeakTensorKeyDictionary()
        self._call: ReadingCall | None = None

    def run(self, model: nn.Module, inputs: Any, run: DataRun) -> None:
        """Run the network until the layer has been seen."""
        try:
            with in_evaluation(model), self:
                call_model(model, inputs, run.forward_fn)
        except _Seen:
            return
        raise UnsupportedNetwork(
            f"on one of the batches `{self._site.weight}` isn't used as on the first: the network's program depends on its data, "
            "so this layer can't be reconstructed; leave it out with `skip`"
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._look_at_sum(func, args, kwargs)
        out = func(*args, **kwargs)
        call = reading_call(func, args, kwargs)
        if call is not None and call.weight is self._weight:
            self._sample(call, out)
        elif self._passes_on(func, args, kwargs):
            self._way[out] = True
        return out

    def _sample(self, call: ReadingCall, out: Tensor) -> None:
        images, positions = output_positions(call, out)
        places = self._draw(images, positions).to(out.device)
        self.found.append(_Visited(places, images, positions, self._take(call, out, places)))
        if self._site.in_sum:
            self._call = call
            self._way[out] = True
        elif len(self.found) == len(self._site.layer.calls):
            raise _Seen

    def _passes_on(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self._call is None or not args or not isinstance(args[0], Tensor) or args[0] not in self._way:
            return False
        return norm_call(func, args, kwargs) is not None or is_open_dropout(func, args, kwargs)

    def _look_at_sum(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._call is None or not is_sum(func, args, kwargs, [a.shape for a in args if isinstance(a, Tensor)]):
            return
        ours = [tensor in self._way for tensor in args]
        if any(ours):
            visited = self.found[-1]
            visited.shortcut = outputs_at(self._call, args[0] if ours[1] else args[1], visited.places)
            raise _Seen


def check_repeatable(run: DataRun) -> None:
    """Refuse data that can be gone through once only."""
    if isinstance(run.data, Iterator):
        raise EvidenceError(
            f"the data are gone through once for every layer, and a {type(run.data).__name__} gives them only once: "
            "pass a loader or a list of batches"
        )
