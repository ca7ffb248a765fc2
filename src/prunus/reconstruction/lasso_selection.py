"""Which inputs of a layer explain its output best: He et al.'s Lasso on normal equations, and the paper's two baselines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.errors import EvidenceError
from prunus.reconstruction.normal_equations import NormalEquations

SLACK = 0.1
"""The penalty is searched until between k and k * (1 + slack) inputs have a coefficient."""
_MOST_TRIALS = 60
_MOST_ROUNDS = 20


class LassoProblem:
    """min over b of |y - Z b|^2 / (2 rows) + penalty * |b|_1, column c of Z being what channel c adds to a layer's output.

    Rows are pairs of a point and an output; there is one intercept for all (He et al., ICCV 2017, equation 2, as released).
    Only sums over the rows are held: `add` takes them from a layer's normal equations, for one layer or several.
    """

    def __init__(self, channels: int) -> None:
        self.rows = 0
        self.gram = torch.zeros(channels, channels, dtype=torch.float64)
        self.products = torch.zeros(channels, dtype=torch.float64)
        self._z, self._y = torch.zeros(channels, dtype=torch.float64), 0.0

    def add(self, equations: NormalEquations, weight: Tensor, bias: Tensor, positions: Tensor) -> None:
        """Add a layer that reads the channels: weight (groups, outputs, inputs, kernel), bias (groups, outputs), both its own;
        positions (channels, k): each channel's places among ``inputs``."""
        groups, outputs, inputs, kernel = weight.shape
        w = weight.double().flatten(2)
        overlap = (w.mT @ w) * equations.xx
        blocks = overlap.reshape(groups, inputs, kernel, inputs, kernel).sum((0, 2, 4)).cpu()
        # y without the bias: sum over points of x (y - b)
        cross = equations.xy - equations.x.unsqueeze(2) * bias.double().unsqueeze(1)
        along = (w.mT * cross).sum(2).reshape(groups, inputs, kernel).sum((0, 2)).cpu()
        sums = (w.sum(1) * equations.x).reshape(groups, inputs, kernel).sum((0, 2)).cpu()
        self.rows += equations.points * outputs * groups
        at = positions.to(torch.int64)
        self.gram += blocks[at[:, None, :, None], at[None, :, None, :]].sum((2, 3))
        self.products += along[at].sum(1)
        self._z += sums[at].sum(1)
        self._y += float((equations.y - equations.points * bias.double()).sum())

    def centred(self) -> tuple[Tensor, Tensor]:
        """Z'Z and Z'y without the means, which is what an intercept leaves."""
        mean = self._z / max(self.rows, 1)
        return self.gram - torch.outer(mean, self._z), self.products - mean * self._y

    def select(self, count: int, slack: float = SLACK) -> Tensor:
        """The ``count`` channels that the Lasso keeps: bool (channels,).

        The penalty is doubled until fewer are left, then bisected until between ``count`` and ``count * (1 + slack)`` are (the
        released code's search). Of more than ``count``, those of smallest share in the output, |b_c| * |Z_c|, go, so that a
        planned width holds; where fewer have a coefficient at any penalty, the remaining channels that add most to the output
        fill up.

        Raises:
            EvidenceError: scikit-learn isn't installed.
        """
        channels = len(self.products)
        if count >= channels:
            return torch.ones(channels, dtype=torch.bool)
        gram, products = self.centred()
        coefficients = GramLasso(gram, products, self.rows).search(count, slack)
        size = gram.diagonal().clamp_min(0).sqrt()
        share = coefficients.abs() * size
        order = sorted(range(channels), key=lambda c: (-float(share[c]), -float(size[c]), c))
        keep = torch.zeros(channels, dtype=torch.bool)
        keep[order[:count]] = True
        return keep


