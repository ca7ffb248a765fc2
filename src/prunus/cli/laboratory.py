"""Commands of the laboratory: score by one criterion, compare several."""

from __future__ import annotations

import csv
import io
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.markup import escape

from prunus import score, trace
from prunus.cli.app import app, console, err, stoppable
from prunus.cli.given import (
    Arguments,
    AsJson,
    Classes,
    ImageSize,
    Input,
    Keep,
    Seed,
    Weights,
    WholeGroups,
    load_bundle,
    load_network,
    random_input,
)
from prunus.cli.laboratory_tables import comparison_legend, comparison_table, scores_table
from prunus.errors import ArtifactError, DataError, EvidenceError, NothingPruned, PrunusWarning, RecipeError
from prunus.files import write_atomically
from prunus.importance.criteria import resolve_criterion
from prunus.sources import DataBundle
from prunus.types import Scores

Model = Annotated[str, typer.Option(help="torchvision:NAME, timm:NAME, cifar:resnet20, or path/to/file.py:function")]
DATA_SOURCES = (
    "digits, folder:PATH, wds:PATTERN, datasets:PATTERN, cifar10:PATH, fashion-mnist:PATH, elpv, or path/to/file.py:function"
)
Images = Annotated[int, typer.Option(min=1, help="training images that criteria and the oracle see")]
BatchSize = Annotated[int, typer.Option(min=1, help="images per batch")]
Mixing = Annotated[str, typer.Option(help="allow or freeze groups whose statistics change with the width")]
SUFFIXES = (".csv", ".json", ".html")


