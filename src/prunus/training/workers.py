"""Decoding processes that die or hang, told as what they are."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from traceback import walk_tb

from prunus.errors import TrainingError

_NOTICE_SECONDS = 2.0  # between a connection that breaks and the system's word that the process behind it is dead


@contextmanager
def worker_failures(what: str) -> Generator[None]:
    """`TrainingError` where PyTorch says that a process of its loader died, ran out of memory, or took too long for a batch.

    It says so with the plain errors that anything may raise, and, of a death, at any moment, not only where a batch is fetched:
    also while other contexts are being left, so this one belongs outside them; and while the guard itself is, so there are two.
    """
    with _told(what), _told(what):
        yield


@contextmanager
def _told(what: str) -> Generator[None]:
    """The guard. A process that dies while a batch is on its way breaks the connection first; that error says nothing of it."""
    try:
        try:
            yield
        except (EOFError, OSError) as error:
            if not _receiving(error):
                raise
            time.sleep(_NOTICE_SECONDS)  # PyTorch's handler of dead children raises in here and knows more
            raise RuntimeError(f"DataLoader worker broke off: {type(error).__name__}") from error
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


def _receiving(error: BaseException) -> bool:
    """Whether the error came up where a `torch.utils.data.DataLoader` takes a batch from its processes."""
    return any(frame.f_code.co_name == "_try_get_data" for frame, _ in walk_tb(error.__traceback__))
