"""What a masked network starts from (Zhou et al. 2019): actions on weights that stay (mask-1) and on those that go (mask-0)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from prunus.errors import EvidenceError, UnknownName
from prunus.tickets.criteria import WeightHistory

_KeptAction: TypeAlias = Callable[["KeptWeights", torch.Generator], Tensor]
KEEP_SIGN = "_keep_sign"


@dataclass(frozen=True, eq=False)
class KeptWeights:
    """One parameter for a mask-1 action: where the mask is, its initial values, and (for ``reinit``) a fresh draw of them."""

    mask: Tensor
    initial: Tensor
    fresh: Tensor | None = None


def _reinit(kept: KeptWeights, _: torch.Generator) -> Tensor:
    if kept.fresh is None:
        raise EvidenceError("reinit takes fresh weights: give those of a network initialised with another seed (fresh=...)")
    return kept.fresh


def _permuted(kept: KeptWeights, generator: torch.Generator) -> Tensor:
    flat = kept.initial.reshape(-1)
    return flat[torch.randperm(len(flat), generator=generator).to(flat.device)].reshape(kept.initial.shape)


def _reshuffle(kept: KeptWeights, generator: torch.Generator) -> Tensor:
    values = kept.initial[kept.mask]
    found = kept.initial.clone()
    found[kept.mask] = values[torch.randperm(len(values), generator=generator).to(values.device)]
    return found


def _constant(kept: KeptWeights, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(kept.initial.shape, generator=generator).to(kept.initial.device)
    size = kept.initial.std(correction=0)
    return torch.where(drawn < 0.5, -size, size)


KEPT_ACTIONS: dict[str, tuple[str, _KeptAction]] = {
    "rewind": ("back to the initial values", lambda kept, _: kept.initial),
    "reinit": ("a fresh draw from the initialiser", _reinit),
    "permute": ("the layer's initial values in a random order (called reinit in the original code)", _permuted),
    "reshuffle": ("the kept weights' initial values in a random order among themselves", _reshuffle),
    "constant": ("plus or minus the standard deviation of the layer's initial values", _constant),
}
"""Mask-1 actions by name; each but ``rewind`` also with ``_keep_sign`` behind it: its magnitudes with the initial signs."""


def start_kept(action: str, kept: KeptWeights, generator: torch.Generator) -> Tensor:
    """Starting values of one parameter's kept weights: the parameter's shape; what stands at pruned places has no meaning.

    Raises:
        UnknownName: no such action.
        EvidenceError: ``reinit`` without fresh weights.
    """
    known = [*KEPT_ACTIONS, *(f"{name}{KEEP_SIGN}" for name in KEPT_ACTIONS if name != "rewind")]
    if action not in known:
        raise UnknownName.among("mask-1 action", action, known)
    found = KEPT_ACTIONS[action.removesuffix(KEEP_SIGN)][1](kept, generator)
    return found.abs() * kept.initial.sign() if action.endswith(KEEP_SIGN) else found


PRUNED_ACTIONS: dict[str, str] = {
    "zero": "zero",
    "freeze": "frozen at the initial value",
    "freeze_grown": "frozen at the initial value where training made it larger, else zero",
    "freeze_random": "frozen at the initial value for as many as grew, drawn at random, else zero: the control of freeze_grown",
    "freeze_shrunk": "the reverse of freeze_grown: frozen at the initial value where training made it smaller, else zero",
    "freeze_grown_all": "as freeze_grown, and kept weights that shrank start at zero, too",
}
"""Mask-0 actions by name. Zhou et al. 2019: weights that training moves towards zero are better off at zero at once."""


def start_pruned(action: str, mask: Tensor, history: WeightHistory, generator: torch.Generator) -> Tensor:
    """The value that each pruned weight is held at: the parameter's shape, zero at kept places.

    Raises:
        UnknownName: no such action.
    """
    if action not in PRUNED_ACTIONS:
        raise UnknownName.among("mask-0 action", action, PRUNED_ACTIONS)
    initial, grown = history.initial, history.final.abs() > history.initial.abs()
    if action == "zero":
        stays = torch.zeros_like(mask)
    elif action == "freeze":
        stays = torch.ones_like(mask)
    elif action == "freeze_shrunk":
        stays = ~grown
    elif action == "freeze_random":
        stays = _as_many(~mask, int((grown & ~mask).sum()), generator)
    else:
        stays = grown
    return torch.where(stays & ~mask, initial, torch.zeros_like(initial))


def _as_many(places: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """``number`` of the places that are True, drawn."""
    found = torch.zeros_like(places)
    at = places.nonzero()
    chosen = at[torch.randperm(len(at), generator=generator)[:number].to(at.device)]
    found[tuple(chosen.T)] = True
    return found


def start(
    masks: Mapping[str, Tensor],
    history: Mapping[str, WeightHistory],
    kept: str,
    pruned: str,
    generator: torch.Generator,
    fresh: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Starting values of all masked parameters, and what their pruned weights are held at (see `apply_masks`), by name.

    ``kept`` is a mask-1 action, ``pruned`` a mask-0 action; ``fresh``: values of a network initialised with another seed.
    """
    values: dict[str, Tensor] = {}
    held: dict[str, Tensor] = {}
    for name, mask in masks.items():
        one = history[name]
        values[name] = start_kept(kept, KeptWeights(mask, one.initial, None if fresh is None else fresh[name]), generator)
        if pruned == "freeze_grown_all":
            shrunk = one.final.abs() <= one.initial.abs()
            values[name] = torch.where(shrunk, torch.zeros_like(values[name]), values[name])
        held[name] = start_pruned(pruned, mask, one, generator)
        values[name] = torch.where(mask, values[name], held[name])
    return values, held
