"""Why a network isn't as much faster as its multiply-adds say: its time above the ideal, divided among causes that add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Row = Mapping[str, Any]
NAMED = 0.1
"""Causes of a smaller share of the time above the ideal aren't told."""
_FUSING = "a runtime that fuses them into the convolutions (onnxruntime, compile) would help"


@dataclass(frozen=True)
class Timed:
    """A network in one setting: milliseconds as a whole, multiply-adds, and its layers as `layer_json` writes them."""

    ms: float
    macs: int
    layers: Sequence[Row]


def causes(reference: Timed, small: Timed) -> dict[str, float]:
    """Milliseconds of ``small`` above the ideal (the reference's time x the share of MACs left), by cause; together they are all.

    With r the share of MACs left and every layer timed alone (see `fitted`):

    - ``other``: what isn't layers (batch norms, activations, additions, calls), minus r x the same of the reference;
    - ``launch``: what the layers take at a single channel, minus r x the same of the reference;
    - ``widths``: what widths that aren't multiples of 16 take more than the next multiples would;
    - ``memory``: what layers that wait for memory take more per MAC than the same layers of the reference, ``shapes``: what the
      others do. Time beyond the single channel is meant; where the reference has no layer of that name, its average counts;
    - ``cheap``: what is left: MACs went from layers where the reference spent less time on each than on average.
    """
    reference, small = fitted(reference, small)
    left = small.macs / reference.macs
    floors = [sum(row["floor_ms"] for row in network.layers) for network in (reference, small)]
    alone = [_layers_ms(network) for network in (reference, small)]
    found = {
        "other": (small.ms - alone[1]) - left * (reference.ms - alone[0]),
        "launch": floors[1] - left * floors[0],
        **dict.fromkeys(("widths", "memory", "shapes"), 0.0),
    }
    average = (alone[0] - floors[0]) / max(sum(row["macs"] for row in reference.layers), 1)
    by_name = {row["name"]: row for row in reference.layers}
    for row in small.layers:
        before = by_name.get(row["name"])
        per_mac = (before["ms"] - before["floor_ms"]) / max(before["macs"], 1) if before else average
        odd = min(row["ms"] - row["even_ms"], row["ms"] - row["floor_ms"])
        found["widths"] += odd
        found["memory" if row["bound"] == "memory" else "shapes"] += row["ms"] - row["floor_ms"] - odd - per_mac * row["macs"]
    return {**found, "cheap": small.ms - left * reference.ms - sum(found.values())}


def fitted(reference: Timed, small: Timed) -> tuple[Timed, Timed]:
    """Both with layer times scaled alike, so that they fit into the network's where they take longer alone than in it."""
    scale = min(1.0, *(network.ms / _layers_ms(network) for network in (reference, small)))

    def scaled(network: Timed) -> Timed:
        times = ("ms", "even_ms", "floor_ms")
        return replace(network, layers=[{**row, **{key: scale * row[key] for key in times}} for row in network.layers])

    return scaled(reference), scaled(small)


def reasons(reference: Timed, small: Timed, runtime: str) -> list[dict[str, Any]]:
    """The causes that matter, largest first, each with its milliseconds and a sentence; none where nothing is above the ideal."""
    above = small.ms - reference.ms * small.macs / reference.macs
    if above <= 0:
        return []
    found = sorted(causes(reference, small).items(), key=lambda item: -item[1])
    both = fitted(reference, small)
    return [
        {"cause": name, "ms": ms, "share": ms / above, "text": _SENTENCES[name](*both, runtime) + _of(ms, above)}
        for name, ms in found
        if ms >= NAMED * above
    ]


def _of(ms: float, above: float) -> str:
    if ms > above:
        return f" (costs {ms:.3g} ms; other parts are better than the ideal, so that {above:.3g} ms above it are left)"
    return f" ({ms:.3g} of the {above:.3g} ms above the ideal)"


