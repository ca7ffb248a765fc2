"""What a layer reads in the small network at the points at which it is known what the original gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from prunus.errors import EvidenceError
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun, to_device
from prunus.importance.points import inputs_at
from prunus.importance.readers import ReadingCall
from prunus.reconstruction.layer_sites import Site
from prunus.reconstruction.layer_visits import Watch, visit
from prunus.reconstruction.original import Original, digest
from prunus.reconstruction.paused_passes import PausedPasses


@dataclass(frozen=True, eq=False)
class Sample:
    """Points of one call in both networks: x (points, inputs, kernel) of the small one, y (points, outputs) of the original, what
    each adds behind the layer (points, outputs) or None, and the number of the image that every point is of (points,)."""

    x: Tensor
    y: Tensor
    shortcut: Tensor | None
    shortcut_before: Tensor | None
    images: Tensor


def samples(
    small: nn.Module, original: Original, site: Site, weight: str, passes: PausedPasses | None = None
) -> Iterator[Sample]:
    """Pass the data through the small network as far as the layer, batch by batch; the same points are taken as in the original.

    Nothing is kept from batch to batch. x is of ``small`` and y of ``weight`` in the original: what earlier layers do wrong is
    part of x. With ``passes`` a batch goes on from the layer that was looked at last, where it can.
    """
    run, generator = original.run, original.generator()
    seen = 0
    for number, batch in enumerate(run):
        key = digest(batch) if passes is not None or original.remembers(weight, number) else None
        before = original.at(weight, site, number, batch, key, generator)
        places = iter([found.places for found in before])
        watch = Watch(dict(named_tensors(small))[site.weight], site, lambda _, __, places=places: next(places), _read)
        if passes is None:
            visit(small, run.inputs(to_device(batch, small)), run, [watch])
        else:
            passes.visit(number, batch, key, run, watch)
        images = 0
        for a, b in zip(watch.found, before, strict=True):
            images = max(images, a.images)
            yield Sample(a.values, b.values, a.shortcut, b.shortcut, seen + a.places.cpu() // a.positions)
        seen += images


def _read(call: ReadingCall, _: Tensor, places: Tensor) -> Tensor:
    return inputs_at(call, places)


def check_repeatable(run: DataRun) -> None:
    """Refuse data that can be gone through once only."""
    if isinstance(run.data, Iterator):
        raise EvidenceError(
            f"the data are gone through once for every layer, and a {type(run.data).__name__} gives them only once: "
            "pass a loader or a list of batches"
        )
