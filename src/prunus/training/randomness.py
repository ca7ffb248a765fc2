"""One seed per epoch, so that shuffling, augmentation and dropout depend on (seed, epoch) and on nothing that went before.

A checkpoint at the end of an epoch therefore needs no generator state to continue exactly.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def _derive(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_epoch(seed: int, epoch: int, loader: Any, rank: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators for an epoch, and the generators that the loader brings along.

    ``loader`` may hold a `torch.Generator` itself or in its sampler or data set (``generator``). The loader's are the same on
    every process (all must shuffle alike); the global ones differ by ``rank``, so that processes don't share dropout masks.
    Generators that a data set hides elsewhere are out of reach: such a data set should draw from the global ones.
    """
    own = _derive(seed, epoch, rank)
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)
    shared = _derive(seed, epoch)
    for generator in _generators(loader):
        generator.manual_seed(shared)


def _generators(loader: Any, depth: int = 3) -> Iterator[torch.Generator]:
    generator = getattr(loader, "generator", None)
    if isinstance(generator, torch.Generator):
        yield generator
    for name in ("sampler", "batch_sampler", "dataset") if depth else ():
        part = getattr(loader, name, None)
        if part is not None:
            yield from _generators(part, depth - 1)


@contextmanager
def restored_generators() -> Generator[None, None, None]:
    """Leave the process's random generators as they were found, so that training moves nobody else's draws."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
