"""How far each layer is factorised: the ranks that keep most of all layers' energy within a budget of multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunus.reconstruction.factors import output_extent
from prunus.reconstruction.polyadic import cp_macs
from prunus.reconstruction.response_shares import Floats, Ints
from prunus.surgery.replaced import LayerShape


@dataclass(frozen=True)
class Ranks:
    """Ranks of one layer: of its spatial factors, of its responses, of its CP factors; None: not factorised in this way."""

    spatial: int | None
    channels: int | None
    cp: int | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer that may be factorised, and the share of its response's energy that each way keeps, None where it isn't to be
    factorised so. ``spatial`` and ``responses``: at ranks of 1, 2, ...; ``cp``: ranks, ascending, and their shares. All three are
    of the response, centred, with the row's last layer fitted to it: shares of a kernel's energy wouldn't compare with those of
    a response. ``extent``: of one input."""

    shape: LayerShape
    extent: tuple[int, ...]
    spatial: Floats | None
    responses: Floats | None
    cp: tuple[Ints, Floats] | None = None

    @property
    def macs(self) -> float:
        """Multiply-adds as it is."""
        return float(self.shape.num_weights * math.prod(output_extent(self.shape, self.extent)))

    def options(self) -> tuple[Floats, Floats, list[Ranks]]:
        """Every choice of ranks, the first none: multiply-adds, energy lost (-log of the share that is kept), and the ranks."""
        shape, spatial = self.shape, self.spatial
        places = math.prod(output_extent(shape, self.extent))
        widths = [None] if self.responses is None else [None, *range(1, shape.outputs)]
        kept = np.array([1.0]) if self.responses is None else np.concatenate([[1.0], self.responses[: shape.outputs - 1]])
        outs = np.array([shape.outputs if w is None else w for w in widths], dtype=np.float64)
        behind = np.array([0.0 if w is None else w * shape.outputs * places for w in widths])
        per_output = shape.num_weights / shape.outputs * places
        macs, energy = [per_output * outs + behind], [kept]
        ranks = [Ranks(None, w) for w in widths]
        if spatial is not None:
            height, width = shape.kernel_size
            rows = output_extent(shape, self.extent)[0] * self.extent[1]
            for rank, share in enumerate(spatial[:-1], start=1):
                first = rank * shape.inputs * height * rows
                macs.append(first + rank * width * places * outs + behind)
                energy.append(share * kept)
                ranks += [Ranks(rank, w) for w in widths]
        if self.cp is not None:
            macs.append(self.cp[0].astype(np.float64) * cp_macs(shape, self.extent))
            energy.append(self.cp[1])
            ranks += [Ranks(None, None, int(rank)) for rank in self.cp[0]]
        cost, lost = np.concatenate(macs), -np.log(np.concatenate(energy).clip(1e-300))
        useful = (cost < cost[0]) | (np.arange(len(cost)) == 0)
        return cost[useful], lost[useful], [r for r, u in zip(ranks, useful, strict=True) if u]


def choose_ranks(candidates: Sequence[Candidate], macs: float) -> list[Ranks] | None:
    """Ranks for every candidate that keep the largest product of the layers' energies within ``macs``; None if none do.

    Zhang et al. 2015, section 3.4 (rank selection for the whole network), with a price of a multiply-add found by bisection
    instead of the paper's greedy removal of components: every layer takes the best choice at that price.
    """
    options = [candidate.options() for candidate in candidates]

    def at(price: float) -> list[int]:
        return [int((lost + price * cost).argmin()) for cost, lost, _ in options]

    def total(chosen: list[int]) -> float:
        return sum(float(cost[i]) for (cost, _, _), i in zip(options, chosen, strict=True))

    low, high = 0.0, 1.0
    while total(at(high)) > macs:
        high *= 4
        if high > 1e12:
            return None
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if total(at(middle)) > macs else (low, middle)
    return [ranks[i] for (_, _, ranks), i in zip(options, at(high), strict=True)]
