"""``prunus report``: several runs on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from prunus.cli.app import app, console
from prunus.cli.given import AsJson
from prunus.errors import ArtifactError, RecipeError
from prunus.version import VERSION

_FOLDERS = typer.Argument(help="folders of finished runs (prunus run --out); a folder of such folders stands for all in it")


@app.command("report")
def report_command(
    folders: Annotated[list[Path], _FOLDERS],
    out: Annotated[Path, typer.Option(help="the page")] = Path("runs.html"),
    as_json: AsJson = False,
) -> None:
    """Compare finished runs on one page: accuracy against MACs and milliseconds, seeds together, what the recipes differ in."""
    from prunus.pipeline.stages import read_json
    from prunus.report.runs import compare_runs, write_runs

    results = {name: read_json(folder / "result.json") for name, folder in _named(_finished(folders)).items()}
    compared = compare_runs(results, VERSION)
    write_runs(compared, out)
    if as_json:
        print(json.dumps(compared, indent=2))
        return
    table = Table(title=f"{len(results)} runs, last epoch", title_justify="left")
    for heading in ("run", "by", "accuracy", "change", "MACs left", "ms"):
        table.add_column(heading, justify="left" if heading in ("run", "by") else "right")
    for row in compared["runs"]:
        change = None if row["full accuracy"] is None else 100 * (row["accuracy"] - row["full accuracy"])
        table.add_row(
            escape(row["run"]),
            escape(row["method"]),
            "" if row["accuracy"] is None else f"{row['accuracy']:.2%}",
            "" if change is None else f"{change:+.2f}",
            f"{row['macs left']:.1%}",
            "" if row["ms"] is None else f"{row['ms']:.3g}",
        )
    console.print(table)
    console.print(f"written to {escape(str(out))}")


def _finished(folders: list[Path]) -> list[Path]:
    found = list[Path]()
    for folder in folders:
        if (folder / "result.json").is_file():
            found.append(folder)
            continue
        inside = sorted(path.parent for path in folder.glob("*/result.json")) if folder.is_dir() else []
        if not inside:
            state = "holds a run that isn't finished: go on with `prunus run ... --resume`"
            lacks = "holds no run" if folder.is_dir() else "isn't there"
            raise ArtifactError(
                f"{folder} {state if (folder / 'recipe.json').is_file() else lacks}; give folders of finished runs"
            )
        found += inside
    return list(dict.fromkeys(found))


def _named(folders: list[Path]) -> dict[str, Path]:
    """Folders by the shortest ends of their paths that tell them apart."""
    for parts in range(1, max(len(folder.absolute().parts) for folder in folders) + 1):
        names = ["/".join(folder.absolute().parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return dict(zip(names, folders, strict=True))
    raise RecipeError("the same folder is given twice")
