"""Commands about recovery: recover, lr-range."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table

from prunus.cli.app import app, console, stoppable
from prunus.cli.given import Arguments, AsJson, Classes, ImageSize, ModelArgument, Seed, Weights, load_bundle, load_network
from prunus.cli.recipes import announcer
from prunus.config import OptimizerConfig, parse_recipe
from prunus.errors import RecipeError
from prunus.recipe_text import override
from prunus.report.wording import duration, points
from prunus.sources import DataBundle, make_loader
from prunus.surgery import load

_DATA = typer.Option(help="digits, folder:PATH, cifar10:PATH, fashion-mnist:PATH, elpv, or path/to/file.py:function")


@app.command("recover")
def recover_command(
    model: ModelArgument,
    pruned: Annotated[Path, typer.Argument(help="a file that Prunus saved; MODEL is the network it was made from")],
    data: Annotated[str, _DATA],
    weights: Weights = None,
    full: Annotated[Path | None, typer.Option(help="the unpruned network as Prunus saved it, instead of --weights")] = None,
    rungs: Annotated[
        str, typer.Option(help="by comma: compensate (right after removal only), reconstruct, recalibrate, fine-tune, distill")
    ] = "reconstruct,recalibrate,fine-tune",
    preset: Annotated[str | None, typer.Option(help="of fine-tuning: quick, standard or long")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="recover.lr=0.01, data.augment=shift, ... as in a recipe; may be repeated")
    ] = None,
    image_size: ImageSize = None,
    out: Annotated[Path, typer.Option(help="folder of the recovery")] = Path("recovered"),
    resume: Annotated[bool, typer.Option("--resume", help="continue a recovery that was stopped")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Recover the accuracy of a network that is pruned already: a file, a page, and what each rung gave."""
    from prunus.pipeline.recover import recover

    if (weights is None) == (full is None):
        raise RecipeError("recovery compares with the unpruned network: give its weights with --weights, or its file with --full")
    recover_section: dict[str, Any] = {"rungs": [rung.strip() for rung in rungs.split(",") if rung.strip()]}
    tree: dict[str, Any] = {
        "name": "recovery",
        "seed": seed,
        "model": {"source": model, "weights": weights},
        "data": {"source": data, "image_size": image_size},
        "recover": recover_section | ({} if preset is None else {"preset": preset}),
    }
    for item in overrides or []:
        override(tree, item)
    recipe = parse_recipe(tree, "prunus recover")
    with stoppable(f"stopped; the same command with --resume continues in {escape(str(out))}"):
        result = recover(recipe, pruned, out, full=full, resume=resume, announce=announcer())
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console.print(ladder_table(result))
    console.print(f"written to {escape(str(out))}: {escape(', '.join(result['files']))}", soft_wrap=True)


def ladder_table(result: Mapping[str, Any]) -> Table:
    """Accuracy after each rung, what it gained and how long it took."""
    table = Table(title=f"recovery; the unpruned network has {result['full']['accuracy']:.2%}", title_justify="left")
    table.add_column("after")
    for heading in ("accuracy", "gained", "epochs", "time"):
        table.add_column(heading, justify="right")
    for row in result["ladder"]:
        gained = "" if row["gained"] is None else points(row["gained"])
        table.add_row(row["rung"], f"{row['accuracy']:.2%}", gained, str(row["epochs"] or ""), duration(row["seconds"]))
    return table


@app.command("lr-range")
def lr_range_command(
    model: ModelArgument,
    data: Annotated[str, _DATA],
    weights: Weights = None,
    pruned: Annotated[Path | None, typer.Option(help="a file that Prunus saved; MODEL is the network it was made from")] = None,
    lowest: Annotated[float, typer.Option(help="learning rate of the first step")] = 1e-5,
    highest: Annotated[float, typer.Option(help="and of the last")] = 1.0,
    steps: Annotated[int, typer.Option(help="batches")] = 100,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw")] = "sgd",
    batch_size: Annotated[int, typer.Option(min=1, help="images per step")] = 64,
    image_size: ImageSize = None,
    num_classes: Classes = None,
    argument: Arguments = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Find the learning rate for fine-tuning: raise it step by step until the loss goes up; nothing is written."""
    from prunus.training import lr_range

    if optimizer not in ("sgd", "adamw"):
        raise RecipeError(f"unknown optimizer {optimizer!r}: give sgd or adamw")
    bundle = cast("DataBundle", load_bundle(data, image_size, seed, model))
    network = load_network(model, weights, num_classes, bundle, argument, seed)
    if pruned is not None:
        network = load(pruned, network)
    loader = make_loader(bundle.train, batch_size=batch_size, shuffle=True)
    settings = OptimizerConfig.model_validate({"optimizer": optimizer})
    found = lr_range(network, loader, settings, seed=seed, lowest=lowest, highest=highest, steps=steps)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    table = Table()
    for heading in ("learning rate", "loss, smoothed"):
        table.add_column(heading, justify="right")
    for index in range(0, len(found.rates), max(1, len(found.rates) // 12)):
        table.add_row(f"{found.rates[index]:.2e}", f"{found.smoothed[index]:.4f}")
    console.print(table)
    end = "the loss never diverged" if found.diverged_at is None else f"it diverged at {found.diverged_at:.2e}"
    console.print(f"lowest loss at {found.lowest_at:.2e}, {end}; suggested learning rate: {found.suggested:.2e}")
