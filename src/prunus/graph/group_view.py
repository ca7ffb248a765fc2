"""A group's weights as matrices: the layout (transposed, grouped, flattened, tied) is normalised here, once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.types import ChannelGroup, GroupMember, NormAffine, Role


class GroupView:
    """What a criterion sees of one group. ``tensors`` maps parameter and buffer names to values (weights, or their gradients)."""

    def __init__(self, group: ChannelGroup, tensors: Mapping[str, Tensor], norms: tuple[NormAffine, ...] = ()) -> None:
        self.group = group
        self._tensors = tensors
        self._norms = norms

    def matrix(self, member: GroupMember, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """The slices of one member, a row for each channel: (num_channels, n). For reading: it may be a view of the weights."""
        source = (self._tensors if tensors is None else tensors)[member.parameter_axis.parameter].detach()
        rows = source.movedim(member.parameter_axis.axis, 0).flatten(1) if source.ndim > 1 else source.unsqueeze(1)
        positions = member.positions.reshape(-1)
        if len(positions) != len(rows) or not torch.equal(positions, torch.arange(len(rows))):  # copy only what is out of order
            rows = rows[positions.to(source.device)]
        return rows.reshape(len(member.positions), -1)

    def matrices(self, *roles: Role) -> list[Tensor]:
        """Matrices (num_channels, n) of the weights (two or more axes) with these roles; biases and norm vectors are left out."""
        members = self.group.with_role(*roles)
        return [self.matrix(m) for m in members if self._tensors[m.parameter_axis.parameter].ndim > 1]

    def norm_scales(self) -> list[Tensor]:
        """Scale (gamma) of every normalisation layer on the group's channels: each (num_channels, n)."""
        names = {norm.scale for norm in self._norms}
        return [self.matrix(m) for m in self.group.with_role("scales") if m.parameter_axis.parameter in names]


def channel_sum(member: GroupMember, along_axis: Tensor) -> Tensor:
    """Sum over each channel's positions of a vector along the member's axis: (num_channels,)."""
    return along_axis[member.positions.to(along_axis.device)].sum(1)


def sum_along(values: Tensor, axis: int) -> Tensor:
    """Sum over all other axes, in float32 at least: (size of ``axis``,)."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    others = [i for i in range(values.ndim) if i != axis]
    return values.sum(others, dtype=dtype) if others else values.to(dtype)
