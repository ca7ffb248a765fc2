"""``prunus ticket``: a laboratory of lottery tickets from a recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from prunus.cli.app import app, console, err, stoppable
from prunus.cli.given import AsJson
from prunus.errors import UnknownName
from prunus.report.wording import points

_RECIPES = files("prunus") / "recipes" / "tickets"


@app.command("ticket")
def ticket_command(
    recipe: Annotated[str, typer.Argument(help="a TOML file, or digits, which comes with Prunus")] = "digits",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value, over the recipe's; may be repeated")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder (default: runs/NAME); one that was stopped goes on")] = None,
    processes: Annotated[int, typer.Option(min=1, help="jobs at once, each with one thread; the figures are the same")] = 2,
    show: Annotated[bool, typer.Option("--show", help="print the recipe, to copy and change")] = False,
    as_json: AsJson = False,
) -> None:
    """Lottery tickets, supermasks, scratch training: a grid over seeds; as a page and as JSON. Goes on where it was stopped."""
    from prunus.laboratory.tickets import study_tickets
    from prunus.ticket_recipe import load_ticket_recipe

    with _recipe_file(recipe) as path:
        if show:
            print(path.read_text(encoding="utf-8"), end="")
            return
        checked = load_ticket_recipe(path, overrides or ())
    folder = out or Path("runs") / checked.name
    with stoppable(f"stopped; the same command continues the laboratory in {escape(str(folder))}"), _progress() as progress:
        result = study_tickets(checked, folder, processes, progress)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console.print(claims_table(result))
    took = f"{result['seconds']:.0f} s now, {result['core_seconds']:.0f} s of one core in all"
    console.print(f"{took}; written to {escape(str(folder))}: tickets.json, tickets.html", soft_wrap=True)


@contextmanager
def _recipe_file(name: str) -> Generator[Path, None, None]:
    known = sorted(file.name.removesuffix(".toml") for file in _RECIPES.iterdir() if file.name.endswith(".toml"))
    if name in known:
        with as_file(_RECIPES / f"{name}.toml") as path:
            yield path
    elif Path(name).is_file() or name.endswith(".toml"):
        yield Path(name)
    else:
        raise UnknownName.among("recipe of tickets", name, [*known, "path/to/recipe.toml"])


@contextmanager
def _progress() -> Generator[Callable[[int, int, str], None], None, None]:
    """A bar of the jobs, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda done, jobs, last: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("jobs")

        def show(done: int, jobs: int, last: str) -> None:
            bar.update(task, completed=done, total=jobs, description=escape(last or "jobs"))

        yield show


def claims_table(result: Mapping[str, Any]) -> Table:
    """What became of the literature's claims."""
    seeds = len(result["recipe"]["seeds"])
    title = f"claims of the literature here: difference of test accuracies over {seeds} seed{'s' * (seeds != 1)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("claim", "where"):
        table.add_column(heading, overflow="fold")
    for heading in ("difference", "so here"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in result["claims"]:
        std = one["difference"]["std"]
        difference = points(one["difference"]["mean"]) + (f" ± {100 * std:.1f}" if std is not None else "")
        table.add_row(escape(one["claim"]), escape(one["where"]), difference, one["verdict"])
    return table
