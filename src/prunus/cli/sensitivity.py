"""``prunus sensitivity``: how much every group of a network bears when it is pruned alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from prunus.cli.app import app, console, stoppable
from prunus.cli.given import Arguments, AsJson, Classes, ImageSize, Keep, Seed, Weights, WholeGroups, load_bundle, load_network
from prunus.cli.laboratory import (
    DATA_SOURCES,
    BatchSize,
    Mixing,
    Model,
    announcer,
    read_shares,
    warn_untrained,
)
from prunus.importance.criteria import resolve_criterion
from prunus.report.wording import points
from prunus.sources import DataBundle


@app.command("sensitivity")
def sensitivity_command(
    model: Model,
    data: Annotated[str, typer.Option(help=DATA_SOURCES)],
    criterion: Annotated[str, typer.Option(help="what ranks the channels of a group: a name from `prunus criteria`")] = "l1",
    option: Annotated[
        list[str] | None, typer.Option("--option", "--options", help="NAME=VALUE of the criterion; may be repeated")
    ] = None,
    shares: Annotated[str, typer.Option(help="percent of each group's channels, by comma")] = "10,20,30,40,50,60,70,80,90",
    images: Annotated[int, typer.Option(min=1, help="images that accuracies are measured on, at most")] = 1000,
    split: Annotated[str, typer.Option(help="where they are from: validation or training; never the test images")] = "validation",
    scoring_images: Annotated[int, typer.Option(min=1, help="training images that a data-driven criterion sees")] = 512,
    batch_size: BatchSize = 64,
    image_size: ImageSize = None,
    weights: Weights = None,
    num_classes: Classes = None,
    argument: Arguments = None,
    keep: Keep = None,
    mixing: Mixing = "allow",
    whole_groups: WholeGroups = False,
    out: Annotated[Path, typer.Option(help="folder of the scan; one that was stopped goes on")] = Path("sensitivity"),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Prune each group alone by 10 to 90 %, without retraining: accuracy curves as a page and as JSON (Li et al. 2016).

    The JSON serves the allocator sensitivity: allocator_options = { points = "sensitivity/sensitivity.json" }.
    """
    from prunus.laboratory import Subject
    from prunus.laboratory.contenders import read_options
    from prunus.laboratory.sensitivity import ScanSettings, scan_network
    from prunus.training.processes import Processes

    options = read_options(option or ())
    resolve_criterion(criterion, options)
    settings = ScanSettings(
        criterion=criterion,
        options=options,
        shares=read_shares(shares),
        images=images,
        split=split,
        scoring_images=scoring_images,
        batch_size=batch_size,
        keep=tuple(keep or ()),
        mixing=mixing,
        whole_groups=whole_groups,
        seed=seed,
    )
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
    network = load_network(model, weights, num_classes, bundle, argument, seed)
    with stoppable(f"stopped; the same command continues the scan in {escape(str(out))}"):
        result = scan_network(Subject(lambda _: network, bundle, about), out, settings, announcer())
    if not Processes().main:  # of several, one speaks
        return
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console.print(sensitivity_table(result))
    console.print(f"written to {escape(str(out))}: sensitivity.json, sensitivity.html", soft_wrap=True)


def sensitivity_table(result: Mapping[str, Any]) -> Table:
    """The largest scanned share of every group that costs at most one point of accuracy, alone."""
    network = result["network"]
    title = (
        f"largest share of each group that costs at most one point, alone; accuracy of the whole network "
        f"{network['accuracy']:.1%} on {network['images']:,} {network['split']} images"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("group", overflow="fold", min_width=18)
    for heading in ("channels", "removed", "accuracy", "change", "MACs saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in result["groups"]:
        found, head = group["largest"], (escape(group["name"]), str(group["channels"]))
        if group["unscanned"] is not None:
            continue
        if found is None:
            table.add_row(*head, "none", "", "", "")
            continue
        saved = 1 - found["macs"] / network["cost"]["macs"]
        change = points(found["accuracy"] - network["accuracy"])
        table.add_row(*head, f"{found['share']:.0%}", f"{found['accuracy']:.1%}", change, f"{saved:.1%}")
    return table
