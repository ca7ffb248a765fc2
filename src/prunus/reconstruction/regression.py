"""Least-squares reconstruction: every layer of a pruned network is refitted to what it gave in the original one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import EvidenceError, UnknownName, UnsupportedNetwork
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun, to_device
from prunus.reconstruction.layer_samples import Sample, check_repeatable, samples
from prunus.reconstruction.layer_sites import Site, find_sites
from prunus.reconstruction.normal_equations import NormalEquations, Solution
from prunus.surgery import SurgeryRecord
from prunus.types import ForwardFn

POINTS_PER_IMAGE = 10
HELD_OUT = 5
"""One image in so many is held out: on those the ridge is chosen and errors are measured."""
RIDGES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, as shares of the mean diagonal of the normal equations."""
EXACT = 1e-10
"""A layer whose squared error is below this share of its outputs' variance has nothing to recover."""
MOST_INPUTS = 8192
"""Layers that read more (512 MiB of normal equations) are left as they are."""


@dataclass(frozen=True)
class LayerFit:
    """What became of one layer, named by its weight.

    ``error_before``, ``error_after``: squared error on held-out images, as a share of the target's variance, both behind the
    layer's batch norm; ``ridge``: the one that was chosen, None if the layer stays as it was because no fit did better;
    ``in_sum``: the target makes up for the shortcut's error, too; ``intercept``: the constant could be fitted along.
    """

    weight: str
    error_before: float
    error_after: float
    ridge: float | None
    points: int
    in_sum: bool
    intercept: bool


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
    the running mean of the batch norm that follows alone; where there is neither there is no intercept, and the report says so.

    Departures: the ridge pulls to the weights as they are, so that what the data don't tell stays (the released code has none),
    it is chosen on held-out images (one in five), and a layer that no fit improves there stays as it was. Layers whose inputs
    lost no channel are refitted, too, if what they read has changed.

    Args:
        small: what `prunus.remove` gave, changed in place. Layers in front of a batch norm are fitted to its statistics as they
            are: recalibrating them afterwards undoes part of it (ResNet-20 on CIFAR-10 at half the MACs: 78 -> 75 %).
        full: the network before; untouched.
        record: the record of the surgery that leads from ``full`` to ``small``.
        data: batches ``(inputs, targets)`` or inputs alone, gone through once for every layer: a loader or a list.
        points: points drawn from every image's output map (the paper: 10 on 5,000 images).
        ridge: None: chosen for every layer; a share of the mean diagonal of the normal equations; 0: plain least squares, with
            `FALLBACK_RIDGE` where that is ill-conditioned. With a number every layer is refitted on all images.
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
    fits: list[LayerFit] = []
    with _restored_on_failure(small):
        for site in chosen:
            fits.append(refit_layer(small, full, site, record, run, points=points, ridge=ridge, seed=seed))
            if on_layer is not None:
                on_layer(fits[-1])
    return ReconstructionReport(tuple(fits), not_fitted)


