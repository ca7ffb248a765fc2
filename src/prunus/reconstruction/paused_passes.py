"""Passes that stand still at a layer until it has been refitted, and go on from there: time grows with depth, not its square."""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateUsage]

from prunus.importance.evidence import DataRun, to_device
from prunus.importance.readers import ReadingCall, reading_call
from prunus.reconstruction.layer_visits import Watch, unlike_the_first, visit
from prunus.reconstruction.reading_layers import in_evaluation
from prunus.types import ForwardFn, call_model

MOST_HELD = 2**31
"""So many bytes of feature maps stand still at most; other batches pass through the network anew for every layer."""
MOST_PASSES = 256
"""Each has a thread."""


@dataclass(frozen=True, eq=False)
class _Operation:
    """Something that the network's program wants computed; ``autocast``: device and type, where the program has set it."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[str, torch.dtype] | None

    def result(self) -> Any:
        with nullcontext() if self.autocast is None else torch.autocast(*self.autocast):
            return self.func(*self.args, **self.kwargs)


class _Closed(BaseException):
    """Ends a program; nothing that its own ``except Exception`` should catch."""


class _Program(TorchFunctionMode):
    """A network's program in a thread of its own, which has every operation computed by the thread that waits for it.

    So streams and OpenMP's threads are the caller's, and the program stands still as long as nobody asks for more.
    """

    def __init__(self, model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> None:
        super().__init__()
        self._wanted = SimpleQueue[_Operation | BaseException | None]()
        self._computed = SimpleQueue[tuple[Any, Exception | None]]()
        self._closed = False
        self._kind = next(model.parameters()).device.type
        around = contextvars.copy_context()
        self._thread = Thread(target=around.run, args=(self._run, model, inputs, forward_fn), daemon=True)

    def start(self) -> _Operation | None:
        """The first operation; None where there is none."""
        self._thread.start()
        return self._received()

    def answer(self, result: Any, error: Exception | None = None) -> _Operation | None:
        """Hand on what the last operation gave; the next one, or None at the end."""
        self._computed.put((result, error))
        return self._received()

    def close(self) -> None:
        """Unwind the program, wherever it stands."""
        self._closed = True
        self._computed.put((None, None))
        self._thread.join()

    def _received(self) -> _Operation | None:
        found = self._wanted.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def _run(self, model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> None:
        try:
            with torch.no_grad(), self:
                call_model(model, inputs, forward_fn)
        except _Closed:
            return
        except BaseException as error:
            self._wanted.put(error)
            return
        self._wanted.put(None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._closed:  # what the program does while it unwinds
            return func(*args, **(kwargs or {}))
        own = (self._kind, torch.get_autocast_dtype(self._kind)) if torch.is_autocast_enabled(self._kind) else None
        self._wanted.put(_Operation(func, args, kwargs or {}, own))
        result, error = self._computed.get()
        if self._closed:
            raise _Closed
        if error is not None:
            raise error
        return result


class PausedPass:
    """One batch on its way through a network; between two calls of `to` it stands still behind a layer.

    It has gone there with the layer's weights of that time. Once they have changed, `to` first computes anew what lies between
    the layer and the place where it stands, into the same tensors, whoever holds them.
    """

    def __init__(self, model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> None:
        self._program = _Program(model, inputs, forward_fn)
        self._layer: ReadingCall | None = None
        self._version = 0  # of what the layer read
        self._since: list[tuple[_Operation, Tensor]] = []  # from the layer on
        self._seen: set[int] = set()
        self._made = _references(inputs)
        self._next = self._program.start()

    def can_reach(self, watch: Watch) -> bool:
        """Whether the layer lies ahead, or is the one where the pass stands, and what has been computed can be computed anew."""
        if self._layer is not None and self._version != _version(self._layer.x):
            return False
        return self._stands_at(watch) or id(watch.weight) not in self._seen

    def to(self, watch: Watch) -> None:
        """Go on until the watch has seen its layer, or to the end."""
        if self._stands_at(watch):
            watch.sample(self._layer, self._since[0][1])  # pyright: ignore[reportArgumentType]
            for operation, out in self._since[1:]:
                watch.follow(operation.func, operation.args, operation.kwargs, out)
        else:
            for operation, out in self._since:
                out.copy_(operation.result())
            self._layer, self._since = None, []
        while self._next is not None and not watch.done:
            watch.look_at_sum(self._next.func, self._next.args, self._next.kwargs)
            if not watch.done:
                self._compute(self._next, watch)

    def _stands_at(self, watch: Watch) -> bool:
        return self._layer is not None and self._layer.weight is watch.weight

    def _compute(self, operation: _Operation, watch: Watch) -> None:
        try:
            out = operation.result()
        except Exception as error:  # which the program may expect
            self._next = self._program.answer(None, error)
            return
        self._made += _references(out)
        call = reading_call(operation.func, operation.args, operation.kwargs)
        if call is not None:
            self._seen.add(id(call.weight))
        if call is not None and call.weight is watch.weight:
            watch.sample(call, out)
            self._layer, self._version, self._since = call, _version(call.x), [(operation, out)]
        elif watch.follow(operation.func, operation.args, operation.kwargs, out):
            self._since.append((operation, out))
        self._next = self._program.answer(out)

    def held(self, others: Any) -> int:
        """Bytes of the inputs and feature maps that are still needed, but for tensors in ``others``; views count, too."""
        tensors = {id(tensor): tensor for made in self._made if (tensor := made()) is not None}
        self._made = [weakref.ref(tensor) for tensor in tensors.values()]
        for leaf in pytree.tree_leaves(others):
            tensors.pop(id(leaf), None)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def close(self) -> None:
        """Give everything back."""
        self._layer, self._since, self._next = None, [], None
        self._program.close()


class PausedPasses:
    """Passes through a network for as many batches as there is room for, every one at the last layer that was looked at."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._standing: dict[int, tuple[bytes, PausedPass]] = {}
        self._bytes: dict[int, int] = {}

    def visit(self, number: int, batch: Any, key: bytes | None, run: DataRun, watch: Watch) -> None:
        """Pass the data's ``number``-th batch through the network until the watch has seen its layer.

        A batch goes on from where it stands, if it is the same as before and the layer lies ahead; so layers are best looked at
        in the order of execution, and each refitted before the next. ``key``: the batch's `digest`.

        Raises:
            UnsupportedNetwork: the layer isn't used as on the first batch.
        """
        if key is None or len(watch.site.layer.calls) > 1 or torch.is_autocast_enabled(watch.weight.device.type):
            self._close(number)
            visit(self._model, run.inputs(to_device(batch, self._model)), run, [watch])
            return
        there, standing = self._standing.get(number, (None, None))
        with in_evaluation(self._model):
            if standing is None or there != key or not standing.can_reach(watch):
                self._close(number)
                standing = PausedPass(self._model, run.inputs(to_device(batch, self._model)), run.forward_fn)
                self._standing[number] = key, standing
            standing.to(watch)
        if not watch.done:
            self._close(number)
            raise unlike_the_first(watch)
        held_anyway = batch if isinstance(run.data, (list, tuple)) else ()
        self._bytes[number] = standing.held(held_anyway)
        if sum(self._bytes.values()) > MOST_HELD or len(self._standing) > MOST_PASSES:
            self._close(number)

    def _close(self, number: int) -> None:
        self._bytes.pop(number, None)
        _, standing = self._standing.pop(number, (None, None))
        if standing is not None:
            standing.close()

    def __enter__(self) -> PausedPasses:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number in list(self._standing):
            self._close(number)


def _references(tree: Any) -> list[weakref.ref[Tensor]]:
    return [weakref.ref(leaf) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _version(tensor: Tensor) -> int:
    """Changes with every change in place; of tensors of inference mode it isn't known."""
    return 0 if tensor.is_inference() else tensor._version
