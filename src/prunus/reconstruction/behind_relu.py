"""A layer refitted so that what the ReLU behind it lets through comes close, not what the layer itself gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.reconstruction.normal_equations import NormalEquations, Solution

ROUNDS = ((0.1, 30), (1.0, 20))
"""Penalty on the distance between the auxiliary numbers and the layer's outputs, and rounds with it (Zhang et al. 2015)."""
MOST_BYTES = 2**27
"""So much of a layer's inputs is held at most: the solver goes over them again and again."""


def nearest_behind_relu(given: Tensor, wanted: Tensor, penalty: float) -> Tensor:
    """z that minimises (wanted - relu(z))^2 + penalty * (z - given)^2, number by number; ``wanted`` isn't negative."""
    closed = given.clamp_max(0)
    opened = ((wanted + penalty * given) / (1 + penalty)).clamp_min(0)
    cost_closed = wanted**2 + penalty * (closed - given) ** 2
    cost_opened = (wanted - opened) ** 2 + penalty * (opened - given) ** 2
    return torch.where(cost_closed < cost_opened, closed, opened)


@dataclass(frozen=True, eq=False)
class ReluProblem:
    """Points of a layer: x (points, groups, inputs); what the ReLU let through in the original, what is added in front of
    the ReLU now, and the norm's scale: ``wanted``, ``offset`` (points, groups, outputs), ``scale`` (groups, outputs)."""

    x: Tensor
    wanted: Tensor
    offset: Tensor
    scale: Tensor

    def part(self, rows: Tensor) -> ReluProblem:
        """These points alone."""
        return ReluProblem(self.x[rows], self.wanted[rows], self.offset[rows], self.scale)

    def before_relu(self, solution: Solution) -> Tensor:
        """What reaches the ReLU with these weights: (points, groups, outputs)."""
        given = torch.einsum("pgi,goi->pgo", self.x, solution.weight) + solution.intercept
        return given * self.scale + self.offset

    def error(self, solution: Solution) -> float:
        """Sum of (wanted - relu)^2."""
        return float((self.wanted - self.before_relu(solution).clamp_min(0)).square().sum())

    def spread(self) -> float:
        """Sum of (wanted - its mean)^2, which errors are shares of."""
        return float((self.wanted - self.wanted.mean(0)).square().sum())


def refine(problem: ReluProblem, start: Solution, fixed: Tensor | None) -> Solution:
    """From a least-squares solution to one behind the ReLU, in turns: auxiliary numbers in front of it, then least squares.

        min over W, b, z of |wanted - relu(z)|^2 + penalty * |z - (scale * (W x + b) + offset)|^2

    Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", 2015, section 3.2. The
    ridge of the solution is kept and pulls to it.
    """
    _, groups, inputs = problem.x.shape
    equations = NormalEquations(groups, inputs, problem.wanted.shape[2], problem.x.device)
    equations.add(problem.x, problem.wanted)
    closed = problem.scale == 0
    found = start
    x = problem.x.movedim(1, 0)
    for penalty, rounds in ROUNDS:
        for _ in range(rounds):
            z = nearest_behind_relu(problem.before_relu(found), problem.wanted, penalty)
            y = torch.where(closed, 0.0, (z - problem.offset) / torch.where(closed, 1.0, problem.scale)).movedim(1, 0)
            equations.xy, equations.y = x.mT @ y, y.sum(1)
            found = equations.solve(start.weight, start.ridge, fixed)
    return found
