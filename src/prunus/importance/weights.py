"""Criteria that look at weights only. Where several weights write a group, their scores are put together over these members."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from prunus.graph.group_view import GroupView
from prunus.importance.combine import aggregate
from prunus.importance.evidence import Evidence

FEW_ROWS = 64
BLOCK = 512


def in_single(matrix: Tensor) -> Tensor:
    """The matrix in float32 at least: half precision would tie what differs."""
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def norms(matrix: Tensor, order: int) -> Tensor:
    """Norm of each row, of order 1 or 2, in float32 at least: (num_channels,)."""
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    if order == 1:
        return matrix.abs().sum(1, dtype=dtype)  # four times as fast as vector_norm
    return torch.linalg.vector_norm(matrix, order, dim=1, dtype=dtype)


def l1(view: GroupView, evidence: Evidence, *, members: str = "mean") -> Tensor | None:
    """Sum of absolute weights of each filter; mean over the weights that write the group.

        score[c] = sum over i, y, x of abs(W[c, i, y, x])

    ``members``: mean, sum, max or l2 over the weights that write the group. Comparable within a layer only: rank there, or
    normalise.

    When to use: without any data, to rank the channels of a layer; and as the baseline that everything else has to beat. Over
    several layers only with ``layer_adaptive``, a ``normalisation`` or a uniform allocation, because a layer's norms say nothing
    of another's.
    """
    return aggregate([norms(m, 1) for m in view.matrices("writes")], members)


def l2(view: GroupView, evidence: Evidence, *, members: str = "mean") -> Tensor | None:
    """Euclidean norm of each filter; mean over the weights that write the group.

        score[c] = sqrt(sum over i, y, x of W[c, i, y, x]^2)

    ``members``: as for l1.

    When to use: as l1, where a few large weights should count for more than many small ones, as in soft filter pruning.
    """
    return aggregate([norms(m, 2) for m in view.matrices("writes")], members)


def next_layer_weight(view: GroupView, evidence: Evidence, *, members: str = "mean") -> Tensor | None:
    """Sum of absolute weights that read each channel; mean over the layers that read it. None where no weight reads the group.

        score[c] = sum over o, y, x of abs(W_next[o, c, y, x])

    What the next layer makes of a channel: with a least-squares repair it kept up with channel selection by Lasso. ``members``:
    as for l1, over the reading layers.

    When to use: without data, above all in front of a least-squares repair of the next layer; beside l1, to see whether what a
    channel is made from or what is made of it tells more.
    """
    return aggregate([norms(m, 1) for m in view.matrices("reads")], members)


def bn_scale(view: GroupView, evidence: Evidence, *, members: str = "mean") -> Tensor | None:
    """Absolute scale (gamma) of the norm layers on the group, mean over them; None where the group has no norm layer.

        score[c] = mean over norm layers of abs(gamma[c])

    Made for networks that were trained with a penalty on gamma. ``members``: as for l1, over the norm layers.

    When to use: behind training with an L1 penalty on gamma (network slimming), which drives the gammas of needless channels
    towards zero. On any other network gammas say little, and a warning tells so.
    """
    return aggregate([norms(m, 1) / m.shape[1] for m in view.norm_scales()], members)


def fpgm(view: GroupView, evidence: Evidence, *, norm_share: float = 0.0, members: str = "mean") -> Tensor | None:
    """Sum of Euclidean distances from each filter to all others of its layer: those nearest the geometric median go first.

        score[c] = sum over filters k of ||W[c] - W[k]||_2

    ``norm_share``: first put this share of the channels last, by their Euclidean norm, and take the distances among the others
    only; "mix 40 %" of the released code is a share of 0.1 with 30 % more removed by distance. (That code calls 1 - share its
    ``rate_norm``; its option for other distances has no effect.) ``members``: mean, sum, max or l2 over the weights that write
    the group.

    When to use: without data, where norms have nothing to go by because they hardly differ or none is near zero (`l1` warns of
    it): what goes is what others can replace, not what is small.
    """
    weights = [in_single(m) for m in view.matrices("writes")]
    if not weights:
        return None
    norm = aggregate([norms(m, 2) for m in weights], members)
    assert norm is not None
    others = torch.ones(len(norm), dtype=torch.bool, device=norm.device)
    others[norm.argsort(stable=True)[: int(len(norm) * norm_share + 1e-9)]] = False
    among = aggregate([summed_distances(m[others]) for m in weights], members)
    assert among is not None
    # What the norm puts last stays below every other channel, in the order of the norms.
    below = among.min() * norm / (2 * norm[others].max()).clamp_min(torch.finfo(norm.dtype).tiny)
    return below.masked_scatter(others, among)


def summed_distances(rows: Tensor) -> Tensor:
    """Sum of the Euclidean distances from each row to all others: (rows,).

    Many rows go by matrix products, half of the symmetric matrix in blocks: exact but for rounding, which shows where rows agree
    to about three digits. Rows are centred, so that what all have in common costs no digits.
    """
    if len(rows) <= FEW_ROWS:
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    centred = rows - rows.mean(0)
    squares = centred.square().sum(1)
    blocks = list(zip(centred.split(BLOCK), squares.split(BLOCK), strict=True))
    sums = [torch.zeros_like(square) for _, square in blocks]
    for i, (one, square) in enumerate(blocks):
        for j, (other, other_square) in enumerate(blocks[i:], start=i):
            distances = (square[:, None] + other_square).addmm_(one, other.T, alpha=-2).clamp_min_(0).sqrt_()
            if i == j:
                distances.fill_diagonal_(0)
            else:
                sums[j] += distances.sum(0)
            sums[i] += distances.sum(1)
    return torch.cat(sums)


def first_k(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Falls with the channel's number, 1 down to 1 / num_channels: the first k channels are kept. A baseline.

        score[c] = 1 - c / num_channels,   c = 0, 1, ...

    When to use: in comparisons only. A criterion that doesn't beat it has learned nothing of the channels.
    """
    count = view.group.num_channels
    return torch.arange(count, 0, -1, dtype=torch.float64) / count


def random(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Uniform in [0, 1), a stream of its own for each group, the same for the same seed and group name.

        score[c] ~ U[0, 1)

    When to use: as the control of every comparison, with several seeds: what fine-tuning mends after it is no merit of any
    criterion.
    """
    generator = torch.Generator().manual_seed((evidence.seed * 1_000_003 + zlib.crc32(view.group.name.encode())) % 2**63)
    return torch.rand(view.group.num_channels, generator=generator)
