"""``prunus search``: the groups' widths at a budget, found by trying many plans."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from prunus.budgets import Budget, parse_limits
from prunus.cli.app import app, console, stoppable
from prunus.cli.given import Arguments, AsJson, Classes, ImageSize, Keep, Seed, Weights, WholeGroups, load_bundle, load_network
from prunus.cli.laboratory import DATA_SOURCES, BatchSize, Mixing, Model, announcer, warn_untrained
from prunus.errors import RecipeError
from prunus.importance.criteria import resolve_criterion
from prunus.report.wording import points
from prunus.sources import DataBundle

_HELPER = "from prunus.cli import app; app()"


@app.command("search")
def search_command(
    model: Model,
    data: Annotated[str, typer.Option(help=DATA_SOURCES)],
    budget: Annotated[str, typer.Option(help="macs=0.5 keeps half; several, by comma, must all hold")] = "macs=0.5",
    sampler: Annotated[str, typer.Option(help="tpe, cma, random, or nsga2 for a front of accuracy and cost")] = "tpe",
    trials: Annotated[int, typer.Option(min=1, help="plans that are tried; more can be added later")] = 60,
    baseline: Annotated[bool, typer.Option("--baseline", help="also try as many random plans, to compare")] = False,
    criterion: Annotated[str, typer.Option(help="what ranks the channels of a group: a name from `prunus criteria`")] = "l1",
    option: Annotated[
        list[str] | None, typer.Option("--option", "--options", help="NAME=VALUE of the criterion; may be repeated")
    ] = None,
    lowest: Annotated[float, typer.Option(help="smallest fraction of a group's channels that is drawn")] = 0.2,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="layer1.*=0.3: at most that share goes there; conv1=16: so many channels stay; may be repeated"),
    ] = None,
    multiple_of: Annotated[int, typer.Option(min=1, help="layer widths are multiples of this")] = 1,
    tolerance: Annotated[float, typer.Option(help="how far below the budget a plan may stay")] = 0.01,
    images: Annotated[int, typer.Option(min=1, help="images that accuracies are measured on, at most")] = 1000,
    split: Annotated[str, typer.Option(help="where they are from: validation or training; never the test images")] = "validation",
    recalibration_images: Annotated[int, typer.Option(min=0, help="training images that BN statistics are estimated on")] = 1024,
    scoring_images: Annotated[int, typer.Option(min=1, help="training images that a data-driven criterion sees")] = 512,
    batch_size: BatchSize = 64,
    workers: Annotated[int, typer.Option(min=1, help="processes on this machine that try plans")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each (default: the cores divided)")] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of a database that several machines share (default: a file in --out)")
    ] = None,
    worker: Annotated[
        int | None, typer.Option(min=1, help="join a search with --storage as this worker, and write no result")
    ] = None,
    image_size: ImageSize = None,
    weights: Weights = None,
    num_classes: Classes = None,
    argument: Arguments = None,
    keep: Keep = None,
    mixing: Mixing = "allow",
    whole_groups: WholeGroups = False,
    out: Annotated[Path, typer.Option(help="folder of the search; one that was stopped goes on")] = Path("search"),
    resume: Annotated[bool, typer.Option("--resume", help="only go on with a search that is there")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Try many plans at a budget, without retraining, and keep the best (AMC's space, drawn by Optuna): a page and JSON.

    The JSON serves the allocator search: allocator_options = { result = "search/search.json" }.
    """
    from prunus.laboratory import Subject
    from prunus.laboratory.contenders import read_options
    from prunus.laboratory.search import SearchSettings, search_network

    if resume and not (out / "recipe.json").exists():
        raise RecipeError(f"there is no search in {out} to go on with: leave out --resume, or name its folder with --out")
    options = read_options(option or ())
    resolve_criterion(criterion, options)
    wanted = Budget.parse(budget, multiple_of=multiple_of, tolerance=tolerance, limits=parse_limits(limit or ()))
    settings = SearchSettings(
        criterion=criterion,
        options=options,
        images=images,
        split=split,
        scoring_images=scoring_images,
        batch_size=batch_size,
        keep=tuple(keep or ()),
        mixing=mixing,
        whole_groups=whole_groups,
        seed=seed,
        budget=wanted,
        trials=trials,
        sampler=sampler,
        lowest=lowest,
        recalibration_images=recalibration_images,
        baseline=baseline,
    )
    _set_threads(threads, workers)
    if worker is None:
        warn_untrained(model, weights)
    bundle = cast("DataBundle", load_bundle(data, image_size, seed, model))
    about = {
        "model": model,
        "weights": weights,
        "data": data,
        "image_size": image_size,
        "num_classes": num_classes,
        "arguments": argument,
    }

    def network(_: int) -> torch.nn.Module:
        return load_network(model, weights, num_classes, bundle, argument, seed)

    numbers = range(1, workers) if worker is None else ()
    helpers = [[sys.executable, "-c", _HELPER, *sys.argv[1:], f"--worker={number}"] for number in numbers]
    subject = Subject(network, bundle, about)
    with stoppable(f"stopped; the same command continues the search in {escape(str(out))}"):
        result = search_network(subject, out, settings, announcer(), storage=storage, worker=worker, helpers=helpers)
    if worker is not None:
        return
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console.print(search_table(result))
    console.print(f"written to {escape(str(out))}: search.json, search.html", soft_wrap=True)


def _set_threads(threads: int | None, workers: int) -> None:
    """So many in this process, and in those that it starts."""
    if threads is not None or workers > 1:
        count = threads or max((os.cpu_count() or 1) // workers, 1)
        torch.set_num_threads(count)
        os.environ["OMP_NUM_THREADS"] = str(count)


def search_table(result: Mapping[str, Any]) -> Table:
    """The chosen plan beside the uniform one."""
    trials, network = result["trials"], result["network"]
    found = next(trial for trial in trials if trial["number"] == result["chosen"]["trial"])
    uniform = min(trials, key=lambda trial: trial["number"])
    change = points(found["accuracy"] - uniform["accuracy"])
    title = (
        f"{len(trials)} trials by {result['settings']['sampler']}: accuracy {found['accuracy']:.1%}, {change} beside uniform; "
        f"whole network {network['accuracy']:.1%}, on {network['images']:,} {network['split']} images"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("group", overflow="fold", min_width=18)
    for heading in ("channels", "kept", "share", "uniform", "importance"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, width in result["widths"].items():
        kept, share = found["kept"][name], result["importances"].get(name)
        importance = "" if share is None else f"{share:.0%}"
        table.add_row(escape(name), str(width), str(kept), f"{kept / width:.0%}", str(uniform["kept"][name]), importance)
    return table
