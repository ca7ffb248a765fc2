"""Commands about whole recipes: run, demo, recipes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from prunus.cli.app import app, console, err, stoppable
from prunus.cli.tables import result_notes, result_table
from prunus.config import load_recipe
from prunus.errors import UnknownName

_RECIPES = files("prunus") / "recipes"


@app.command("run")
def run_command(
    recipe: Annotated[str, typer.Argument(help="a TOML file, or the name of one that comes with Prunus (`prunus recipes`)")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value, over the recipe's; may be repeated")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run (default: runs/NAME)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue a run that was stopped")] = False,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls", help="also train the small network from scratch, and the full one longer; later: with --resume"
        ),
    ] = False,
) -> None:
    """Carry out a recipe: load or train, prune, prove, recover, evaluate, export, report."""
    with _recipe_file(recipe) as path:
        checked = load_recipe(path, overrides)
    _run(checked, out or Path("runs") / checked.name, resume, controls)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("prunus-demo"),
    resume: Annotated[bool, typer.Option("--resume", help="continue a demo that was stopped")] = False,
) -> None:
    """Train a residual network on handwritten digits, prune it to 40 % of its MACs, recover, export and report."""
    with _recipe_file("digits") as path:
        recipe = load_recipe(path)
    number = 1
    while not resume and out.exists():  # a second demo doesn't touch the first
        number += 1
        out = out.with_name(f"{out.name.removesuffix(f'-{number - 1}')}-{number}")
    _run(recipe, out, resume)


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="show this one, to copy and change")] = None) -> None:
    """List the recipes that come with Prunus, or print one."""
    if name is not None:
        with _recipe_file(name) as path:
            print(path.read_text(encoding="utf-8"), end="")
        return
    table = Table()
    for heading in ("recipe", "what"):
        table.add_column(heading, overflow="fold")
    for known in _recipe_names():
        with _recipe_file(known) as path:
            comment = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").split("\nname =")[0].splitlines()]
        table.add_row(known, escape(" ".join(comment).partition(". ")[0].partition(": ")[0]))
    console.print(table)


def _recipe_names() -> list[str]:
    return sorted(file.name.removesuffix(".toml") for file in _RECIPES.iterdir() if file.name.endswith(".toml"))


@contextmanager
def _recipe_file(name: str) -> Generator[Path, None, None]:
    """The file of that path, or else the recipe of that name that comes with Prunus."""
    if Path(name).is_file() or name.endswith(".toml"):
        yield Path(name)
    elif name in _recipe_names():
        with as_file(_RECIPES / f"{name}.toml") as path:
            yield path
    else:
        raise UnknownName.among("recipe", name, [*_recipe_names(), "path/to/recipe.toml"])


def _run(recipe: Any, out: Path, resume: bool, controls: bool = False) -> None:
    from prunus.pipeline.run import run
    from prunus.training.processes import Processes

    with stoppable(f"stopped; the same command with --resume continues the run in {escape(str(out))}"):
        result = run(recipe, out, resume=resume, announce=announcer(), controls=controls)
    if not Processes().main:  # of several, one speaks
        return
    console.print(result_table(result))
    for note in result_notes(result):
        console.print(escape(note), soft_wrap=True)
    console.print(
        f"{result['seconds']:.0f} s; written to {escape(str(out))}: {escape(', '.join(result['files']))}", soft_wrap=True
    )


def announcer() -> Callable[[str], None]:
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda stage: err.print(f"[bold]{stage.replace('-', ' ')}[/bold]")
