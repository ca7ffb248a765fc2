"""What a criterion takes for granted, checked on the network at hand: a sentence for the user where it doesn't hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LITTLE_SPREAD = 0.01
FAR_FROM_ZERO = 0.98
FEW_CHANNELS = 8
"""Groups with fewer channels are passed over: their spread says little."""
NEAR_ZERO = 0.1
ENOUGH_NEAR_ZERO = 0.01


def norms_tell_apart(scores: Mapping[str, Tensor]) -> str | None:
    """Doubt where most layers' norms break one of two conditions (He et al., FPGM, CVPR 2019): they spread, down to near zero.

    The bounds only catch what is plain (a standard deviation under 1 % of the mean, a smallest norm above 98 % of it), such as
    standardised or normalised weights and wide layers at random.
    """
    looked_at = [values.double() for values in scores.values() if len(values) >= FEW_CHANNELS and float(values.mean()) > 0]
    if not looked_at:
        return None
    spreads = torch.stack([values.std() / values.mean() for values in looked_at])
    smallest = torch.stack([values.min() / values.mean() for values in looked_at])
    same, far = int((spreads < LITTLE_SPREAD).sum()), int((smallest > FAR_FROM_ZERO).sum())
    if 2 * max(same, far) <= len(looked_at):
        return None
    return (
        f"filters' norms hardly differ: in {same} of {len(looked_at)} groups their standard deviation is below 1 % of the mean, "
        f"in {far} the smallest is above 98 % of it, so they say little about importance; fpgm or taylor don't rest on norms"
    )


def gammas_were_penalised(scores: Mapping[str, Tensor]) -> str | None:
    """Doubt where hardly any gamma of the whole network is near zero: it wasn't trained with a penalty on them."""
    gammas = torch.cat([values.double() for values in scores.values()])
    large = float(gammas.quantile(0.9))
    near = float((gammas <= NEAR_ZERO * large).double().mean())
    if near >= ENOUGH_NEAR_ZERO:
        return None
    return (
        f"{near:.1%} of {len(gammas)} gammas are below a tenth of the large ones ({large:.2g}), so the network seems not to have "
        "been trained with a sparsity penalty on gamma, which this criterion is made for: train with one, or use taylor"
    )
