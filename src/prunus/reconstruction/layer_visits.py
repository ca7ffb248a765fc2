"""A pass through a network that looks at some of its layers at sampled points, and stops as soon as all have been seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.errors import UnsupportedNetwork
from prunus.importance.evidence import DataRun
from prunus.importance.points import output_positions, outputs_at
from prunus.importance.readers import ReadingCall, reading_call
from prunus.reconstruction.layer_sites import Site, is_open_dropout, is_sum
from prunus.reconstruction.reading_layers import in_evaluation, norm_call
from prunus.types import call_model


@dataclass(eq=False)
class Visited:
    """One call of a layer at ``places`` (int64, points), which count the positions of all ``images``.

    ``values`` (points, ...) is what was taken there; ``shortcut`` (points, outputs) what is added behind the layer, or None.
    """

    places: Tensor
    images: int
    positions: int
    values: Tensor
    shortcut: Tensor | None = None


class Watch:
    """What to take of one layer: ``draw(images, positions)`` gives the places, ``take(call, output, places)`` the values."""

    def __init__(
        self,
        weight: Tensor,
        site: Site,
        draw: Callable[[int, int], Tensor],
        take: Callable[[ReadingCall, Tensor, Tensor], Tensor],
    ) -> None:
        self.weight, self.site, self.found = weight, site, list[Visited]()
        self._draw, self._take = draw, take
        self._call: ReadingCall | None = None
        self._way: Any = WeakTensorKeyDictionary()

    @property
    def done(self) -> bool:
        """Whether every call has been seen, and the sum behind it."""
        return len(self.found) == len(self.site.layer.calls) and self._call is None

    def sample(self, call: ReadingCall, out: Tensor) -> None:
        """Take points of a call."""
        images, positions = output_positions(call, out)
        places = self._draw(images, positions).to(out.device)
        self.found.append(Visited(places, images, positions, self._take(call, out, places)))
        if self.site.in_sum:
            self._call = call
            self._way[out] = True

    def follow(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> bool:
        """Go along from the layer to the sum behind it; whether this was a step of that way."""
        if self._call is None or not args or not isinstance(args[0], Tensor) or args[0] not in self._way:
            return False
        if norm_call(func, args, kwargs) is None and not is_open_dropout(func, args, kwargs):
            return False
        self._way[out] = True
        return True

    def look_at_sum(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take what is added, before it is."""
        if self._call is None or not is_sum(func, args, kwargs, [a.shape for a in args if isinstance(a, Tensor)]):
            return
        ours = [tensor in self._way for tensor in args]
        if any(ours):
            self.found[-1].shortcut = outputs_at(self._call, args[0] if ours[1] else args[1], self.found[-1].places)
            self._call = None
            self._way.clear()


class _Seen(BaseException):
    """Ends a pass; not an error, and nothing that a network's own ``except Exception`` should catch."""


class _Visit(TorchFunctionMode):
    """While active, lets the watches see what the network does."""

    def __init__(self, watches: Iterable[Watch]) -> None:
        super().__init__()
        self._waiting = {id(watch.weight): watch for watch in watches}
        self._behind: list[Watch] = []

    @property
    def missing(self) -> list[Watch]:
        """Layers that haven't been seen as a whole."""
        return [*self._behind, *self._waiting.values()]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for watch in self._behind:
            watch.look_at_sum(func, args, kwargs)
        self._settle()
        out = func(*args, **kwargs)
        call = reading_call(func, args, kwargs)
        watch = None if call is None else self._waiting.get(id(call.weight))
        if call is not None and watch is not None:
            watch.sample(call, out)
            if len(watch.found) == len(watch.site.layer.calls):
                self._behind.append(self._waiting.pop(id(call.weight)))
                self._settle()
        else:
            for watch in self._behind:
                watch.follow(func, args, kwargs, out)
        return out

    def _settle(self) -> None:
        self._behind = [watch for watch in self._behind if not watch.done]
        if not self.missing:
            raise _Seen


def visit(model: nn.Module, inputs: Any, run: DataRun, watches: Iterable[Watch]) -> None:
    """Pass one batch's inputs through the network, as far as needed.

    Raises:
        UnsupportedNetwork: a layer isn't used as on the first batch.
    """
    mode = _Visit(watches)
    try:
        with in_evaluation(model), mode:
            call_model(model, inputs, run.forward_fn)
    except _Seen:
        return
    for watch in mode.missing:
        raise unlike_the_first(watch)


def unlike_the_first(watch: Watch) -> UnsupportedNetwork:
    """What to say where a pass ended and the watch's layer wasn't seen as a whole."""
    return UnsupportedNetwork(
        f"on one of the batches `{watch.site.weight}` isn't used as on the first: the network's program depends on its data, "
        "so this layer can't be reconstructed; leave it out with `skip`"
    )
