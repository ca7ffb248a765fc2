"""Least-squares reconstruction: every layer of a pruned network is refitted to what it gave in the original one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from prunus.errors import UnknownName, UnsupportedNetwork
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun, to_device
from prunus.reconstruction.layer_fit import POINTS_PER_IMAGE, LayerFit, original_of, outputs_kept, refit_layer
from prunus.reconstruction.layer_samples import check_repeatable
from prunus.reconstruction.layer_sites import Site, find_sites
from prunus.reconstruction.original import Original
from prunus.reconstruction.paused_passes import PausedPasses
from prunus.surgery import SurgeryRecord
from prunus.types import ForwardFn

MOST_INPUTS = 8192
"""Layers that read more (512 MiB of normal equations) are left as they are."""


@dataclass(frozen=True)
class ReconstructionReport:
    """Layers in the order in which they were fitted, and why others weren't (weight -> reason)."""

    layers: tuple[LayerFit, ...]
    not_fitted: Mapping[str, str]

    def __str__(self) -> str:
        lines = [
            f"`{fit.weight}`: error {fit.error_before:.4f} -> {fit.error_after:.4f}"
            + ("" if fit.intercept else ", without intercept")
            + ("" if fit.ridge is not None else ", left as it was")
            for fit in self.layers
        ]
        return "\n".join([*lines, *(f"`{name}` isn't refitted: {why}" for name, why in self.not_fitted.items())])


def reconstruct(
    small: nn.Module,
    full: nn.Module,
    record: SurgeryRecord,
    data: Iterable[Any],
    *,
    forward_fn: ForwardFn | None = None,
    batches: int | None = None,
    points: int = POINTS_PER_IMAGE,
    ridge: float | None = None,
    behind_relu: bool = False,
    skip: Iterable[str] = (),
    seed: int = 0,
    on_layer: Callable[[LayerFit], None] | None = None,
) -> ReconstructionReport:
    """Refit the layers of a pruned network, in place, to the outputs that they had in the original one; no labels, no training.

        W, b = argmin of sum over points of ||y + (s - s') - W x - b||^2 + ridge * scale * ||W - W now||^2

    He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3. Layers are taken from
    front to back; x is what the layer reads in ``small``, whose earlier layers are refitted already, y what it gives in ``full``,
    so that earlier errors are made up for. In a residual block y is met behind the sum: s and s' are the shortcuts of the
    original and of the small network. Where two layers meet in a sum the one that runs later makes up for the other. Both sides
    are compared behind the layer's batch norm. Convolutions (grouped, depthwise, strided, dilated) and linear layers are
    refitted; shapes stay, so that `prunus.load` reads the network as before. A constant goes into the bias or, without one, into
    the running mean of the batch norm that follows alone; where there is neither there is no intercept, and the report says so
    (`prunus.surgery.add_bias` gives a layer one beforehand).

    Departures: the ridge pulls to the weights as they are, so that what the data don't tell stays (the released code has none),
    it is chosen on held-out images (one in five), and a layer that no fit improves there stays as it was. Layers whose inputs
    lost no channel are refitted, too, if what they read has changed.

    Args:
        small: what `prunus.remove` gave, changed in place. Layers in front of a batch norm are fitted to its statistics as they
            are: recalibrating them afterwards undoes part of it (ResNet-20 on CIFAR-10 at half the MACs: 78 -> 75 %).
        full: the network before; untouched.
        record: the record of the surgery that leads from ``full`` to ``small``.
        data: batches ``(inputs, targets)`` or inputs alone, gone through once for every layer: a loader or a list. If
            batches come back the same, the original computes each once (what it gives is kept in a temporary file), and so does
            ``small``, as far as `MOST_HELD` bytes of feature maps reach: batches stand still at a layer until it is refitted.
            Otherwise, as with a loader that shuffles or augments, both begin anew for every layer, and time grows with the square
            of the depth.
        points: points drawn from every image's output map (the paper: 10 on 5,000 images).
        ridge: None: chosen for every layer; a share of the mean diagonal of the normal equations; 0: plain least squares, with
            `FALLBACK_RIDGE` where that is ill-conditioned. With a number every layer is refitted on all images.
        behind_relu: where a ReLU follows, go on from the least-squares solution to one that minimises the error behind it (Zhang
            et al. 2015, section 3.2), on at most `MOST_BYTES` of the layer's inputs, if it does better on held-out images.
        skip: weights or globs over them that stay as they are.
        on_layer: is called with every layer's result as soon as it is there.

    Raises:
        EvidenceError: the data can be gone through once only, hold fewer than five images, or give values that aren't finite.
        UnsupportedNetwork: the networks aren't those of the record, or their program depends on the data.
        UnknownName: ``skip`` names no layer.
    """
    run = DataRun(data, forward_fn=forward_fn, batches=batches)
    check_repeatable(run)
    sites = find_sites(small, run.inputs(to_device(next(iter(run)), small)), forward_fn)
    _check_networks(small, full, record, sites)
    chosen, not_fitted = fittable(small, sites, tuple(skip))
    there = dict(named_tensors(full))
    for site in [site for site in chosen if original_of(record, site.weight) not in there]:
        chosen.remove(site)
        not_fitted[site.weight] = "it is inside a row of layers, whose last alone has outputs that the original had"
    fits: list[LayerFit] = []
    with Original(full, run, points, seed) as original, PausedPasses(small) as passes, _restored_on_failure(small):
        original.remember({original_of(record, site.weight): site for site in chosen})
        for site in chosen:
            fits.append(refit_layer(small, original, site, record, ridge=ridge, behind_relu=behind_relu, passes=passes))
            if on_layer is not None:
                on_layer(fits[-1])
    return ReconstructionReport(tuple(fits), not_fitted)