@app.command("score")
def score_command(
    model: Model,
    criterion: Annotated[str, typer.Option(help="a name from `prunus criteria`, or a sum: l1 + 0.5*taylor")] = "taylor",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "--options", help="NAME=VALUE of the criterion, e.g. per_example=true; may be repeated"),
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"where the criterion needs images: {DATA_SOURCES}")] = None,
    images: Images = 512,
    batch_size: BatchSize = 64,
    image_size: ImageSize = None,
    weights: Weights = None,
    input_shape: Input = None,
    num_classes: Classes = None,
    argument: Arguments = None,
    keep: Keep = None,
    mixing: Mixing = "allow",
    whole_groups: WholeGroups = False,
    out: Annotated[Path | None, typer.Option(help="write the scores: FILE.csv, FILE.json, or a plot as FILE.html")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score every channel by one criterion: a table of the groups, and all scores as CSV, JSON or a plot."""
    from prunus.laboratory.contenders import read_options
    from prunus.laboratory.images import scoring_batches

    if out is not None and out.suffix not in SUFFIXES:
        raise RecipeError(f"can't tell what to write to {out}: its name must end in {', '.join(SUFFIXES)}")
    if data is not None and input_shape is not None:
        raise RecipeError("--input gives the shape where there are no data: leave it out, or leave out --data")
    options = read_options(option or ())
    row = resolve_criterion(criterion, options)
    if row.needs and data is None:
        raise EvidenceError(f"criterion {criterion} needs data: give --data, one of {DATA_SOURCES}")
    warn_untrained(model, weights)
    bundle = load_bundle(data, image_size, seed, model)
    network = load_network(model, weights, num_classes, bundle, argument, seed)
    examples = torch.stack([bundle.test[i][0] for i in (0, 1)]) if bundle else random_input(model, input_shape)
    graph = trace(network, examples, keep or (), cast(Any, mixing), whole_groups=whole_groups)
    if not graph.prunable:
        raise NothingPruned(f"all {len(graph.groups)} groups are frozen, so there is nothing to score: `prunus inspect` says why")
    batches = scoring_batches(bundle, images, batch_size, seed) if bundle and row.needs else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PrunusWarning)
        found = score(network, graph, criterion, batches, seed=seed, **options)
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    notes = [str(w.message) for w in caught if issubclass(w.category, PrunusWarning)]
    tree = _scores_json(model, row, options, found, notes)
    if out is not None:
        _write_scores(tree, out)
    if as_json:
        print(json.dumps(tree, indent=2))
        return
    console.print(scores_table(graph, found))
    if out is not None:
        console.print(f"written: {escape(str(out))}", soft_wrap=True)


@app.command("compare")
def compare_command(
    model: Model,
    data: Annotated[str, typer.Option(help=DATA_SOURCES)],
    criteria: Annotated[
        str, typer.Option(help="all, or names by comma, with options in brackets: l1,taylor(on=weights); all,-obd leaves one out")
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="repetitions, each with other images, sampled channels and draws")] = 3,
    images: Images = 512,
    channels: Annotated[
        int | None, typer.Option(min=1, help="how many the oracle is evaluated on, drawn from every layer (default: all)")
    ] = None,
    test_images: Annotated[int, typer.Option(min=1, help="images that accuracies are measured on, at most")] = 1000,
    batch_size: BatchSize = 64,
    removal: Annotated[bool, typer.Option("--removal/--no-removal", help="also remove channels and measure accuracy")] = True,
    shares: Annotated[str, typer.Option(help="percent of the channels to remove, by comma")] = "10,20,30,40,50,60,70,80,90",
    steps: Annotated[int, typer.Option(min=0, help="batches of fine-tuning after a removal; 0: none")] = 50,
    lr: Annotated[float, typer.Option(min=1e-8, help="learning rate of that fine-tuning")] = 0.01,
    image_size: ImageSize = None,
    weights: Weights = None,
    num_classes: Classes = None,
    argument: Arguments = None,
    keep: Keep = None,
    mixing: Mixing = "allow",
    whole_groups: WholeGroups = False,
    out: Annotated[Path, typer.Option(help="folder of the comparison; one that was stopped goes on")] = Path("comparison"),
    as_json: AsJson = False,
) -> None:
    """Compare criteria: rank correlation with the oracle, accuracy after removal, seconds; as a page and as JSON."""
    from prunus.laboratory import Recovery, Settings, Subject, compare, read_criteria

    contenders = read_criteria(criteria)
    settings = Settings(
        images=images,
        batch_size=batch_size,
        channels=channels,
        test_images=test_images,
        shares=read_shares(shares) if removal else (),
        recovery=Recovery(steps, lr),
        keep=tuple(keep or ()),
        mixing=mixing,
        whole_groups=whole_groups,
    )
    warn_untrained(model, weights)
    bundle = cast("DataBundle", load_bundle(data, image_size, 0, model))
    if len(bundle.test) < 2:  # pyright: ignore[reportArgumentType]
        raise DataError(f"{data} has fewer than 2 test images: nothing could be judged on them")
    about = {"model": model, "weights": weights, "data": data, "image_size": image_size, "arguments": argument}
    network = load_network(model, weights, num_classes, bundle, argument)
    with stoppable(f"stopped; the same command continues the comparison in {escape(str(out))}"):
        result = compare(Subject(lambda _: network, bundle, about), contenders, range(seeds), out, settings, announcer())
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console.print(comparison_table(result))
    console.print(comparison_legend(result))
    for row in result["criteria"]:
        if row["not_applicable"] is not None:
            console.print(f"{escape(row['name'])}: not applicable: {escape(row['not_applicable'])}", soft_wrap=True)
    console.print(f"{result['seconds']:.0f} s; written to {escape(str(out))}: comparison.json, comparison.html", soft_wrap=True)


def warn_untrained(model: str, weights: str | None) -> None:
    """A network of a library has random weights until some are given; a user's function may load its own."""
    if weights is None and model.partition(":")[0] in ("torchvision", "timm", "cifar"):
        text = f"{model} has random weights, so its scores say nothing about a trained network: give trained ones with --weights"
        warnings.warn(text, PrunusWarning, stacklevel=2)


def read_shares(text: str) -> tuple[float, ...]:
    """``10,20`` as (0.1, 0.2)."""
    try:
        percents = sorted({float(part) for part in text.split(",") if part.strip()})
        if not percents or percents[0] <= 0 or percents[-1] >= 100:
            raise ValueError
    except ValueError:
        raise RecipeError(f"can't read --shares {text!r}: write percent between 0 and 100 by comma, e.g. 10,30,50") from None
    return tuple(percent / 100 for percent in percents)


def announcer() -> Callable[[str], None]:
    """Prints the name of a step, on a terminal only."""
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda step: err.print(f"[bold]{escape(step)}[/bold]")


def _scores_json(model: str, row: Any, options: Mapping[str, Any], found: Scores, notes: list[str]) -> dict[str, Any]:
    from prunus.pipeline.result import environment

    machine = environment()
    return {
        "prunus": machine["prunus"],
        "model": model,
        "criterion": found.criterion,
        "options": dict(options),
        "summary": row.summary,
        "paper": row.paper,
        "comparable": found.comparable,
        "notes": notes,
        "scores": {name: values.tolist() for name, values in found.by_group.items()},
        "environment": machine,
    }


def _write_scores(tree: Mapping[str, Any], out: Path) -> None:
    if out.suffix == ".html":
        from prunus.report.laboratory import write_scores

        write_scores(tree, out)
        return
    if out.suffix == ".json":
        text = json.dumps(tree, indent=2) + "\n"
    else:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(("group", "channel", "score"))
        writer.writerows((name, c, repr(v)) for name, values in tree["scores"].items() for c, v in enumerate(values))
        text = buffer.getvalue()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.encode())
    except OSError as error:
        raise ArtifactError(f"can't write {out}: {error.strerror or error}") from error
