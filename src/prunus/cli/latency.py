"""``prunus latency``: what every layer of a network takes on this machine, against its width."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from prunus.budgets import RUNTIMES, Timing
from prunus.cli.app import app, console, stoppable
from prunus.cli.given import (
    Arguments,
    AsJson,
    Cache,
    ChannelsLast,
    Classes,
    Dtype,
    Input,
    Keep,
    ModelArgument,
    Threads,
    TimingBatch,
    Weights,
    load_network,
    random_input,
)
from prunus.errors import UnknownName


@app.command("latency")
def latency_command(
    model: ModelArgument,
    runtime: Annotated[str, typer.Option(help="eager, compile, onnxruntime or openvino")] = "eager",
    threads: Threads = 1,
    timing_batch: TimingBatch = 1,
    dtype: Dtype = "float32",
    channels_last: ChannelsLast = False,
    cache: Cache = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="measure layers anew, even where their times are known")] = False,
    weights: Weights = None,
    input_shape: Input = None,
    num_classes: Classes = None,
    argument: Arguments = None,
    keep: Keep = None,
    out: Annotated[Path, typer.Option(help="folder of the profile")] = Path("latency"),
    as_json: AsJson = False,
) -> None:
    """Profile a network on this machine: time of every layer against its width, and against what the machine can do.

    Layer times are kept (see --cache): a profile that was stopped goes on, and budgets on latency start from them.
    """
    from prunus.laboratory.latency import profile_latency

    if runtime not in RUNTIMES:
        raise UnknownName.among("runtime", runtime, RUNTIMES)
    timing = Timing(threads, timing_batch, dtype, channels_last, cache)
    network = load_network(model, weights, num_classes, None, argument).eval()
    about = {"model": model, "weights": weights, "input": input_shape, "arguments": argument}
    with stoppable("stopped; the same command goes on with the layers that are left"):
        result = profile_latency(
            network,
            random_input(model, input_shape),
            out,
            runtime=runtime,
            timing=timing,
            keep=keep or (),
            fresh=fresh,
            about=about,
        )
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console.print(latency_table(result))
    for line in latency_notes(result):
        console.print(line, soft_wrap=True)
    console.print(f"written to {escape(str(out))}: latency.json, latency.html", soft_wrap=True)


def latency_table(result: Mapping[str, Any]) -> Table:
    """Every layer with its time at full, half and an eighth of its width, and the share of the machine's peaks it reaches."""
    settings, network = result["settings"], result["network"]
    title = (
        f"{network['latency_ms']:.3g} ms on {settings['runtime']}, threads {settings['threads']}, batch {settings['batch']}; "
        "layers timed alone"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("layer", overflow="fold", min_width=14)
    for heading in ("widths", "ms", "share", "1/2", "1/8", "MACs/s", "bytes/s", "bound by"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["layers"]:
        curve = {share: ms for share, ms in row["curve"]}
        peaks = (f"{row['of_peak'][name]:.0%}" for name in ("macs_per_second", "bytes_per_second"))
        times = (f"{row['ms']:.3f}", f"{row['share']:.0%}", f"{curve[0.5] / row['ms']:.0%}", f"{curve[0.125] / row['ms']:.0%}")
        table.add_row(escape(row["name"]), f"{row['reads']} > {row['writes']}", *times, *peaks, row["bound"])
    return table


def latency_notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences under the table."""
    machine, network, multiple = result["machine"], result["network"], result["multiple"]
    liked = f"multiples of {multiple} are the fast widths here" if multiple > 1 else "no multiple of widths is faster here"
    return [
        "1/2, 1/8: time left at that share of the widths; MACs/s, bytes/s: of the machine's peaks, measured as "
        f"{machine['macs_per_second'] / 1e9:.3g} billion multiply-adds and {machine['bytes_per_second'] / 1e9:.3g} GB per second",
        f"all layers {network['layers_ms']:.3g} ms of the network's {network['latency_ms']:.3g} ms; {liked}",
    ]