def _check_networks(small: nn.Module, full: nn.Module, record: SurgeryRecord, sites: Mapping[str, Site]) -> None:
    """Refuse networks that the record doesn't lead from and to."""
    now, before = dict(named_tensors(small)), dict(named_tensors(full))
    inside = {f"{edit.module}.{i}.weight" for edit in record.replacements for i in range(len(edit.layers) - 1)}
    for name in sites.keys() - inside:
        original, kept = before.get(original_of(record, name)), outputs_kept(record, name)
        outputs = None if original is None else len(original) if kept is None else len(kept)
        if outputs != len(now[name]):
            raise UnsupportedNetwork(
                f"`{name}` has {len(now[name])} outputs in the small network, and the record leads from the full one to "
                f"{outputs}: give the network before surgery, what surgery made of it, and its record"
            )


def fittable(model: nn.Module, sites: Mapping[str, Site], skip: tuple[str, ...] = ()) -> tuple[list[Site], dict[str, str]]:
    """Sites that can be refitted, in the order of execution, and why others can't (weight -> reason), but for those to skip."""
    tensors = dict(named_tensors(model))
    for glob in skip:
        if not any(fnmatchcase(name, glob) for name in sites):
            raise UnknownName.among("layer in skip", glob, sites)
    chosen: list[Site] = []
    not_fitted: dict[str, str] = {}
    for name, site in sites.items():
        inputs = tensors[name][0].numel()
        if any(fnmatchcase(name, glob) for glob in skip):
            continue
        if any(call.transposed for call in site.layer.calls):
            not_fitted[name] = "it is a transposed convolution"
        elif inputs > MOST_INPUTS:
            not_fitted[name] = f"it reads {inputs:,} values at a point, more than {MOST_INPUTS:,}"
        else:
            chosen.append(site)
    return chosen, not_fitted


@contextmanager
def _restored_on_failure(model: nn.Module) -> Generator[None]:
    """Put every tensor back if anything fails."""
    before = [(tensor, tensor.detach().clone()) for _, tensor in named_tensors(model)]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        raise
