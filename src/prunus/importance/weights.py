"""Criteria that look at weights only. Where several weights write a group, their scores are averaged."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from prunus.graph.group_view import GroupView
from prunus.importance.evidence import Evidence


def _mean_over(scores: list[Tensor]) -> Tensor | None:
    return torch.stack(scores).mean(0) if scores else None


def _norm(matrix: Tensor, order: int) -> Tensor:
    """Norm of each row, in float32 at least: half precision would tie what differs."""
    return torch.linalg.vector_norm(matrix, order, dim=1, dtype=torch.promote_types(matrix.dtype, torch.float32))


def l1(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Sum of absolute weights of each filter; mean over the weights that write the group."""
    return _mean_over([_norm(m, 1) for m in view.matrices("writes")])


def l2(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Euclidean norm of each filter; mean over the weights that write the group."""
    return _mean_over([_norm(m, 2) for m in view.matrices("writes")])


def bn_scale(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Absolute scale (gamma) of the norm layers on the group, mean over them; None where the group has no norm layer."""
    return _mean_over([_norm(m, 1) / m.shape[1] for m in view.norm_scales()])


def random(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Uniform in [0, 1), a stream of its own for each group, the same for the same seed and group name."""
    generator = torch.Generator().manual_seed((evidence.seed * 1_000_003 + zlib.crc32(view.group.name.encode())) % 2**63)
    return torch.rand(view.group.num_channels, generator=generator)
