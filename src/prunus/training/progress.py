"""A progress bar on a terminal, silence anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Report: TypeAlias = Callable[[str, int, "float | None"], None]
"""``report(what, done, loss)``: what is going on, finished steps out of the total, the latest loss."""


@contextmanager
def progress_bar(
    description: str, total: int | None, *, enabled: bool = True, console: Console | None = None
) -> Generator[Report, None, None]:
    """Yield a `Report`; it draws what, how far, time left and loss, on a terminal only, at most ten times a second."""
    console = console or Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield _silent
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total, loss="")
        drawn = 0.0

        def report(what: str, done: int, loss: float | None) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn >= 0.1 or done == total:
                drawn = now
                progress.update(task, description=what, completed=done, loss="" if loss is None else f"loss {loss:.4f}")

        yield report


def _silent(what: str, done: int, loss: float | None) -> None:
    """Draw nothing."""