class GramLasso:
    """scikit-learn's Lasso, without intercept, from Z'Z, Z'y and the number of rows: it is given as many rows as channels, which
    have the same sums."""

    def __init__(self, gram: Tensor, products: Tensor, rows: int) -> None:
        values, vectors = torch.linalg.eigh(gram)
        roots = values.clamp_min(0).sqrt()
        known = roots > 1e-7 * roots.max().clamp_min(1e-300)
        inverse = torch.where(known, 1 / torch.where(known, roots, 1.0), 0.0)
        self._x = (roots.unsqueeze(1) * vectors.T * known.unsqueeze(1)).numpy()
        self._y = (inverse * (vectors.T @ products)).numpy()
        self._scale = len(gram) / max(rows, 1)  # scikit-learn divides by the number of rows that it sees
        self.largest = float(products.abs().max()) / max(rows, 1)

    def solve(self, penalty: float, start: Tensor | None = None) -> Tensor:
        """The coefficients at this penalty, float64 (channels,); the search starts from ``start``."""
        try:
            from sklearn.linear_model import Lasso
        except ImportError as error:
            raise EvidenceError("selection by Lasso needs scikit-learn: pip install 'prunus[all]'") from error
        factor = self._scale**0.5
        lasso: Any = Lasso(alpha=penalty, fit_intercept=False, max_iter=5000, tol=1e-6, warm_start=start is not None)
        if start is not None:
            lasso.coef_ = start.numpy().copy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of channels that repeat others the search leaves out one, converged or not
            lasso.fit(self._x * factor, self._y * factor)
        return torch.from_numpy(lasso.coef_).double()

    def search(self, count: int, slack: float) -> Tensor:
        """Coefficients of which between ``count`` and ``count * (1 + slack)`` aren't zero, or the fewest above ``count``."""
        low, high = 0.0, max(self.largest, 1e-300) * 1e-4
        found = best = self.solve(high)
        while int((found != 0).sum()) > count:
            low, best, high = high, found, 2 * high
            found = self.solve(high, found)
        for _ in range(_MOST_TRIALS):
            if count <= int((found != 0).sum()) <= count * (1 + slack):
                return found
            middle = (low + high) / 2
            found = self.solve(middle, best)
            if int((found != 0).sum()) < count:
                high = middle
            else:
                low, best = middle, found
        return best


def alternate(
    problems: Sequence[tuple[NormalEquations, Tensor, Tensor, Tensor]], channels: int, count: int, slack: float = SLACK
) -> Tensor:
    """Selection and re-fit in turn until the selection stays (He et al., section 3.1, as written): bool (channels,).

    ``problems``: for every reading layer its normal equations, weight (groups, outputs, inputs, kernel), bias (groups, outputs)
    and positions (channels, k). Each round selects fewer channels, by the same number every time, down to ``count``, and then
    fits the weights to what is left, each channel's scaled to norm one: its coefficient takes over the norm.
    """
    keep = torch.ones(channels, dtype=torch.bool)
    weights = [weight.double() for _, weight, _, _ in problems]
    for step in range(_MOST_ROUNDS):
        wanted = max(count, channels - (channels - count) * (step + 1) * 4 // _MOST_ROUNDS)
        problem = LassoProblem(channels)
        for (equations, _, bias, positions), weight in zip(problems, weights, strict=True):
            problem.add(equations, _normalised(weight, positions), bias, positions)
        chosen = problem.select(wanted, slack)
        if wanted == count and torch.equal(chosen, keep):
            break
        keep = chosen
        weights = [_refitted(*given, keep) for given in problems]
    return keep


def _normalised(weight: Tensor, positions: Tensor) -> Tensor:
    """Every channel's weights divided by their norm."""
    scaled = weight.clone()
    for places in positions:
        norm = scaled[:, :, places].norm()
        if float(norm) > 0:
            scaled[:, :, places] /= norm
    return scaled


def _refitted(equations: NormalEquations, weight: Tensor, _: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
    """Least squares on the kept channels; the weights of the others as the layer has them, so that they can come back."""
    groups, outputs, inputs, kernel = weight.shape
    gone = torch.zeros(inputs, dtype=torch.bool)
    gone[positions[~keep].reshape(-1)] = True
    columns = (~gone).repeat_interleave(kernel).nonzero().squeeze(1).to(weight.device)
    part = equations.of_inputs(columns)
    solution = part.solve(weight.double().flatten(2)[:, :, columns], 1e-6, None)
    result = weight.double().flatten(2).clone()
    result[:, :, columns] = solution.weight
    return result.reshape(groups, outputs, inputs, kernel)
