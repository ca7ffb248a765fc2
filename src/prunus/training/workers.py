"""Decoding processes that die or hang, told as what they are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from prunus.errors import TrainingError


@contextmanager
def worker_failures(what: str) -> Generator[None]:
    """`TrainingError` where PyTorch says that a process of its loader died, ran out of memory, or took too long for a batch.

    It says so with the plain errors that anything may raise, and, of a death, at any moment, not only where a batch is fetched.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = str(error).partition("\n")[0]
        if "DataLoader timed out" in told:
            raise TrainingError(
                f"{what}: no batch came from the decoding processes within data.worker_timeout ({told}): a file system that "
                "doesn't answer, or images that take longer; raise it, or set data.workers = 0. A run goes on with --resume"
            ) from error
        if "DataLoader worker" in told:
            raise TrainingError(
                f"{what}: a decoding process is gone ({told}): most often memory ran out. Take fewer data.workers, or a smaller "
                "data.batch_size, which is another run. A run goes on with --resume"
            ) from error
        raise
