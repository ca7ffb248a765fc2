"""``prunus export``: a pruned network in the formats of other runtimes, each checked against PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from prunus.cli.app import app, console, stoppable
from prunus.cli.given import (
    Arguments,
    AsJson,
    Classes,
    Data,
    ImageSize,
    Input,
    Seed,
    Threads,
    Weights,
    load_bundle,
    load_network,
    random_input,
    read_arguments,
)
from prunus.errors import RecipeError


@app.command("export")
def export_command(
    source: Annotated[
        str, typer.Argument(help="folder of a finished run; or a network as elsewhere, e.g. torchvision:NAME, with --pruned")
    ],
    pruned: Annotated[Path | None, typer.Option(help="a file that Prunus saved; SOURCE is the network it was made from")] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="onnx (default), pt2, openvino, executorch or hf; may be repeated")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="also small.int8.onnx, quantised on training images of the data")] = False,
    calibration: Annotated[int, typer.Option(min=1, help="training images that --int8 measures ranges on")] = 128,
    data: Data = None,
    image_size: ImageSize = None,
    images: Annotated[int, typer.Option(min=1, help="test images on which files are compared with PyTorch")] = 400,
    batch_size: Annotated[int, typer.Option(min=1, help="images per step of the comparison")] = 32,
    weights: Weights = None,
    input_shape: Input = None,
    num_classes: Classes = None,
    argument: Arguments = None,
    out: Annotated[Path, typer.Option(help="folder of the files")] = Path("exported"),
    runs: Annotated[int, typer.Option(min=3, help="timed runs of every file, in turns with the unpruned network's")] = 30,
    threads: Threads = 1,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Export a pruned network; every file is opened again, compared with PyTorch on test images, and measured.

    A file that differs by more than 1e-4 of the largest output isn't kept, and the exit code is then 1.
    """
    from prunus.pipeline.export import Request, export_networks, pruned_network, pruned_run
    from prunus.pipeline.exports import Timed

    request = Request(tuple(formats or ["onnx"]), int8, images, calibration, batch_size, seed, Timed(runs, threads))
    request.check()
    if Path(source).is_dir():
        given = {"--pruned": pruned, "--weights": weights, "--input": input_shape, "--num-classes": num_classes}
        given |= {"--argument": argument, "--image-size": image_size}
        if named := [name for name, value in given.items() if value is not None]:
            raise RecipeError(f"{source} is the folder of a run, whose recipe tells what {', '.join(named)} would: leave it out")
        subject = pruned_run(Path(source), data)
    else:
        if data is not None and input_shape is not None:
            raise RecipeError("--input gives the shape where there are no data: leave it out, or leave out --data")
        bundle = load_bundle(data, image_size, seed, source)
        network = load_network(source, weights, num_classes, bundle, argument, seed)
        example = random_input(source, input_shape) if bundle is None else bundle.test[0][0][None]
        subject = pruned_network(source, network, pruned, example, bundle, read_arguments(argument))
    with stoppable("stopped; the files that are written are whole"):
        result = export_networks(subject, request, out)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        console.print(export_table(result))
        for line in export_notes(result):
            console.print(escape(line), soft_wrap=True)
        console.print(f"written to {escape(str(out))}: {escape(', '.join(_files(result)))}", soft_wrap=True)
    if any("refused" in row for row in result["exports"]):
        raise typer.Exit(1)


def export_table(result: Mapping[str, Any]) -> Table:
    """Every file: how far it is from PyTorch, and bytes and latency beside the unpruned network's."""
    table = Table(title=f"exports of {escape(result['name'])}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("format")
    for heading in ("largest difference", "same class", "size", "latency", "verdict"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["exports"]:
        if "refused" in row:
            table.add_row(row["format"], "", "", "", "", "[red]refused[/red]")
            continue
        difference = f"{row['max_error']:.1e}" if "max_error" in row else f"{row['error']:.1e} rms" if "error" in row else ""
        same = "" if row.get("agreement") is None else f"{row['agreement']:.2%}"
        size = _before(
            f"{row['file_bytes_before'] / 1e6:.2f}" if "file_bytes_before" in row else "", f"{row['file_bytes'] / 1e6:.2f} MB"
        )
        times = [f"{row[key]['median_ms']:.3g}" for key in ("latency_before", "latency_after") if key in row]
        latency = f"{' > '.join(times)} ms" if times else ""
        verdict = "agrees" if "max_error" in row else "see below" if "error" in row else "written"
        table.add_row(row["format"], difference, same, size, latency, verdict)
    return table


def _before(before: str, after: str) -> str:
    return f"{before} > {after}" if before else after


def export_notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences under the table: on what was compared, INT8's accuracy line, refusals and notes."""
    images, accuracy = result["images"], result["accuracy"]
    lines = ["compared on random inputs only: --data compares on test images"]
    if images:
        judged = "" if accuracy is None else f", of which PyTorch's network gets {accuracy:.2%} right"
        lines = [f"compared on {images} test images{judged}"]
    for row in result["exports"]:
        if "refused" in row:
            lines.append(f"{row['format']} was refused: {row['refused']}")
        if row["format"] == "int8" and "refused" not in row:
            lines.append(int8_line(row))
        lines += [f"{row['format']}: {note}" for note in row.get("notes", ())]
    return lines


def int8_line(row: Mapping[str, Any]) -> str:
    """INT8 has an accuracy of its own."""
    tail = f"calibrated on {row['calibration_images']} training images; size and latency are beside the float file's"
    if row["accuracy"] is None:
        return f"int8: outputs differ by {row['error']:.2%} (root mean square) from the float network's; {tail}"
    change = (row["accuracy"] - row["accuracy_float"]) * 100
    return (
        f"int8: accuracy {row['accuracy']:.2%}, float {row['accuracy_float']:.2%} ({change:+.2f} points) on {row['images']} "
        f"images, the same class on {row['agreement']:.2%}; {tail}"
    )


def _files(result: Mapping[str, Any]) -> list[str]:
    return ["export.json", *(name for row in result["exports"] for name in row.get("files", ()))]
