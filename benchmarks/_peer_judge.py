"""Is a network that another tool pruned exact? Judged by its numbers alone, without the tool's own records.

All values of a weight are unlike, so that the survivors of every weight are found by value. What was removed from the inputs of a
layer is set to zero in the original, and both networks must give the same outputs in float64. Norms over channels change with
the channels that they see: where the first comparison fails, a second one lets the original's norms (and standardised
weights) see the surviving channels only, which is "exact up to norms". A network whose channels mix in yet another way, and
that fails both, isn't judged.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from _coverage_networks import Case
from torch import Tensor, nn

from prunus.surgery import randomise, verify
from prunus.types import call_model

TOLERANCE = 1e-6
MOST_UNLIKE = 4_000_000
"""float32 holds this many magnitudes in [0.5, 1.5] that stay unlike when they are scaled."""


def with_unlike_values(model: nn.Module) -> nn.Module:
    """A copy with random parameters and buffers away from zero (see `prunus.surgery.randomise`), no two alike in one tensor."""
    twin = randomise(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.is_floating_point() and 1 < parameter.numel() <= MOST_UNLIKE:
                order = torch.randperm(parameter.numel(), generator=generator).double().view(parameter.shape)
                magnitude = 0.5 + (order + 0.5) / parameter.numel()
                parameter.copy_(parameter.sign() * magnitude * (float(parameter.abs().max()) / 1.5))
    return twin


def judge(original: nn.Module, pruned: nn.Module, case: Case, mixes: bool) -> dict[str, Any]:
    """The verdict on a pruned network; ``mixes``: its channels meet in norms, softmaxes or the like."""
    left = sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in original.parameters())
    facts: dict[str, Any] = {"parameters_left": left}
    if left == 1:
        return facts | {"verdict": "nothing pruned"}
    try:
        with torch.no_grad():
            call_model(pruned.eval(), case.inputs, case.forward_fn)
    except Exception as error:
        return facts | {"verdict": "broken forward", "error": f"{type(error).__name__}: {error}"[:500]}
    told = ""
    for verdict, norms in (("exact", False), ("exact up to norms", True)):
        report = verify(
            silenced(original, pruned, norms=norms), pruned, case.inputs, forward_fn=case.forward_fn, tolerance=TOLERANCE
        )
        if not norms:
            facts["max_error"], told = report.max_error if math.isfinite(report.max_error) else None, report.detail
        if report.passed:
            return facts | {"verdict": verdict, "max_error": report.max_error, "detail": report.detail}
    blind = mixes or "not finite" in told
    return facts | {"verdict": "not judged" if blind else "inexact", "detail": told}


def silenced(original: nn.Module, pruned: nn.Module, norms: bool) -> nn.Module:
    """The original in which every weight that reads a removed channel is zero there.

    With ``norms``, norms over channels and standardised weights see the surviving channels only.
    """
    twin = copy.deepcopy(original)
    small = dict(pruned.named_modules())
    with torch.no_grad():
        for name, module in twin.named_modules():
            weight, other = getattr(module, "weight", None), getattr(small.get(name), "weight", None)
            if not isinstance(weight, Tensor) or not isinstance(other, Tensor) or weight.shape == other.shape:
                continue
            if weight.ndim == 1:
                if norms and _is_over_channels(module):
                    _norm_on_kept(module, small[name], survivors(weight, other))
                continue
            kept = read(weight, other, 0 if getattr(module, "transposed", False) else 1)
            if norms and "Std" in type(module).__name__ and weight.ndim == 4 and kept.all(0).equal(kept.any(0)):
                _standardise_kept(module, kept.any(0))
            else:
                weight[(~kept).reshape(*kept.shape, *[1] * (weight.ndim - 2)).expand_as(weight)] = 0
    return twin


def read(weight: Tensor, pruned: Tensor, axis: int) -> Tensor:
    """What is left of a weight's inputs, bool (first axis, second axis): filters that are gone count as whole, nobody reads them.

    ``axis`` is the one that inputs are counted on.
    """
    if weight.numel() <= MOST_UNLIKE:
        kept = survivors(weight, pruned).flatten(2).any(2) if weight.ndim > 2 else survivors(weight, pruned)
        return kept | ~kept.any(axis, keepdim=True)
    inside = survivors(weight, pruned).flatten(2).float().mean(2) if weight.ndim > 2 else survivors(weight, pruned).float()
    votes = inside.mean(1 - axis)  # chance hits are spread evenly; an input that survived has more of them
    best = votes.topk(pruned.shape[axis]).indices
    column = torch.zeros(weight.shape[axis], dtype=torch.bool)
    column[best] = True
    return column.unsqueeze(1 - axis).expand(weight.shape[:2])


def survivors(weight: Tensor, pruned: Tensor) -> Tensor:
    """Which entries of ``weight`` are among those of ``pruned``, by value: bool, the shape of ``weight``."""
    values = pruned.detach().flatten().sort().values
    places = torch.searchsorted(values, weight.detach().contiguous()).clamp(max=len(values) - 1)
    return values[places] == weight


def _is_over_channels(module: nn.Module) -> bool:
    name = type(module).__name__  # timm has its own norms, which have no class in common
    return "Norm" in name and not any(part in name for part in ("Batch", "Instance"))


def _norm_on_kept(norm: nn.Module, small: nn.Module, kept: Tensor) -> None:
    """The norm becomes the pruned one: it gets the surviving channels and gives zero elsewhere."""
    if isinstance(norm, nn.GroupNorm):
        groups = kept.view(norm.num_groups, -1).sum(1)
        if len(set(groups.tolist())) > 1 or getattr(small, "num_groups", None) != norm.num_groups:
            return  # other channels would share a group: the original has no such norm
    first = isinstance(norm, nn.GroupNorm) or "2d" in type(norm).__name__ or getattr(norm, "channel_dim", -1) == 1
    index = kept.nonzero().flatten()

    def choose(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].index_select(1 if first else -1, index), *inputs[1:])

    def spread(_: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        shape = list(out.shape)
        shape[1 if first else -1] = len(kept)
        return out.new_zeros(shape).index_copy(1 if first else out.ndim - 1, index, out)

    norm.__dict__ = copy.deepcopy(small.__dict__)
    norm.register_forward_pre_hook(choose)
    norm.register_forward_hook(spread)


def _standardise_kept(conv: nn.Module, kept: Tensor) -> None:
    """A convolution that standardises its weight gets the surviving inputs only."""
    index = kept.nonzero().flatten()
    choose: Callable[..., tuple[Any, ...]] = lambda _, inputs: (inputs[0].index_select(1, index), *inputs[1:])  # noqa: E731
    conv.weight = nn.Parameter(conv.weight[:, index])  # pyright: ignore
    conv.in_channels = len(index)  # pyright: ignore[reportAttributeAccessIssue]
    conv.register_forward_pre_hook(choose)
