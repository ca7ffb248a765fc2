"""Least squares of one layer from sums over the data: its normal equations, with an intercept, for every convolution group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ILL_CONDITIONED = 1e-7
"""A Cholesky factor whose diagonal spreads further than this (its square is that of the equations) isn't trusted."""
FALLBACK_RIDGE = 1e-6
"""Ridge, as a share of the mean diagonal, where equations without one are ill-conditioned."""


@dataclass(frozen=True)
class Solution:
    """Weights (groups, outputs, inputs) and intercept (groups, outputs), float64, and the ridge that was used."""

    weight: Tensor
    intercept: Tensor
    ridge: float


class NormalEquations:
    """Sums of products of a layer's inputs x (points, groups, inputs) and targets y (points, groups, outputs), in float64.

    Their size depends on the layer alone, not on how many points are added.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, device: torch.device | None = None) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.points = 0
        self.xx, self.xy = zeros(groups, inputs, inputs), zeros(groups, inputs, outputs)
        self.yy, self.x, self.y = zeros(groups, outputs), zeros(groups, inputs), zeros(groups, outputs)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add points: x (points, groups, inputs), y (points, groups, outputs)."""
        x, y = x.double().movedim(1, 0), y.double().movedim(1, 0)
        self.points += x.shape[1]
        self.xx.baddbmm_(x.mT, x)
        self.xy.baddbmm_(x.mT, y)
        self.yy += (y * y).sum(1)
        self.x += x.sum(1)
        self.y += y.sum(1)

    def plus(self, other: NormalEquations) -> NormalEquations:
        """The sums of both."""
        both = NormalEquations(0, self.xy.shape[1], self.xy.shape[2])
        both.points = self.points + other.points
        for name in ("xx", "xy", "yy", "x", "y"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def of_inputs(self, columns: Tensor) -> NormalEquations:
        """The equations of these inputs alone (int64)."""
        part = NormalEquations(0, len(columns), self.xy.shape[2])
        part.points, part.yy, part.y = self.points, self.yy, self.y
        part.xx, part.xy, part.x = self.xx[:, columns][:, :, columns], self.xy[:, columns], self.x[:, columns]
        return part

    def centred(self, intercept: bool) -> tuple[Tensor, Tensor]:
        """x'x (groups, inputs, inputs) and x'y (groups, inputs, outputs), without the means where there is an intercept."""
        if not intercept:
            return self.xx, self.xy
        mean = self.x / self.points
        return self.xx - mean.unsqueeze(2) * self.x.unsqueeze(1), self.xy - mean.unsqueeze(2) * self.y.unsqueeze(1)

    def errors(self, weight: Tensor, intercept: Tensor) -> Tensor:
        """Sum over the points of (y - W x - b)^2: (groups, outputs)."""
        b = intercept.unsqueeze(2)
        quadratic = ((weight @ self.xx) * weight).sum(2) - 2 * (weight * self.xy.mT).sum(2)
        shift = 2 * intercept * ((weight * self.x.unsqueeze(1)).sum(2) - self.y) + self.points * b.squeeze(2) ** 2
        return (self.yy + quadratic + shift).clamp_min(0)

    def spread(self) -> Tensor:
        """Sum over the points of (y - mean y)^2: (groups, outputs)."""
        return (self.yy - self.y**2 / self.points).clamp_min(0)

    def solve(self, now: Tensor, ridge: float, intercept: Tensor | None) -> Solution:
        """Least squares for the change of the weights: argmin over W of |y - W x - b|^2 + ridge * scale * |W - now|^2.

        ``now`` (groups, outputs, inputs) are the weights to start from and ``scale`` is the mean of the diagonal of x'x: what
        the data don't tell stays as it is. With ``intercept=None`` it is solved for, too, without a penalty; else it is fixed.
        Without a ridge this is ordinary least squares; where it is ill-conditioned, `FALLBACK_RIDGE` is taken instead.
        """
        return next(self.solutions(now, (ridge,), intercept))

    def solutions(self, now: Tensor, ridges: Iterable[float], intercept: Tensor | None) -> Iterator[Solution]:
        """`solve` for each of several ridges: all but the factorisation is done once."""
        xx, xy = self.centred(intercept is None)
        if intercept is not None:
            xy = xy - self.x.unsqueeze(2) * intercept.unsqueeze(1)
        residual = xy - xx @ now.mT
        for wanted in ridges:
            ridge, factor = wanted, self._factor(xx, wanted)
            if factor is None:
                ridge = max(ridge, FALLBACK_RIDGE)
                factor = self._factor(xx, ridge)
            change = torch.zeros_like(residual) if factor is None else torch.cholesky_solve(residual, factor)
            weight = now + change.mT
            free = intercept is None
            constant = (self.y - (weight * self.x.unsqueeze(1)).sum(2)) / self.points if free else intercept
            yield Solution(weight, constant, ridge)

    def _factor(self, xx: Tensor, ridge: float) -> Tensor | None:
        """Cholesky factor of x'x with the ridge on its diagonal, or None where it can't be trusted."""
        diagonal = xx.diagonal(dim1=1, dim2=2)
        mean = diagonal.mean(1)
        scale = torch.where(mean > 0, mean, 1.0)  # a group that reads nothing but zeros learns nothing, whatever its ridge
        shifted = xx.clone()
        shifted.diagonal(dim1=1, dim2=2).add_((ridge * scale).unsqueeze(1))
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if bool(failed.any()):
            return None
        found = factor.diagonal(dim1=1, dim2=2)
        return factor if bool((found.amin(1) > ILL_CONDITIONED * found.amax(1)).all()) else None
