"""The program: what all commands share. Errors become one readable paragraph and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from prunus.errors import InvalidBudget, PrunusError, PrunusWarning, RecipeError, UnknownName
from prunus.stopping import Terminated, stops_on_request
from prunus.version import VERSION

_USAGE = (UnknownName, RecipeError, InvalidBudget)
console = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class _Commands(TyperGroup):
    """Exit codes: 0 done, 2 usage, 1 failure."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        warnings.showwarning = _show_warning
        warnings.simplefilter("always", PrunusWarning)
        try:
            return super().main(*args, **kwargs)
        except PrunusError as error:
            err.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
            sys.exit(2 if isinstance(error, _USAGE) else 1)
        except Exception as error:  # mostly a network and data that don't fit each other
            if os.environ.get("PRUNUS_DEBUG"):
                raise
            err.print(f"[red]error:[/red] {escape(f'{type(error).__name__}: {error}')}", soft_wrap=True)
            about = _LOST if _lost_process(error) else "do the network and the data fit each other?"
            err.print(f"{about} PRUNUS_DEBUG=1 shows where this was raised", soft_wrap=True)
            sys.exit(1)


_LOST = "another process of this run ended or can't be reached; its own message says why. Go on with --resume."


def _lost_process(error: Exception) -> bool:
    """Whether an error of a run in several processes says that one of the others is gone."""
    told = str(error)
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(word in told for word in ("gloo", "NCCL", "TCPStore"))


def _show_warning(message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    if issubclass(category, PrunusWarning):
        err.print(f"[yellow]warning:[/yellow] {escape(str(message))}", soft_wrap=True)


@contextmanager
def stoppable(what_next: str) -> Generator[None]:
    """Work that Ctrl-C or SIGTERM stops: one line says how it goes on, and the exit code is the shell's for it, 130 or 143."""
    try:
        with stops_on_request():
            yield
    except Terminated:
        err.print(what_next)
        raise typer.Exit(143) from None
    except KeyboardInterrupt:
        err.print(what_next)
        raise typer.Exit(130) from None


def _show_version(asked: bool) -> None:
    if asked:
        console.print(f"prunus {VERSION}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Exact structured pruning for PyTorch convolutional networks.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def program(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """What comes before the name of a command."""
