"""One run in several processes (`accelerate launch`, `torchrun`): one of them writes, and all are made to agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from accelerate.utils import broadcast_object_list, gather_object

from prunus.errors import ProcessError, RecipeError
from prunus.training.placement import process_state

T = TypeVar("T")


class Processes:
    """The processes of this run. With one, everything here is what it would be without it."""

    def __init__(self) -> None:
        state = process_state()
        self.count, self.main = state.num_processes, state.is_main_process

    def by_main(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in the main process, which alone does it; the others wait.

        Raises:
            ProcessError: in the others, where ``work`` failed.
        """
        if self.count == 1:
            return work()
        outcome: list[tuple[bool, T | None]] = [(False, None)]
        error: BaseException | None = None
        if self.main:
            try:
                outcome = [(True, work())]
            except BaseException as own:  # the others wait for this process: they must hear of it before it is raised
                error = own
        ((well, found),) = broadcast_object_list(outcome)
        if error is not None:
            raise error
        if not well:
            raise ProcessError("the main process of this run failed: its own message says why")
        return cast("T", found)

    def main_first(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in this process; the others begin when the main one is done, whose downloads they then find.

        Raises:
            ProcessError: in the others, where ``work`` failed in the main process.
        """
        found: list[T] = []
        self.by_main(lambda: found.append(work()))
        return found[0] if found else work()

    def lacking(self, found: Callable[[], bool]) -> list[int]:
        """Numbers of the processes in which ``found()`` is false; the same in all."""
        every = [found()] if self.count == 1 else cast("list[bool]", gather_object([found()]))
        return [rank for rank, well in enumerate(every) if not well]

    def agree(self, what: str, value: Callable[[], str]) -> None:
        """Raise `ProcessError` where ``value()`` isn't the same in all processes; ``what`` says what it is."""
        if self.count == 1:
            return
        every = cast("list[str]", gather_object([value()]))
        if len(set(every)) > 1:
            own = ", ".join(f"process {rank}: {found}" for rank, found in enumerate(every))
            raise ProcessError(
                f"the processes of this run don't agree on {what} ({own}). They must have the same images, weights and versions "
                "of all packages, and as many threads; a custom loss or forward function must not depend on the process"
            )


def share(batch_size: int, processes: int) -> int:
    """Images of a training step that one process takes: a recipe's ``batch_size`` is that of all together.

    Raises:
        RecipeError: it can't be divided evenly.
    """
    if batch_size % processes:
        raise RecipeError(
            f"data.batch_size = {batch_size} can't be divided among {processes} processes: it is the number of images of a "
            f"training step in all of them, so give a multiple of {processes}"
        )
    return batch_size // processes
