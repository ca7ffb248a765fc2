"""One layer of a pruned network refitted to what it gave in the original: gather, solve, judge on held-out images, store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.errors import EvidenceError
from prunus.graph.labels import named_tensors
from prunus.reconstruction.behind_relu import MOST_BYTES, ReluProblem, refine
from prunus.reconstruction.layer_samples import Sample, samples
from prunus.reconstruction.layer_sites import Site
from prunus.reconstruction.normal_equations import NormalEquations, Solution
from prunus.reconstruction.original import Original
from prunus.reconstruction.paused_passes import PausedPasses
from prunus.surgery import SurgeryRecord

POINTS_PER_IMAGE = 10
HELD_OUT = 5
"""One image in so many is held out: on those the ridge is chosen and errors are measured."""
RIDGES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, as shares of the mean diagonal of the normal equations."""
EXACT = 1e-10
"""A layer whose squared error is below this share of its outputs' variance has nothing to recover."""


@dataclass(frozen=True)
class LayerFit:
    """What became of one layer, named by its weight.

    ``error_before``, ``error_after``: squared error on held-out images, as a share of the target's variance, both behind the
    layer's batch norm; ``ridge``: the one that was chosen, None if the layer stays as it was because no fit did better;
    ``in_sum``: the target makes up for the shortcut's error, too; ``intercept``: the constant could be fitted along;
    ``behind_relu``: it was fitted and its errors are measured behind the ReLU.
    """

    weight: str
    error_before: float
    error_after: float
    ridge: float | None
    points: int
    in_sum: bool
    intercept: bool
    behind_relu: bool = False


def original_of(record: SurgeryRecord, weight: str) -> str:
    """The weight in the original network whose outputs this one's are: its own name, or the layer's that its row stands for."""
    for edit in record.replacements:
        if weight == f"{edit.module}.{len(edit.layers) - 1}.weight":
            return f"{edit.module}.weight"
    return weight


def outputs_kept(record: SurgeryRecord, weight: str) -> Tensor | None:
    """Which of the original's outputs a weight of the small network still gives (int64), or None for all."""
    kept = record.kept
    found = [kept[name][0] for name in dict.fromkeys((original_of(record, weight), weight)) if 0 in kept.get(name, {})]
    return None if not found else found[0] if len(found) == 1 else found[0][found[1]]


@torch.no_grad()
def refit_layer(
    small: nn.Module,
    original: Original,
    site: Site,
    record: SurgeryRecord,
    *,
    ridge: float | None = None,
    behind_relu: bool = False,
    passes: PausedPasses | None = None,
) -> LayerFit:
    """`reconstruct` for one layer, in place."""
    fitting, held = gather(small, original, site, record, passes)
    tensors = dict(named_tensors(small))
    weight = _as_matrix(tensors[site.weight], site)
    bias = tensors[site.bias].double() if site.bias is not None else weight.new_zeros(len(tensors[site.weight]))
    now = Solution(weight, bias.reshape(weight.shape[:2]), 0.0)
    fixed = None if site.layer.outlets else now.intercept
    importance = site.affine(tensors, bias.numel())[0].reshape(weight.shape[:2]) ** 2
    trials = RIDGES if ridge is None else (ridge,)
    found, before, after = _best(fitting, held, now, fixed, importance, trials, forced=ridge is not None)
    if behind_relu and site.relu and before > EXACT:
        problem, is_held = _held_points(small, original, site, record, passes)
        start = found if found is not None else fitting.plus(held).solve(weight, RIDGES[1], fixed)
        trial = refine(problem.part(~is_held), start, fixed)
        seen = problem.part(is_held)
        spread = max(seen.spread(), 1e-300)
        errors = [seen.error(solution) / spread for solution in (now, found or now, trial)]
        before, after = errors[0], min(errors)
        found = found if errors[2] >= min(errors[:2]) else refine(problem, start, fixed)
    if found is not None:
        _store(tensors, site, found, now.intercept, importance > 0)
    total = fitting.points + held.points
    is_behind = behind_relu and site.relu and before > EXACT
    used = None if found is None else found.ridge
    return LayerFit(site.weight, before, after, used, total, site.in_sum, fixed is None, is_behind)


def _best(
    fitting: NormalEquations,
    held: NormalEquations,
    now: Solution,
    fixed: Tensor | None,
    importance: Tensor,
    ridges: tuple[float, ...],
    forced: bool,
) -> tuple[Solution | None, float, float]:
    """The best solution on held-out points, refitted on all; None where none beats the present one (unless ``forced``) or that is
    exact; and the errors of both."""
    total = float((importance * held.spread()).sum())
    scale = total if total > 0 else 1.0
    before = float((importance * held.errors(now.weight, now.intercept)).sum()) / scale
    after, best = before, None
    for solution in fitting.solutions(now.weight, ridges, fixed) if before > EXACT else ():
        error = float((importance * held.errors(solution.weight, solution.intercept)).sum()) / scale
        if error < after or forced:
            best, after = solution, error
    return None if best is None else fitting.plus(held).solve(now.weight, best.ridge, fixed), before, after


def _held_points(
    small: nn.Module, original: Original, site: Site, record: SurgeryRecord, passes: PausedPasses | None
) -> tuple[ReluProblem, Tensor]:
    """The first points of the layer, as many as `MOST_BYTES` hold, and which of them are of held-out images."""
    tensors = dict(named_tensors(small))
    weight = _as_matrix(tensors[site.weight], site)
    groups, outputs, inputs = weight.shape
    scale, shift = site.affine(tensors, groups * outputs)
    most = max(MOST_BYTES // (8 * groups * inputs), 1)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for sample in samples(small, original, site, original_of(record, site.weight), passes):
        x = sample.x.double().reshape(len(sample.x), groups, inputs)
        offset = shift + (0.0 if sample.shortcut is None else sample.shortcut.double())
        wanted = (target(small, original.model, site, record, sample) * scale + offset).clamp_min(0)
        is_held = sample.images % HELD_OUT == HELD_OUT - 1
        parts.append((x, wanted, offset.expand_as(wanted), is_held.to(x.device)))
        if sum(len(part[0]) for part in parts) >= most:
            break
    x, wanted, offset, is_held = (torch.cat([part[i] for part in parts]) for i in range(4))
    shape = (-1, groups, outputs)
    return ReluProblem(x, wanted.reshape(shape), offset.reshape(shape), scale.reshape(groups, outputs)), is_held


def gather(
    small: nn.Module, original: Original, site: Site, record: SurgeryRecord, passes: PausedPasses | None = None
) -> tuple[NormalEquations, NormalEquations]:
    """Normal equations of the images to fit on and of those held out."""
    weight = dict(named_tensors(small))[site.weight]
    groups = int(site.layer.calls[0].settings.get("groups", 1))
    shape = (groups, weight[0].numel(), len(weight) // groups)
    fitting, held = (NormalEquations(*shape, weight.device) for _ in range(2))
    for sample in samples(small, original, site, original_of(record, site.weight), passes):
        x = sample.x.double().reshape(len(sample.x), groups, shape[1])
        y = target(small, original.model, site, record, sample).reshape(len(x), groups, shape[2])
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
    kept = outputs_kept(record, site.weight)
    scale, shift = site.affine(dict(named_tensors(small)), sample.y.shape[1] if kept is None else len(kept))
    scale_before, shift_before = site.affine(dict(named_tensors(full)), sample.y.shape[1])
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
