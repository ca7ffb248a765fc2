"""The order in which training goes through large files, and the loader whose place in it can be kept and taken up again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler, WeightedRandomSampler

from prunus.errors import PrunusError
from prunus.sources.bundle import ImageDataset
from prunus.sources.streamed import Draw, StreamDataset

_SEEDS_AT_A_TIME = 1024


class FileOrder(Sampler[int]):
    """The order of one pass: files in a random order, and a buffer of bounded size from which the next image is drawn.

    The buffer holds positions, not images; an image is drawn only when the pass has come within ``buffer`` images of it.
    ``bounds``: see `StreamDataset.bounds`. ``generator`` seeds every pass.
    """

    def __init__(self, bounds: NDArray[np.int64], buffer: int, generator: torch.Generator) -> None:
        self.bounds, self.buffer, self.generator = bounds, buffer, generator

    def __len__(self) -> int:
        return int(self.bounds[-1] - self.bounds[0])

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng(_draw_seed(self.generator))
        parts = [range(self.bounds[i], self.bounds[i + 1]) for i in random.permutation(len(self.bounds) - 1)]
        incoming = chain.from_iterable(parts)
        held = list(islice(incoming, self.buffer))
        for position in incoming:
            place = int(random.integers(len(held)))
            yield int(held[place])
            held[place] = position
        random.shuffle(held)
        yield from map(int, held)


class Draws(Sampler[Draw]):
    """The images of another sampler, each with a seed of its own, which ``generator`` gives."""

    def __init__(self, order: Sampler[int], generator: torch.Generator) -> None:
        self.order, self.generator = order, generator

    def __len__(self) -> int:
        return len(self.order)  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[Draw]:
        random = np.random.default_rng(_draw_seed(self.generator))
        seeds: list[int] = []
        for position in self.order:
            if not seeds:
                seeds = random.integers(2**32, size=_SEEDS_AT_A_TIME).tolist()
            yield Draw(position, seeds.pop())


def stream_loader(
    dataset: ImageDataset, buffer: int, balanced: WeightedRandomSampler | None, common: dict[str, Any]
) -> DataLoader[Any]:
    """A `torchdata` StatefulDataLoader over a `StreamDataset` in a `FileOrder`, or in the order of ``balanced``.

    Its state is the number of batches that were handed out: what an image is, where it comes and how it is augmented follow from
    the pass's seed, so that going on from a state decodes nothing that was decoded before. ``common``: arguments of any
    `DataLoader`.

    Raises:
        PrunusError: torchdata isn't installed.
    """
    assert isinstance(dataset, StreamDataset)
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ModuleNotFoundError as error:
        raise PrunusError("training on wds: and datasets: needs the package torchdata: pip install 'prunus[stream]'") from error
    # One generator for all that a pass draws: training seeds it for every epoch, the same on every process.
    generator = (balanced.generator if balanced is not None else None) or torch.Generator()
    generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
    order = balanced if balanced is not None else FileOrder(dataset.bounds(), buffer, generator)
    with warnings.catch_warnings():
        # torchdata 0.11 calls something that newer versions of PyTorch call out of date, and that does nothing.
        warnings.filterwarnings("ignore", message=".*set_vital.*")
        return StatefulDataLoader(dataset, sampler=Draws(order, generator), **common)


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())
