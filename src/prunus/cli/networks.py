"""Commands about networks: inspect, prune, evaluate, criteria. Each is a thin call into the library."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from prunus import CRITERIA, Budget, ChannelGraph, load, prune, reach, save, trace
from prunus.allocation import check_reach
from prunus.cli.app import app, console
from prunus.cli.tables import graph_json, graph_table, reach_table
from prunus.errors import RecipeError
from prunus.importance.criteria import resolve_criterion
from prunus.sources import DataBundle, load_data, load_model, make_loader, own_normalisation

ModelArgument = Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME, cifar:resnet20, or path/to/file.py:function")]
Weights = Annotated[
    str | None,
    typer.Option(help=".safetensors or .pt file, package:DISTRIBUTION/PATH, pretrained (downloaded), or hf:ORG/REPO/FILE"),
]
Input = Annotated[
    str | None, typer.Option("--input", help="shape of one input, e.g. 3x224x224 (default: the data's, else the usual one)")
]
Classes = Annotated[int | None, typer.Option(help="outputs of the classifier (default: the data's, else the network's own)")]
Arguments = Annotated[
    list[str] | None, typer.Option("--argument", help="NAME=VALUE for the network's constructor; may be repeated")
]
Keep = Annotated[list[str] | None, typer.Option(help="module or parameter name, or glob, that is never pruned; may be repeated")]
WholeGroups = Annotated[bool, typer.Option(help="grouped layers lose whole groups, not the same slots of every group")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
Data = Annotated[
    str | None, typer.Option(help="digits, folder:PATH, cifar10:PATH, fashion-mnist:PATH, elpv, or path/to/file.py:function")
]
ImageSize = Annotated[int | None, typer.Option(help="pixels; resizes and crops the data's images")]
Seed = Annotated[int, typer.Option(help="of everything random")]


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
    network = _network(model, weights, num_classes, None, argument)
    graph = trace(network, _random_input(model, input_shape), keep or (), cast(Any, mixing), whole_groups=whole_groups)
    if as_json:
        print(json.dumps(graph_json(graph), indent=2))
        return
    cost = graph.cost()
    console.print(graph_table(graph))
    console.print(f"per input: {cost.macs:,} MACs, {cost.activation_bytes:,} bytes of activations at the peak")
    console.print(f"{cost.parameters:,} parameters")
    console.print(f"{len(graph.prunable)} of {len(graph.groups)} groups are prunable")
    for note in (*(f"no rule for {op}: {n} calls" for op, n in graph.unsupported_ops.items()), *graph.notes):
        console.print(f"note: {escape(note)}", soft_wrap=True)


@app.command("prune")
def prune_command(
    model: ModelArgument,
    budget: Annotated[
        str, typer.Option(help="macs=0.5 keeps half; parameters=1.2M is absolute; several, by comma, must all hold")
    ],
    out: Annotated[Path, typer.Option(help="file of the small network")] = Path("small.prunus"),
    criterion: Annotated[str, typer.Option(help="a name from `prunus criteria`")] = "l1",
    allocator: Annotated[str, typer.Option(help="uniform, global, global_per_cost, knapsack, ...")] = "global",
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
    multiple_of: Annotated[int, typer.Option(help="layer widths are multiples of this")] = 1,
    max_pruning_ratio: Annotated[float, typer.Option(help="largest share that any group loses")] = 0.95,
    tolerance: Annotated[float, typer.Option(help="how far below the budget the plan may stay")] = 0.01,
    dry_run: Annotated[bool, typer.Option(help="only show how far the budget can go")] = False,
    onnx: Annotated[Path | None, typer.Option(help="also write the small network as ONNX, checked against onnxruntime")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Prune a network once, prove the result and save it. Without training: use `prunus run` to recover accuracy."""
    limits = {
        "min_channels": min_channels,
        "multiple_of": multiple_of,
        "max_pruning_ratio": max_pruning_ratio,
        "tolerance": tolerance,
    }
    wanted = Budget.parse(budget, **limits)
    if data is not None and input_shape is not None:
        raise RecipeError("--input gives the shape where there are no data: leave it out, or leave out --data")
    if data is None and image_size is not None:
        raise RecipeError("--image-size resizes the images of --data: without data, give the shape with --input")
    bundle = _bundle(data, image_size, seed, model)
    network = _network(model, weights, num_classes, bundle, argument, seed)
    examples = torch.stack([bundle.test[i][0] for i in (0, 1)]) if bundle else _random_input(model, input_shape)
    if dry_run:
        graph = trace(network, examples, keep or (), cast(Any, mixing), whole_groups=whole_groups)
        _show_reach(graph, wanted, as_json)
        return
    needs_data = bool(resolve_criterion(criterion, {}).needs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loader = make_loader(bundle.calibration, batch_size=64, shuffle=True) if bundle and needs_data else None
        result = prune(
            network,
            examples,
            wanted,
            criterion,
            loader,
            None,
            allocator,
            keep or (),
            mixing=cast(Any, mixing),
            whole_groups=whole_groups,
            batches=batches,
            seed=seed,  # pyright: ignore[reportArgumentType]
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
        str, typer.Option(help="digits, folder:PATH, cifar10:PATH, fashion-mnist:PATH, elpv, or path/to/file.py:function")
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

    bundle = _bundle(data, image_size, 0, model)
    assert bundle is not None
    network = _network(model, weights, num_classes, bundle, argument)
    if pruned is not None:
        network = load(pruned, network)
    found = run_evaluation(network, make_loader(bundle.test, batch_size=batch_size, shuffle=False))
    if as_json:
        print(json.dumps({"accuracy": found.accuracy, "loss": found.loss, "count": found.count}))
    else:
        console.print(f"accuracy {found.accuracy:.2%}, loss {found.loss:.4f}, on {found.count} test images")


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
        table.add_row(row.name, escape(row.summary), needs, ", ".join(row.options), escape(row.paper))
    console.print(table)


def _bundle(data: str | None, image_size: int | None, seed: int, model: str) -> DataBundle | None:
    if data is None:
        return None
    return load_data(data, image_size=image_size, network_normalisation=own_normalisation(model), seed=seed)


def _network(
    source: str,
    weights: str | None,
    num_classes: int | None,
    bundle: DataBundle | None,
    arguments: list[str] | None,
    seed: int = 0,
) -> nn.Module:
    settings: dict[str, Any] = {}
    for item in arguments or []:
        name, sep, raw = item.partition("=")
        if not sep:
            raise RecipeError(f"can't read --argument {item!r}: write NAME=VALUE")
        try:
            settings[name] = json.loads(raw)
        except json.JSONDecodeError:
            settings[name] = raw
    classes = num_classes if num_classes is not None or bundle is None else bundle.num_classes
    channels = bundle.input_shape[0] if bundle is not None else None
    return load_model(source, weights=weights, num_classes=classes, in_channels=channels, arguments=settings, seed=seed)


def _random_input(source: str, text: str | None) -> Tensor:
    text = text or ("3x32x32" if source.startswith("cifar:") else "3x224x224")
    try:
        shape = [int(part) for part in text.lower().split("x")]
        if not shape or min(shape) < 1:
            raise ValueError
    except ValueError:
        raise RecipeError(f"can't read --input {text!r}: write the shape of one input, e.g. 3x224x224") from None
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
