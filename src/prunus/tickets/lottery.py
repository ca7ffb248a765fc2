"""Lottery tickets (Frankle and Carbin 2019): how many weights each round keeps, rewinding, and the controls."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import RecipeError, UnknownName
from prunus.tickets.actions import KeptWeights, start_kept
from prunus.tickets.masks import Masks, keep_highest

CONTROLS: dict[str, str] = {
    "ticket": "the mask that training found, weights rewound",
    "reinit": "the same mask, weights drawn afresh",
    "reshuffled": "the same mask, the kept weights' rewound values in a random order within their layer",
    "random_mask": "as many weights in every layer, but drawn at random, rewound",
}
"""What is trained at every sparsity. The last three are controls: were they as good, the ticket would be nothing special."""
SLACK = 1e-9
"""Products such as 10 * (1 - 0.9) are a little less than what is meant (0.9999...): added before a number is cut."""


def kept_after(total: int, rate: float, rounds: int) -> int:
    """Weights that stay of ``total`` when every round prunes a share ``rate`` of those left: total * (1 - rate)^rounds, rounded.

    Computed from the total, not from round to round, so that rounding errors don't add up: the sparsity after r rounds is
    1 - (1 - rate)^r to the weight (20 % in 3 rounds: 48.8 % of 1,000 weights are gone, 512 stay).
    """
    return math.floor(total * (1 - rate) ** rounds + 0.5 + SLACK)


def round_counts(dense: Masks, rates: float | Mapping[str, float], rounds: int, scope: str = "layer") -> int | dict[str, int]:
    """What `keep_highest` is to keep after ``rounds`` rounds: one number (scope ``global``) or one for each layer (``layer``).

    ``rates`` is the share that every round prunes, or by name of the parameter or glob: the first that fits counts
    (``{"4.weight": 0.1, "*": 0.2}``: the last layer half as fast). One-shot pruning is the same numbers, taken at once.

    Raises:
        RecipeError: a rate outside 0..1, an unknown scope, rates by layer with scope ``global``, a layer without a rate.
    """
    if scope not in ("layer", "global"):
        raise UnknownName.among("scope", scope, ("layer", "global"))
    if scope == "global":
        if isinstance(rates, Mapping):
            raise RecipeError("with scope global all layers are ranked together: give one rate, not one for each layer")
        return kept_after(dense.total, _checked(rates), rounds)
    return {name: kept_after(mask.numel(), _rate(rates, name), rounds) for name, mask in dense.by_name.items()}


def _rate(rates: float | Mapping[str, float], name: str) -> float:
    if not isinstance(rates, Mapping):
        return _checked(rates)
    for pattern, rate in rates.items():
        if fnmatchcase(name, pattern):
            return _checked(rate)
    raise RecipeError(f'no rate for `{name}`: add one, e.g. "*" = 0.2 (given: {", ".join(rates)})')


def _checked(rate: float) -> float:
    if not 0 < rate < 1:
        raise RecipeError(f"a round can't prune a share of {rate}: rates lie between 0 and 1")
    return rate


def next_round(masks: Masks, trained: Mapping[str, Tensor], count: int | Mapping[str, int]) -> Masks:
    """The next round's masks: of the weights left, the ``count`` of largest magnitude after training. Nested in ``masks``."""
    return keep_highest({name: trained[name].detach().abs() for name in masks.by_name}, masks, count)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that training had at a step: the network's weights and buffers (batch norm's, too), the optimizer's state.

    ``step`` is the number of steps taken. Rewinding puts all of it back; what trains on must take up learning rate and order of
    the data at ``step`` as well.
    """

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    step: int

    @classmethod
    def of(cls, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Snapshot:
        """A copy that later steps don't touch."""
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        return cls(state, copy.deepcopy(optimizer.state_dict()), step)

    def rewind(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
        """Put it back into a network and its optimizer; returns the step to go on with."""
        model.load_state_dict(dict(self.model))
        if optimizer is not None:
            optimizer.load_state_dict(copy.deepcopy(dict(self.optimizer)))
        return self.step


def control_start(
    control: str, masks: Masks, rewound: Mapping[str, Tensor], fresh: Mapping[str, Tensor], generator: torch.Generator
) -> tuple[Masks, dict[str, Tensor]]:
    """Masks and starting values of all masked parameters for one of `CONTROLS`.

    ``rewound``: the values that a ticket starts from; ``fresh``: those of a network initialised with another seed.
    """
    if control not in CONTROLS:
        raise UnknownName.among("control", control, CONTROLS)
    if control == "random_mask":
        masks = random_masks(masks, generator)
    action = {"reinit": "reinit", "reshuffled": "reshuffle"}.get(control, "rewind")
    return masks, {
        name: start_kept(action, KeptWeights(mask, rewound[name], fresh[name]), generator) for name, mask in masks.by_name.items()
    }


def random_masks(masks: Masks, generator: torch.Generator) -> Masks:
    """Masks of the same counts in every parameter, at places drawn uniformly."""
    whole = Masks({name: torch.ones_like(mask) for name, mask in masks.by_name.items()})
    scores = {name: torch.rand(mask.shape, generator=generator).to(mask.device) for name, mask in masks.by_name.items()}
    return keep_highest(scores, whole, masks.counts())


def sign_agreement(masks: Masks, start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> float:
    """Share of the weights that stay whose sign at the end is that at the start, 0..1 (0.5: no better than chance)."""
    same = sum(int((start[n].sign() == end[n].sign())[mask].sum()) for n, mask in masks.by_name.items())
    return same / masks.kept if masks.kept else 1.0
