"""Commands about networks: inspect, prune, evaluate, criteria, methods. Each is a thin call into the library."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.markup import escape
from rich.table import Table

from prunus import CRITERIA, Budget, ChannelGraph, load, prune, reach, save, time_network, trace
from prunus.allocation import DEFAULT, check_reach, resolve_allocator
from prunus.budgets import Timing, parse_limits
from prunus.cli.app import app, console
from prunus.cli.given import (
    Arguments,
    AsJson,
    Cache,
    ChannelsLast,
    Classes,
    Data,
    Dtype,
    ImageSize,
    Input,
    Keep,
    ModelArgument,
    Seed,
    Threads,
    TimingBatch,
    Weights,
    WholeGroups,
    load_bundle,
    load_network,
    random_input,
)
from prunus.cli.tables import graph_json, graph_table, reach_table
from prunus.errors import RecipeError
from prunus.importance.criteria import default_criterion, resolve_criterion
from prunus.sources import make_loader
from prunus.sparsity import SPARSITY_METHODS


@app.command()
def inspect(
    model: ModelArgument,
    weights: Weights = None,
    input_shape: Input = None,
    num_classes: Classes = None,
    argument: Arguments = None,
    keep: Keep = None,
    mixing: Annotated[str, typer.Option(help="allow or freeze groups whose statistics change with the width")] = "allow",
    whole_groups: WholeGroups = False,
    as_json: AsJson = False,
) -> None:
    """Show the channel groups of a network: what can be pruned, what is frozen and why, MACs and parameters."""
    network = load_network(model, weights, num_classes, None, argument)
    graph = trace(network, random_input(model, input_shape), keep or (), cast(Any, mixing), whole_groups=whole_groups)
    if as_json:
        print(json.dumps(graph_json(graph), indent=2))
        return
    cost = graph.cost()
    console.print(graph_table(graph))
    console.print(f"per input: {cost.macs:,} MACs, {cost.activation_bytes:,} bytes of activations at the peak")
    console.print(f"{cost.parameters:,} parameters")
    console.print(f"{len(graph.prunable)} of {len(graph.groups)} groups are prunable")
    if divided := next((g for g in graph.groups if g.width_factor > 1), None):
        shape = f"{divided.num_channels} x {divided.width_factor}"
        console.print(
            f"{shape}: each of {divided.num_channels} goes as {divided.width_factor} channels, one in every group or head"
        )
    for note in (*(f"no rule for {op}: {n} calls" for op, n in graph.unsupported_ops.items()), *graph.notes):
        console.print(f"note: {escape(note)}", soft_wrap=True)


@app.command("prune")
def prune_command(
    model: ModelArgument,
    budget: Annotated[
        str,
        typer.Option(
            help="macs=0.5 keeps half; parameters=1.2M is absolute; latency=0.5@onnxruntime is measured; several, by comma, must "
            "all hold"
        ),
    ],
    out: Annotated[Path, typer.Option(help="file of the small network")] = Path("small.prunus"),
    criterion: Annotated[
        str | None, typer.Option(help="a name from `prunus criteria` (default: taylor with --data, l1 without)")
    ] = None,
    allocator: Annotated[
        str, typer.Option(help="uniform, global, global_per_cost, knapsack, ...; auto: what measured best for such scores")
    ] = DEFAULT,
    allocator_option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of the allocator, e.g. points=sensitivity/sensitivity.json; may be repeated"),
    ] = None,
    data: Data = None,
    image_size: ImageSize = None,
    batches: Annotated[int, typer.Option(min=1, help="batches of 64 images that a criterion with data sees")] = 8,
    weights: Weights = None,
    input_shape: Input = None,
    num_classes: Classes = None,
    argument: Arguments = None,
    keep: Keep = None,
    mixing: Annotated[str, typer.Option(help="allow or freeze groups whose statistics change with the width")] = "allow",
    whole_groups: WholeGroups = False,
    min_channels: Annotated[int, typer.Option(help="channels that every group keeps at least; 0: a whole branch may go")] = 1,
    multiple_of: Annotated[
        str | None, typer.Option(help="layer widths are multiples of this; auto: of what the runtime likes (default for latency)")
    ] = None,
    max_pruning_ratio: Annotated[float, typer.Option(help="largest share that any group loses")] = 0.95,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="layer1.*=0.3: at most that share goes there; conv1=16: so many channels stay; may be repeated"),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="how far below the budget the plan may stay")] = 0.01,
    dry_run: Annotated[bool, typer.Option(help="only show how far the budget can go")] = False,
    onnx: Annotated[Path | None, typer.Option(help="also write the small network as ONNX, checked against onnxruntime")] = None,
    compensate: Annotated[
        str | None, typer.Option(help="mean: what removed channels gave on average goes into the biases (needs --data)")
    ] = None,
    threads: Threads = 1,
    timing_batch: TimingBatch = 1,
    dtype: Dtype = "float32",
    channels_last: ChannelsLast = False,
    cache: Cache = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Prune a network once, prove the result and save it. Without training: use `prunus run` to recover accuracy."""
    limits = {
        "min_channels": min_channels,
        "multiple_of": read_multiple(multiple_of),
        "max_pruning_ratio": max_pruning_ratio,
        "tolerance": tolerance,
        "limits": parse_limits(limit or ()),
    }
    wanted = Budget.parse(budget, **limits)
    timing = Timing(threads, timing_batch, dtype, channels_last, cache)
    timing.check(wanted.runtime)
    from prunus.laboratory.contenders import read_options

    options = read_options(allocator_option or ())
    if data is not None and input_shape is not None:
        raise RecipeError("--input gives the shape where there are no data: leave it out, or leave out --data")
    if data is None and image_size is not None:
        raise RecipeError("--image-size resizes the images of --data: without data, give the shape with --input")
    bundle = load_bundle(data, image_size, seed, model)
    network = load_network(model, weights, num_classes, bundle, argument, seed)
    examples = torch.stack([bundle.test[i][0] for i in (0, 1)]) if bundle else random_input(model, input_shape)
    if dry_run:
        graph = trace(network, examples, keep or (), cast(Any, mixing), whole_groups=whole_groups)
        graph = time_network(network, graph, examples, wanted.runtime, timing) if wanted.measured else graph
        _show_reach(graph, wanted, as_json)
        return
    criterion = criterion or default_criterion(data)
    needs_data = bool(resolve_criterion(criterion, {}).needs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loader = make_loader(bundle.calibration, batch_size=64, shuffle=True) if bundle and (needs_data or compensate) else None
        result = prune(
            network,
            examples,
            wanted,
            criterion,
            loader,
            None,
            resolve_allocator(allocator, options) if options else allocator,
            keep or (),
            mixing=cast(Any, mixing),
            whole_groups=whole_groups,
            batches=batches,
            seed=seed,  # pyright: ignore[reportArgumentType]
            compensate=cast(Any, compensate),
            timing=timing,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    save(result.model, result.record, out)
    written = [str(out)]
    if onnx is not None:
        from prunus.export import export_onnx

        written.append(str(export_onnx(result.model, examples, onnx).path))
    if as_json:
        assert result.verification is not None
        print(
            json.dumps(
                {
                    "budget": result.plan.provenance["budget"],
                    "latency": result.plan.provenance.get("latency"),
                    "max_error": result.verification.max_error,
                    "kept": result.plan.counts(),
                    "files": written,
                },
                indent=2,
            )
        )
    else:
        console.print(escape(str(result)))
        console.print(f"written: {', '.join(map(escape, written))}")


def read_multiple(text: str | None) -> int | str | None:
    """What ``--multiple-of`` says: a number, auto, or nothing."""
    if text is None or text == "auto":
        return text
    if not text.isdigit():
        raise RecipeError(f"can't read --multiple-of {text!r}: write a number of channels, or auto")
    return int(text)


def _show_reach(graph: ChannelGraph, budget: Budget, as_json: bool) -> None:
    rows = reach(graph, budget)
    if as_json:
        print(json.dumps([{**asdict(row), "reachable": row.reachable} for row in rows], indent=2))
    else:
        console.print(reach_table(rows))
    check_reach(graph, budget)


@app.command()
def evaluate(
    model: ModelArgument,
    data: Annotated[
        str,
        typer.Option(
            help="digits, folder:PATH, wds:PATTERN, datasets:PATTERN, cifar10:PATH, fashion-mnist:PATH, elpv, or "
            "path/to/file.py:function"
        ),
    ],
    weights: Weights = None,
    pruned: Annotated[Path | None, typer.Option(help="a file that Prunus saved; MODEL is the network it was made from")] = None,
    image_size: ImageSize = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images per step")] = 256,
    num_classes: Classes = None,
    argument: Arguments = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy and loss of a network, full or pruned, on the test images."""
    from prunus.training import evaluate as run_evaluation

    bundle = load_bundle(data, image_size, 0, model)
    assert bundle is not None
    network = load_network(model, weights, num_classes, bundle, argument)
    if pruned is not None:
        network = load(pruned, network)
    found = run_evaluation(network, make_loader(bundle.test, batch_size=batch_size, shuffle=False))
    if as_json:
        print(json.dumps({"accuracy": found.accuracy, "loss": found.loss, "count": found.count}))
    else:
        console.print(f"accuracy {found.accuracy:.2%}, loss {found.loss:.4f}, on {found.count} test images")


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the sparsity methods, which train and then decide what goes: what they need and where they come from."""
    rows = list(SPARSITY_METHODS.values())
    if as_json:
        listed = [
            {
                "name": row.name,
                "summary": row.summary,
                "needs": row.needs,
                "options": {name: str(values) for name, values in row.options.items()},
                "presets": {name: dict(values) for name, values in row.presets.items()},
                "paper": row.paper,
            }
            for row in rows
        ]
        print(json.dumps(listed, indent=2))
        return
    table = Table()
    for heading in ("method", "what", "needs", "presets", "options", "paper"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = row.summary.replace("``", ""), row.needs or "nothing", ", ".join(row.presets), ", ".join(row.options), row.paper
        table.add_row(row.name, *(escape(cell) for cell in cells))
    console.print(table)


@app.command()
def criteria(as_json: AsJson = False) -> None:
    """List the criteria: what they need and where they come from."""
    rows = list(CRITERIA.values())
    if as_json:
        listed = [
            {"name": r.name, "summary": r.summary, "needs": sorted(r.needs), "options": sorted(r.options), "paper": r.paper}
            for r in rows
        ]
        print(json.dumps(listed, indent=2))
        return
    table = Table()
    for heading in ("criterion", "what", "needs data", "options", "paper"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        needs = "yes" if row.needs else "no"
        table.add_row(row.name, escape(row.summary.replace("``", "")), needs, ", ".join(row.options), escape(row.paper))
    console.print(table)
