"""Convolutions replaced by rows of cheaper ones: spatial factors, low-rank responses, both, or CP factors."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import BudgetNotMet, InvalidBudget, NothingPruned, VerificationFailed
from prunus.graph import trace
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun, to_device
from prunus.reconstruction.factorable import candidates_of, factorable_layers
from prunus.reconstruction.factors import (
    Row,
    channel_factors,
    merged,
    product,
    reduced_rank,
    relu_reduced_rank,
    run_layer,
    run_row,
    spatial_factors,
)
from prunus.reconstruction.layer_fit import POINTS_PER_IMAGE, refit_layer, target
from prunus.reconstruction.layer_samples import check_repeatable, samples
from prunus.reconstruction.layer_sites import Site, find_sites
from prunus.reconstruction.normal_equations import NormalEquations
from prunus.reconstruction.original import Original
from prunus.reconstruction.polyadic import cp_factors
from prunus.reconstruction.ranks import Candidate, Ranks, choose_ranks
from prunus.surgery import SurgeryRecord
from prunus.surgery.replaced import LayerShape, ReplaceEdit
from prunus.types import Budget, ForwardFn, PruningPlan

MOST_POINTS = 8192
"""So many points are held for a solver that looks behind the ReLU: it goes over them again and again."""
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Factorisation:
    """The network with rows in place of layers, the record by which `prunus.load` builds it, and multiply-adds of one input.

    ``rows``: layer -> the shapes in its place; ``not_factorised``: layer -> why it can't be; layers in neither are cheaper as
    they are. ``plan``: the channels that were pruned behind, for `three_c`.
    """

    model: nn.Module
    record: SurgeryRecord
    rows: Mapping[str, tuple[LayerShape, ...]]
    not_factorised: Mapping[str, str]
    macs_before: int
    macs: int
    plan: PruningPlan | None = None


def factorize(
    model: nn.Module,
    data: Iterable[Any],
    budget: Budget,
    *,
    spatial: bool = True,
    channels: bool = True,
    cp: bool = False,
    keep: Iterable[str] = (),
    relu_aware: bool = True,
    forward_fn: ForwardFn | None = None,
    batches: int | None = None,
    points: int = POINTS_PER_IMAGE,
    seed: int = 0,
) -> Factorisation:
    """Replace convolutions by rows of cheaper ones; ``model`` is untouched.

    ``spatial``: k x k becomes k x 1 and 1 x k (Jaderberg et al., BMVC 2014). ``channels``: fewer outputs and a pointwise layer
    that makes all of them from those (Zhang et al. 2015). ``cp``: a pointwise layer, a depthwise one of the layer's kernel, a
    pointwise one (Lebedev et al. 2015; see `prunus.reconstruction.polyadic.cp_factors`): at equal multiply-adds nearest to the
    layer (ADR 18), but depthwise layers are slow for their multiply-adds on most machines, and finding the factors takes seconds
    for a layer of 64 channels, minutes for one of 256. Ranks are chosen for all layers together, and of the ways that are on, one
    for each layer: the largest product of what they keep of each layer's energy within the budget. Layers are solved from front
    to back on what the factorised network gives there, for what the original gave; ``relu_aware``: for what it gave behind the
    ReLU, where there is one. Where only spatial or CP factors are made, the last one is refitted by least squares. Neighbours are
    merged where that saves multiply-adds.

    Args:
        data: batches ``(inputs, targets)`` or inputs alone: a loader or a list.
        budget: of ``macs`` alone.
        keep: layers, or globs over them, that stay as they are.

    Raises:
        InvalidBudget: a budget of anything but multiply-adds.
        NothingPruned: no layer can be factorised, or the network meets the budget already.
        BudgetNotMet: ranks of one cost more.
        VerificationFailed: a row isn't the product of its factors.
        EvidenceError: the data can be gone through once only, or ``cp`` without tensorly.
    """
    run = DataRun(data, forward_fn=forward_fn, batches=batches)
    check_repeatable(run)
    example = run.inputs(to_device(next(iter(run)), model))
    sites = find_sites(model, example, forward_fn)
    shapes, refused = factorable_layers(model, sites, tuple(keep))
    if not shapes or not (spatial or channels or cp):
        raise NothingPruned("no layer can be factorised: only convolutions without groups, padded with zeros, used once, can")
    macs = trace(model, example, forward_fn=forward_fn).cost().macs
    candidates = candidates_of(model, sites, shapes, run, spatial, channels, cp, points, seed)
    ranks = _ranks(candidates, macs, budget)
    work = copy.deepcopy(model)
    edits: list[ReplaceEdit] = []
    with Original(model, run, points, seed) as original:
        original.remember({f"{layer}.weight": sites[f"{layer}.weight"] for layer in ranks})
        for layer, chosen in ranks.items():
            site = sites[f"{layer}.weight"]
            row, constant = _solved(work, original, site, shapes[layer], chosen, relu_aware)
            edits.append(ReplaceEdit(layer, tuple(shape for shape, _ in row)))
            _put(work, layer, row, constant, site)
            if chosen.channels is None:
                _refit_last(work, original, layer, edits, relu_aware)
    whole = SurgeryRecord.nothing_removed(model)
    record = SurgeryRecord(whole.fingerprint, tuple(edits), whole.versions)
    after = trace(work, example, forward_fn=forward_fn).cost().macs
    return Factorisation(work, record, {edit.module: edit.layers for edit in edits}, refused, macs, after)


def macs_limit(macs: int, budget: Budget) -> float:
    """Multiply-adds that a budget allows a network of ``macs``; `InvalidBudget` for any other target."""
    if set(budget.targets) != {"macs"}:
        raise InvalidBudget(f"ranks are chosen for a budget of macs, not of {', '.join(budget.targets)}")
    return budget.limit("macs", macs)


def _ranks(candidates: Mapping[str, Candidate], macs: int, budget: Budget) -> dict[str, Ranks]:
    """Ranks of the layers that are factorised."""
    limit = macs_limit(macs, budget)
    if limit >= macs:
        raise NothingPruned(f"the network already meets the budget ({macs:,} <= {limit:,.0f} macs): ask for less")
    others = macs - sum(candidate.macs for candidate in candidates.values())
    chosen = choose_ranks(list(candidates.values()), limit - others)
    if chosen is None:
        raise BudgetNotMet(
            f"the budget macs <= {limit:,.0f} can't be reached by factors: of {macs:,.0f} multiply-adds {others:,.0f} "
            "are in layers that can't be factorised, and ranks of one still cost too much; allow more, or prune channels as well "
            "(three_c)"
        )
    return {layer: ranks for layer, ranks in zip(candidates, chosen, strict=True) if ranks != Ranks(None, None)}


@torch.no_grad()
def _solved(
    work: nn.Module, original: Original, site: Site, shape: LayerShape, ranks: Ranks, relu_aware: bool
) -> tuple[Row, Tensor | None]:
    """The row in place of a layer, its weights float64, and the constant behind it where that is another one."""
    weight = dict(named_tensors(original.model))[site.weight].detach().double()
    row: Row = [(shape, weight)] if ranks.spatial is None else spatial_factors(shape, weight, ranks.spatial)
    if ranks.cp is not None:
        row = [(part, factor.to(weight.device)) for part, factor in cp_factors(shape, weight, ranks.cp, original.seed)]
    constant: Tensor | None = None
    if ranks.channels is not None:
        x, y, sums = _responses(work, original, site, product(row))
        basis, reading, shift = _response_map(work, site, x, y, sums, ranks.channels, relu_aware)
        row = [*row[:-1], *channel_factors(*row[-1], basis, reading)]
        constant = shift if site.layer.outlets else None
    row = merged(row)
    _check_product(row, shape, site.layer.calls[0].extent)
    return row, constant


def _responses(work: nn.Module, original: Original, site: Site, weight: Tensor) -> tuple[Tensor, Tensor, NormalEquations]:
    """What this weight gives in ``work`` now (x) and what the layer should give (y): the first points of both, and sums of all.

    Both are taken behind the layer's batch norm, whose shift is left out, and without a bias.
    """
    whole = SurgeryRecord.nothing_removed(original.model)
    outputs = len(weight)
    scale, _ = site.affine(dict(named_tensors(work)), outputs)
    sums = NormalEquations(1, outputs, outputs, weight.device)
    held: list[tuple[Tensor, Tensor]] = []
    count = 0
    for sample in samples(work, original, site, site.weight):
        x = sample.x.double().flatten(1) @ weight.flatten(1).T
        y = target(work, original.model, site, whole, sample) * scale
        sums.add(x.unsqueeze(1), y.unsqueeze(1))
        if count < MOST_POINTS:
            held.append((x, y))
            count += len(x)
    return torch.cat([x for x, _ in held])[:MOST_POINTS], torch.cat([y for _, y in held])[:MOST_POINTS], sums


def _response_map(
    work: nn.Module, site: Site, x: Tensor, y: Tensor, sums: NormalEquations, rank: int, relu_aware: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Basis, reading and shift of the low-rank map from x to y, in the units of the layer itself."""
    scale, shift = site.affine(dict(named_tensors(work)), y.shape[1])
    constant = bool(site.layer.outlets)
    if relu_aware and site.relu and not site.in_sum and constant:
        basis, reading, found = relu_reduced_rank(x, y + shift, rank)
        found = found - shift
    else:
        xx, xy = sums.centred(constant)
        basis, reading = reduced_rank(xx[0], xy[0], rank)
        found = (sums.y[0] - basis @ (reading @ sums.x[0])) / sums.points
    closed = scale == 0
    safe = torch.where(closed, 1.0, scale)
    return torch.where(closed, 0.0, 1 / safe).unsqueeze(1) * basis, reading, torch.where(closed, 0.0, found / safe)


