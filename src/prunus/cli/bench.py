"""``prunus bench``: networks timed side by side, and why one isn't faster."""

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
from prunus.cli.given import Arguments, AsJson, Classes, Input, Seed, Weights, random_input, read_arguments
from prunus.cli.laboratory import announcer
from prunus.errors import RecipeError

_NETWORKS = typer.Argument(
    help="sources (torchvision:NAME, timm:NAME, file.py:function), saved networks (small.prunus), folders of runs (full and "
    "small); LABEL= before one names it. The first is what the others are compared with"
)


@app.command("bench")
def bench_command(
    networks: Annotated[list[str], _NETWORKS],
    runtime: Annotated[str, typer.Option(help="by comma: eager, compile, onnxruntime, openvino")] = "eager,onnxruntime",
    batch: Annotated[str, typer.Option(help="images a pass, by comma")] = "1",
    threads: Annotated[str, typer.Option(help="CPU threads, by comma")] = "1",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="eager and compile in that memory format, too")] = False,
    processes: Annotated[int, typer.Option(min=1, help="fresh processes for each setting")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="about how long the timed passes of each take")] = 3.0,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="time layers alone, to tell why")] = True,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="peak memory, each network in a process of its own")
    ] = True,
    of: Annotated[str | None, typer.Option(help="source of the network that saved ones were made from")] = None,
    weights: Weights = None,
    input_shape: Input = None,
    num_classes: Classes = None,
    argument: Arguments = None,
    max_ms: Annotated[
        float | None,
        typer.Option(min=0, help="fail if the median of a network is above this; of several, the first may take more"),
    ] = None,
    min_speed_up: Annotated[
        float | None, typer.Option(min=0, help="fail if a network isn't so many times as fast as the first")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the results; a bench that was stopped goes on")] = Path("bench"),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Time networks side by side and tell why one isn't as fast as its multiply-adds say: a table, a page and JSON.

    Networks take turns in fresh processes, so that a slow spell hits all alike; what the spread of the passes doesn't show isn't
    claimed. For continuous integration: --max-ms or --min-speed-up make the exit code 1 where a network is too slow.
    """
    from prunus.laboratory.bench import BenchSettings, bench
    from prunus.laboratory.bench_limits import check_limits
    from prunus.laboratory.contestants import Origin, read_contestants

    settings = BenchSettings(
        runtimes=tuple(part.strip() for part in runtime.split(",") if part.strip()),
        batches=read_counts("--batch", batch),
        threads=read_counts("--threads", threads),
        channels_last=channels_last,
        processes=processes,
        seconds=seconds,
        layers=layers,
        memory=memory,
    )
    settings.cases()  # fails now, not after networks were built
    found = read_contestants(networks, Origin(of, weights, num_classes, read_arguments(argument), seed))
    shape = input_shape
    if shape is None and found.input_shape is not None:
        shape = "x".join(map(str, found.input_shape))
    source = of or next(iter(networks)).partition("=")[2] or next(iter(networks))
    about = {"networks": networks, "of": of, "weights": weights, "input": shape, "arguments": argument}
    with stoppable(f"stopped; the same command goes on with the settings that are left, in {escape(str(out))}"):
        result = bench(found.networks, random_input(source, shape), out, settings, about=about, announce=announcer())
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        for table in bench_tables(result):
            console.print(table)
        for line in bench_notes(result):
            console.print(escape(line), soft_wrap=True)
        console.print(f"written to {escape(str(out))}: bench.json, bench.html", soft_wrap=True)
    check_limits(result, max_ms=max_ms, min_speed_up=min_speed_up)


def read_counts(option: str, text: str) -> tuple[int, ...]:
    """``1,8,32`` as numbers."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
        if not found or min(found) < 1:
            raise ValueError
    except ValueError:
        raise RecipeError(f"can't read {option} {text!r}: write whole numbers from 1 up by comma, e.g. 1,8") from None
    return found


def bench_tables(result: Mapping[str, Any]) -> list[Table]:
    """A table for every setting: median, p90, p99, images per second, memory, speed-up and the ideal of every network."""
    return [_case_table(row) for row in result["cases"]]


def _case_table(row: Mapping[str, Any]) -> Table:
    failed = "" if row["error"] is None else f": not measured: {row['error']}"
    table = Table(title=escape(row["case"] + failed), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("network", overflow="fold")
    for heading in ("p50 ms", "p90", "p99", "images/s", "MB", "speed-up", "ideal"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in row["networks"].items():
        times = (f"{found['p50_ms']:.3g}", f"{found['p90_ms']:.3g}", _shown(found["p99_ms"]))
        megabytes = found["memory_bytes"] and found["memory_bytes"] / 1e6
        told = row["compared"].get(name, {"speed_up": None, "ideal": None})
        cells = [*times, f"{found['images_per_second']:.0f}", _shown(megabytes), _shown(told["speed_up"]), _shown(told["ideal"])]
        table.add_row(escape(name), *cells)
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def bench_notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences under the tables: verdicts, why networks fall short of the ideal, and what couldn't be found out."""
    found: list[str] = []
    for row in result["cases"]:
        for name, told in row["compared"].items():
            (low, high), ideal = told["interval"], f", {told['of_ideal']:.0%} of the ideal" if told["ideal"] else ""
            why = ", because" if told["reasons"] else ""
            speed_up = f"{told['speed_up']:.2f} times as fast ({low:.2f} to {high:.2f})"
            found.append(f"{name}, {row['case']}: {told['verdict']}, {speed_up}{ideal}{why}")
            found += [f"  - {reason['text']}" for reason in told["reasons"]]
    return [*found, *result["notes"]]