def _other(reference: Timed, small: Timed, runtime: str) -> str:
    rest = [max(0.0, network.ms - _layers_ms(network)) for network in (reference, small)]
    figures = f"{rest[1]:.3g} of its {small.ms:.3g} ms (the reference's {rest[0]:.3g} of {reference.ms:.3g} ms)"
    if runtime != "eager":
        return f"work beside the layers: what isn't convolutions and matrix products takes {figures}"
    return (
        "work beside the layers: batch norms, activations and additions, which wait for memory and are called one by one, take "
        f"{figures}; {_FUSING}"
    )


def _launch(reference: Timed, small: Timed, runtime: str) -> str:
    floors = [sum(row["floor_ms"] for row in network.layers) for network in (reference, small)]
    return (
        f"launch-bound: its {len(small.layers)} layers take {floors[1]:.3g} of {small.ms:.3g} ms even at a single channel (the "
        f"reference's {floors[0]:.3g} of {reference.ms:.3g} ms); fewer layers or larger batches would help, not fewer channels"
    )


def _widths(reference: Timed, small: Timed, runtime: str) -> str:
    odd = [row for row in small.layers if row["even_ms"] < row["ms"]]
    saved = sum(row["ms"] - row["even_ms"] for row in odd)
    return (
        f"odd widths: {len(odd)} of its layers would take {saved:.3g} ms less with widths rounded up to multiples of 16; prune "
        'with multiple_of=16, or "auto"'
    )


def _memory(reference: Timed, small: Timed, runtime: str) -> str:
    waiting = [row for row in small.layers if row["bound"] == "memory"]
    names = {row["name"] for row in waiting}
    ms = sum(row["ms"] for row in waiting)
    before = [row for row in reference.layers if row["name"] in names]
    told = f"memory-bound: {len(waiting)} of its layers wait for memory ({ms:.3g} of {small.ms:.3g} ms)"
    if not before:
        return told
    share = {key: sum(row[key] for row in waiting) / sum(row[key] for row in before) for key in ("macs", "bytes")}
    return f"{told}: their multiply-adds fell to {share['macs']:.0%}, what they read and write to {share['bytes']:.0%}"


def _shapes(reference: Timed, small: Timed, runtime: str) -> str:
    rates = [_rate(network, "memory") for network in (reference, small)]
    return (
        f"narrow layers: those that don't wait for memory do {rates[1] / 1e9:.3g} billion multiply-adds a second, "
        f"the reference's {rates[0] / 1e9:.3g}; kernels reach less of the machine at fewer channels"
    )


def _cheap(reference: Timed, small: Timed, runtime: str) -> str:
    left = {row["name"]: row["macs"] for row in small.layers}
    per_mac = {row["name"]: row["ms"] / max(row["macs"], 1) for row in reference.layers}
    gone = {row["name"]: row["macs"] - left.get(row["name"], row["macs"]) for row in reference.layers}
    average = _layers_ms(reference) / max(sum(row["macs"] for row in reference.layers), 1)
    taken = sum(per_mac[name] * macs for name, macs in gone.items()) / max(sum(gone.values()), 1)
    return (
        f"multiply-adds went where they cost little time: a million of those removed took {1e6 * taken:.3g} ms, of all "
        f"{1e6 * average:.3g} ms; a budget on latency chooses by time"
    )


_SENTENCES = {"other": _other, "launch": _launch, "widths": _widths, "memory": _memory, "shapes": _shapes, "cheap": _cheap}


def _layers_ms(network: Timed) -> float:
    return sum(row["ms"] for row in network.layers)


def _rate(network: Timed, but: str) -> float:
    """Multiply-adds a second of the layers that aren't bound by ``but``."""
    rows = [row for row in network.layers if row["bound"] != but]
    return 1e3 * sum(row["macs"] for row in rows) / max(sum(row["ms"] for row in rows), 1e-12)
