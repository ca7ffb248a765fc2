"""One seed per epoch, so that shuffling, augmentation and dropout depend on (seed, epoch) and on nothing that went before.

A checkpoint at the end of an epoch therefore needs no generator state to continue exactly. One within an epoch needs the state of
what the network draws (dropout); what the data draw has a stream of its own, so that fetching the same batches again brings it
to the same place.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def _seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def _derive(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_epoch(seed: int, epoch: int, loader: Any, rank: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators for an epoch, and the generators that the loader brings along.

    ``loader`` may hold a `torch.Generator` itself or in its sampler or data set (``generator``). The loader's are the same on
    every process (all must shuffle alike); the global ones differ by ``rank``, so that processes don't share dropout masks.
    Generators that a data set hides elsewhere are out of reach: such a data set should draw from the global ones.
    """
    _seed(_derive(seed, epoch, rank))
    shared = _derive(seed, epoch)
    for generator in _generators(loader):
        generator.manual_seed(shared)


def order_of_one(seed: int, epoch: int) -> int:
    """What a shuffling sampler without a generator of its own seeds itself with where one process trains.

    It is the second number that is drawn from the stream of `SeededBatches`: the first is the loader's, for its workers. Several
    processes seed the generator that Accelerate gives the sampler with it, so that they see the images in the same order.
    """
    stream = torch.Generator().manual_seed(_derive(seed, epoch, 0))
    drawn = [int(torch.empty((), dtype=torch.int64).random_(generator=stream).item()) for _ in range(2)]
    return drawn[1]


def _generators(loader: Any, depth: int = 3) -> Iterator[torch.Generator]:
    generator = getattr(loader, "generator", None)
    if isinstance(generator, torch.Generator):
        yield generator
    for name in ("sampler", "batch_sampler", "dataset") if depth else ():
        part = getattr(loader, name, None)
        if part is not None:
            yield from _generators(part, depth - 1)


class SeededBatches:
    """The batches of one epoch, whose shuffling and augmentation draw from a stream of random numbers of their own.

    To be made right behind `seed_epoch`; the network's stream is then seeded, too, with another number.

    An epoch is taken up behind its first ``skip`` batches: at ``state``, what `state` told there, if the loader tells its place;
    otherwise these are fetched and dropped, which brings the data's stream to where it was when they were trained on.
    """

    def __init__(
        self, batches: Iterable[Any], seed: int, epoch: int, rank: int, skip: int = 0, state: dict[str, Any] | None = None
    ) -> None:
        self._batches: Any = batches
        self._stream = _states()
        _seed(_derive(seed, epoch, rank, 1))
        with self._drawing():
            if state is not None:
                self._batches.begin_at(state["loader"])
            self._iterator = iter(batches)
        if state is not None:
            self._stream = _unpacked(state["stream"])
        for _ in range(skip if state is None else 0):
            next(self, None)

    def state(self) -> dict[str, Any] | None:
        """The loader's place behind the batches that were handed out; None where it can't tell."""
        place = self._batches.place() if hasattr(self._batches, "place") else None
        return None if place is None else {"loader": place, "stream": _packed(self._stream)}

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._drawing():
            return next(self._iterator)

    @contextmanager
    def _drawing(self) -> Generator[None]:
        network = _states()
        _restore(self._stream)
        try:
            yield
        finally:
            self._stream = _states()
            _restore(network)


def network_stream() -> dict[str, Any]:
    """The state of the generators that the network draws from, as a checkpoint can hold it."""
    found = _packed(_states())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore_network_stream(state: Mapping[str, Any]) -> None:
    """Put the generators where `network_stream` found them."""
    _restore(_unpacked(state))
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _packed(states: Any) -> dict[str, Any]:
    """States of the three generators as tensors and numbers."""
    (version, words, spare), (kind, keys, position, has_gauss, cached), torch_state = states
    return {
        "python": [version, torch.tensor(words, dtype=torch.int64), spare],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch_state,
    }


def _unpacked(tree: Mapping[str, Any]) -> Any:
    version, words, spare = tree["python"]
    kind, keys, position, has_gauss, cached = tree["numpy"]
    numpy_state = (kind, keys.numpy().astype(np.uint32), position, has_gauss, cached)
    return (version, tuple(words.tolist()), spare), numpy_state, tree["torch"]


def _states() -> Any:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore(states: Any) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@contextmanager
def restored_generators() -> Generator[None, None, None]:
    """Leave the process's random generators as they were found, so that training moves nobody else's draws."""
    states = _states()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        _restore(states)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
