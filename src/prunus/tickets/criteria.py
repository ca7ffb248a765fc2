"""What decides which weights stay: the mask criteria of Zhou et al. 2019, as one table of pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.errors import EvidenceError, UnknownName


@dataclass(frozen=True, eq=False)
class WeightHistory:
    """What is known of one parameter: its values at the start and at the end of training, and the first step's gradient."""

    initial: Tensor
    final: Tensor
    gradient: Tensor | None = None

    @property
    def first_gradient(self) -> Tensor:
        """The gradient of the first step, in place; `EvidenceError` where it wasn't stored."""
        if self.gradient is None:
            raise EvidenceError("this criterion needs the gradient of the first training step, and none was stored")
        return self.gradient


@dataclass(frozen=True)
class MaskCriterion:
    """A row of `MASK_CRITERIA`: ``score(history, generator)`` has the parameter's shape, higher = keep."""

    name: str
    summary: str
    score: Callable[[WeightHistory, torch.Generator], Tensor]


def _random(history: WeightHistory, generator: torch.Generator) -> Tensor:
    return torch.rand(history.initial.shape, generator=generator).to(history.initial.device)


_BASE = (
    MaskCriterion("large_final", "large at the end: abs(w_f)", lambda h, _: h.final.abs()),
    MaskCriterion("small_final", "small at the end: -abs(w_f)", lambda h, _: -h.final.abs()),
    MaskCriterion("large_init", "large at the start: abs(w_i)", lambda h, _: h.initial.abs()),
    MaskCriterion("small_init", "small at the start: -abs(w_i)", lambda h, _: -h.initial.abs()),
    MaskCriterion(
        "large_init_large_final",
        "large at both ends: above one threshold at both, which is min(abs(w_i), abs(w_f))",
        lambda h, _: torch.minimum(h.initial.abs(), h.final.abs()),
    ),
    MaskCriterion(
        "small_init_small_final",
        "small at both ends: below one threshold at both, which is -max(abs(w_i), abs(w_f))",
        lambda h, _: -torch.maximum(h.initial.abs(), h.final.abs()),
    ),
    MaskCriterion("magnitude_increase", "grown in magnitude: abs(w_f) - abs(w_i)", lambda h, _: h.final.abs() - h.initial.abs()),
    MaskCriterion("movement", "moved far: abs(w_f - w_i)", lambda h, _: (h.final - h.initial).abs()),
    MaskCriterion(
        "snip",
        "first-order effect on the loss before training: abs(g_1 * w_i)",
        lambda h, _: (h.first_gradient * h.initial).abs(),
    ),
    MaskCriterion("grad", "large gradient before training: abs(g_1)", lambda h, _: h.first_gradient.abs()),
    MaskCriterion("random", "the control: drawn uniformly", _random),
)
_UNSIGNED = ("snip", "grad", "random")


def _with_sign(base: MaskCriterion, same: bool) -> MaskCriterion:
    def score(history: WeightHistory, generator: torch.Generator) -> Tensor:
        scores = base.score(history, generator)
        agrees = history.initial.sign() == history.final.sign()
        return torch.where(agrees == same, scores, torch.full_like(scores, -torch.inf))

    kept, kind = ("kept its sign", "same") if same else ("changed its sign", "diff")
    return MaskCriterion(f"{base.name}_{kind}_sign", f"{base.summary}; only what {kept}", score)


MASK_CRITERIA: dict[str, MaskCriterion] = {
    row.name: row
    for row in (
        *_BASE,
        *(_with_sign(row, same) for row in _BASE if row.name not in _UNSIGNED for same in (True, False)),
    )
}
"""Criteria by name. ``w_i``, ``w_f``: a weight at the start and at the end of training, ``g_1``: its first gradient.

Zhou et al., Deconstructing Lottery Tickets, NeurIPS 2019. The joint criteria (``large_init_large_final``) keep what exceeds one
threshold at both ends; the original code finds it by bisection, the smaller of both values ranks the same without. With
``_same_sign`` and ``_diff_sign`` the others come last; the original code scores them 0, which is the same wherever no score
is below zero, and would prefer them to the rest where some are (``magnitude_increase``).
"""


def mask_scores(criterion: str, history: Mapping[str, WeightHistory], generator: torch.Generator) -> dict[str, Tensor]:
    """Scores of every parameter by a criterion of `MASK_CRITERIA`, higher = keep; for `keep_highest`.

    Raises:
        UnknownName: there is no such criterion.
        EvidenceError: it needs gradients that weren't stored.
    """
    if criterion not in MASK_CRITERIA:
        raise UnknownName.among("mask criterion", criterion, MASK_CRITERIA)
    row = MASK_CRITERIA[criterion]
    return {name: row.score(one, generator) for name, one in history.items()}
