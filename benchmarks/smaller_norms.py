"""A smaller penalty on norms with the same function: the deep LASSO of docs/smaller_norms.md, in figures.

    python benchmarks/smaller_norms.py [--seeds 20]

After Ye et al. 2018. Four 8 x 8 matrices in a row, the last two three times as large; the first two are multiplied by alpha and
the others divided by it, twice each. Figures of a draw: the sum of absolute weights at the best alpha as a share of that at
one, and the largest difference of the product from the original's, as a share of its largest entry.
"""

from __future__ import annotations

import argparse
from functools import reduce

import torch
from _during_training import mean, store
from torch import Tensor


def one(seed: int) -> tuple[float, float]:
    """The penalty left, and how far the function moved."""
    generator = torch.Generator().manual_seed(seed)
    halves = [[scale * torch.randn(8, 8, generator=generator, dtype=torch.float64) for _ in range(2)] for scale in (1, 3)]
    sums = [float(sum(w.abs().sum() for w in half)) for half in halves]
    alpha = (sums[1] / sums[0]) ** 0.5
    scaled = [alpha * w for w in halves[0]] + [w / alpha for w in halves[1]]
    before, after = _product(halves[0] + halves[1]), _product(scaled)
    penalty = float(sum(w.abs().sum() for w in scaled))
    return penalty / sum(sums), float((after - before).abs().max() / before.abs().max())


def _product(matrices: list[Tensor]) -> Tensor:
    return reduce(lambda product, matrix: matrix @ product, matrices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parts = [one(seed) for seed in range(parser.parse_args().seeds)]
    penalties, moved = (mean(list(values)) for values in zip(*parts, strict=True))
    store("smaller_norms", {"seeds": len(parts), "penalty_left": penalties, "function_moved": moved})
    print(f"penalty left {penalties['mean']:.3f}, function moved {moved['mean']:.1e}")


if __name__ == "__main__":
    main()
