"""``prunus benchmark``: claims of the literature tried again, in a clone of the repository."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from prunus.cli.app import app, console, err, stoppable
from prunus.errors import RecipeError

if TYPE_CHECKING:
    from prunus.claims import Claim
    from prunus.laboratory.benchmark import Checkout, Given
    from prunus.laboratory.verdicts import Verdict


@app.command("benchmark")
def benchmark_command(
    name: Annotated[str, typer.Argument(help="a claim, all, or list (nothing is run)")] = "list",
    seeds: Annotated[int | None, typer.Option(min=1, help="runs of each (default: as many as the claim needs)")] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="for scripts that take one; the others run on the CPU and refuse it")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="NAME=PATH of data that a claim needs; may be repeated")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="also what is up to date")] = False,
    folder: Annotated[Path | None, typer.Option(help="clone of the repository (default: the one we are in)")] = None,
) -> None:
    """Try claims of the literature again and tell what the figures say. What is up to date isn't run; what stopped goes on."""
    from prunus.claims import chosen_claims
    from prunus.laboratory.benchmark import Given, left_as_they_are, missing, open_checkout, refuse_unknown

    checkout = open_checkout(folder)
    if name == "list":
        if seeds or device or data or again:
            raise RecipeError("`prunus benchmark list` runs nothing: leave out --seeds, --device, --data and --again")
        console.print(claims_table(checkout, _judged(checkout, checkout.claims.values()), Given()))
        return
    given, claims = Given(seeds, device, _paths(data or [])), chosen_claims(checkout.claims, name)
    refuse_unknown(checkout, claims, given)
    if name != "all" and not claims[0].runnable:
        why = claims[0].out_of_reach or f"it is for other machines: {claims[0].command}"
        raise RecipeError(f"{name} isn't run by this command: {why}")
    runnable = [claim for claim in claims if claim.runnable and (name != "all" or not missing(claim, given))]
    for sentence in left_as_they_are(runnable, given):
        err.print(escape(sentence), soft_wrap=True)
    _carry_out(checkout, runnable, given, again)
    verdicts = _judged(checkout, claims)
    console.print(claims_table(checkout, verdicts, given))
    for line in (line for name, verdict in verdicts.items() for line in figure_lines(name, verdict)):
        console.print(escape(line), soft_wrap=True)
    for claim in claims:
        if claim.runnable and claim not in runnable:
            wanted = " ".join(f"--data {need}=PATH" for need in missing(claim, given))
            console.print(f"{claim.name} was not tried: it needs {wanted}", soft_wrap=True)


def _carry_out(checkout: Checkout, claims: list[Claim], given: Given, again: bool) -> None:
    from prunus.laboratory.benchmark import carry_out

    done: set[tuple[str | None, str | None]] = set()
    with stoppable("stopped; the same command goes on, without what is up to date"):
        for claim in claims:
            if (run := (claim.command, claim.result)) in done:  # several claims are read from one result
                continue
            done.add(run)
            with _watching(claim.name) as told:
                carry_out(claim, checkout, given, again, told)


def _judged(checkout: Checkout, claims: Iterable[Claim]) -> dict[str, Verdict]:
    from prunus.laboratory.verdicts import judge

    return {claim.name: judge(claim, checkout.results) for claim in claims}


@contextmanager
def _watching(name: str) -> Generator[Callable[[str], None], None, None]:
    """A line that moves, with what the script said last; on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda line: None
        return
    with err.status(escape(name)) as status:
        yield lambda line: status.update(f"{escape(name)}  [dim]{escape(line[:100])}[/dim]")


def _paths(items: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in items:
        name, sep, path = item.partition("=")
        if not sep or not path:
            raise RecipeError(f"can't read --data {item!r}: write NAME=PATH, e.g. --data cifar10=cifar10_jpeg.zip")
        if not Path(path).exists():
            raise RecipeError(f"--data {item}: there is nothing at {path}")
        found[name] = path
    return found


def claims_table(checkout: Checkout, verdicts: Mapping[str, Verdict], given: Given) -> Table:
    """A row for every claim: verdict, runs, whether the result is up to date, and the data that it needs.

    Names and verdicts are never broken, so that the table can be read at 80 columns and searched in a pipe.
    """
    from prunus.laboratory.benchmark import state

    table = Table(title="claims of the literature", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("claim", "verdict", "n", "result"):
        table.add_column(heading, justify="right" if heading == "n" else "left", no_wrap=heading in ("claim", "verdict"))
    for name, verdict in verdicts.items():
        claim = checkout.claims[name]
        needs = f"\n  needs {', '.join(claim.needs)}" if claim.needs else ""
        n = "" if verdict.n is None else str(verdict.n)
        table.add_row(escape(name + needs), verdict.word, n, escape(state(claim, checkout, given)))
    return table


def figure_lines(name: str, verdict: Verdict) -> list[str]:
    """A line for every comparison of a claim, with the limit that its mean must keep, and why it wasn't reproduced."""
    from prunus.laboratory.verdicts import limits, spread

    lines = [f"{name}: {f.comparison.says}: {spread(f)} ({limits(f.comparison)})" for f in verdict.findings]
    return [*lines, f"{name}: {verdict.word}: {verdict.why}"] if verdict.why else lines