def _check_product(row: Row, shape: LayerShape, extent: tuple[int, ...]) -> None:
    """Raise unless the layers in a row give what one layer with the product of their weights gives."""
    x = torch.randn(1, shape.inputs, *extent, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cpu = [(part, weight.cpu()) for part, weight in row]
    alone, together = run_layer(shape, product(cpu), x), run_row(cpu, x)
    error = (
        float((alone - together).abs().max() / alone.abs().max().clamp_min(1e-300)) if alone.shape == together.shape else math.inf
    )
    if not error <= _TOLERANCE:
        raise VerificationFailed(f"a row of {len(row)} layers differs from the product of its factors by {error:.1e}")


@torch.no_grad()
def _put(work: nn.Module, layer: str, row: Row, bias: Tensor | None, site: Site) -> None:
    """Put the row in the place of the layer, in place; a constant without a bias goes into the norm behind."""
    old: Any = work.get_submodule(layer)
    modules = [shape.build(old.weight) for shape, _ in row]
    for module, (_, weight) in zip(modules, row, strict=True):
        module.get_parameter("weight").copy_(weight)
    if site.bias is not None:
        modules[-1].get_parameter("bias").copy_(old.bias if bias is None else bias)
    elif bias is not None:
        tensors = dict(named_tensors(work))
        for outlet in site.layer.outlets:
            tensors[outlet.parameter] += (outlet.sign * bias).to(tensors[outlet.parameter])
    parent, _, name = layer.rpartition(".")
    setattr(work.get_submodule(parent), name, nn.Sequential(*modules).train(old.training))


def _refit_last(work: nn.Module, original: Original, layer: str, edits: list[ReplaceEdit], relu: bool) -> None:
    """Least squares for the last layer of a row, on what the row's earlier layers give now."""
    whole, run = SurgeryRecord.nothing_removed(original.model), original.run
    record = SurgeryRecord(whole.fingerprint, tuple(edits), whole.versions)
    weight = f"{layer}.{len(edits[-1].layers) - 1}.weight"
    site = find_sites(work, run.inputs(to_device(next(iter(run)), work)), run.forward_fn)[weight]
    refit_layer(work, original, site, record, behind_relu=relu)