def _check_networks(small: nn.Module, full: nn.Module, record: SurgeryRecord, sites: Mapping[str, Site]) -> None:
    """Refuse networks that the record doesn't lead from and to."""
    now, before = dict(named_tensors(small)), dict(named_tensors(full))
    kept = record.kept
    for name in sites:
        expected = tuple(before[name].shape) if name in before else None
        for axis, index in kept.get(name, {}).items():
            if expected is not None and axis < len(expected):
                expected = (*expected[:axis], len(index), *expected[axis + 1 :])
        if expected != tuple(now[name].shape):
            raise UnsupportedNetwork(
                f"`{name}` is {tuple(now[name].shape)} in the small network, and the record leads from the full one to "
                f"{expected}: give the network before surgery, what surgery made of it, and its record"
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


@torch.no_grad()
def refit_layer(
    small: nn.Module,
    full: nn.Module,
    site: Site,
    record: SurgeryRecord,
    run: DataRun,
    *,
    points: int = POINTS_PER_IMAGE,
    ridge: float | None = None,
    seed: int = 0,
) -> LayerFit:
    """`reconstruct` for one layer, in place."""
    fitting, held = gather(small, full, site, record, run, points, seed)
    tensors = dict(named_tensors(small))
    weight = _as_matrix(tensors[site.weight], site)
    bias = tensors[site.bias].double() if site.bias is not None else weight.new_zeros(len(tensors[site.weight]))
    bias = bias.reshape(weight.shape[:2])
    fixed = None if site.layer.outlets else bias
    importance = site.affine(tensors)[0].reshape(weight.shape[:2]) ** 2
    total = float((importance * held.spread()).sum())
    before = float((importance * held.errors(weight, bias)).sum())
    found: Solution | None = None
    after = before
    if before > EXACT * total:
        for trial in RIDGES if ridge is None else (ridge,):
            solution = fitting.solve(weight, trial, fixed)
            error = float((importance * held.errors(solution.weight, solution.intercept)).sum())
            if error < after or ridge is not None:
                found, after = solution, error
    if found is not None:
        found = fitting.plus(held).solve(weight, found.ridge, fixed)
        _store(tensors, site, found, bias, importance > 0)
    scale = total if total > 0 else 1.0
    ridge_used = None if found is None else found.ridge
    return LayerFit(
        site.weight, before / scale, after / scale, ridge_used, fitting.points + held.points, site.in_sum, fixed is None
    )


def gather(
    small: nn.Module, full: nn.Module, site: Site, record: SurgeryRecord, run: DataRun, points: int, seed: int
) -> tuple[NormalEquations, NormalEquations]:
    """Normal equations of the images to fit on and of those held out."""
    weight = dict(named_tensors(small))[site.weight]
    groups = int(site.layer.calls[0].settings.get("groups", 1))
    shape = (groups, weight[0].numel(), len(weight) // groups)
    fitting, held = (NormalEquations(*shape, weight.device) for _ in range(2))
    for sample in samples(small, full, site, run, points, seed):
        x = sample.x.double().reshape(len(sample.x), groups, shape[1])
        y = target(small, full, site, record, sample).reshape(len(x), groups, shape[2])
        if not bool(torch.isfinite(x).all() & torch.isfinite(y).all()):
            raise EvidenceError(f"what `{site.weight}` reads or gives isn't finite on a batch: check the data and the weights")
        is_held = (sample.images % HELD_OUT == HELD_OUT - 1).to(x.device)
        fitting.add(x[~is_held], y[~is_held])
        held.add(x[is_held], y[is_held])
    if held.points == 0:
        raise EvidenceError(
            f"the data hold fewer than {HELD_OUT} images, of which one is held out: reconstruction needs hundreds"
        )
    return fitting, held


def target(small: nn.Module, full: nn.Module, site: Site, record: SurgeryRecord, sample: Sample) -> Tensor:
    """What the layer should give in the small network, so that behind norm and sum it is as in the full: (points, outputs)."""
    kept = record.kept.get(site.weight, {}).get(0)
    scale, shift = site.affine(dict(named_tensors(small)))
    scale_before, shift_before = site.affine(dict(named_tensors(full)))
    wanted = sample.y.double() * scale_before + shift_before
    if sample.shortcut_before is not None:
        wanted = wanted + sample.shortcut_before.double()
    wanted = wanted if kept is None else wanted[:, kept.to(wanted.device)]
    if sample.shortcut is not None:
        wanted = wanted - sample.shortcut.double()
    closed = scale == 0  # whatever the layer gives there, the norm emits its shift
    return torch.where(closed, 0.0, (wanted - shift) / torch.where(closed, 1.0, scale))


def _as_matrix(weight: Tensor, site: Site) -> Tensor:
    """A weight as (groups, outputs, inputs), float64."""
    groups = int(site.layer.calls[0].settings.get("groups", 1))
    return weight.detach().double().reshape(groups, len(weight) // groups, -1)


@torch.no_grad()
def _store(tensors: Mapping[str, Tensor], site: Site, found: Solution, bias: Tensor, open_outputs: Tensor) -> None:
    """Put the solution into the network, but for outputs that a norm of scale zero hides."""
    weight = tensors[site.weight]
    now = _as_matrix(weight, site)
    weight.copy_(torch.where(open_outputs.unsqueeze(2), found.weight, now).reshape(weight.shape))
    change = torch.where(open_outputs, found.intercept - bias, 0.0).reshape(-1)
    for outlet in site.layer.outlets:
        vector = tensors[outlet.parameter]
        vector.copy_(vector.double() + outlet.sign * change)


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
