"""What each channel prefers, before pruning and after recovery: the gallery of a run that prunes by functionality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.importance.evidence import DataRun
from prunus.importance.functionality import preference_clusters, preferences
from prunus.importance.functionality_patterns import preferred_patterns
from prunus.report.gallery import LOST, GalleryGroup, write_gallery
from prunus.surgery import SurgeryRecord
from prunus.types import ChannelGraph, ChannelGroup

PAGE = "gallery.html"


def write_preferences(
    full: tuple[nn.Module, ChannelGraph],
    small: tuple[nn.Module, ChannelGraph],
    record: SurgeryRecord,
    run: DataRun,
    options: Mapping[str, Any],
    path: Path,
) -> dict[str, Any]:
    """Write the gallery to ``path``; returns what the report says of it.

    A channel's pattern after recovery is sought from the one before, so that what differs is what the training changed.
    ``options`` are the criterion's (``clusters``, ``by``).
    """
    example = run.inputs(next(iter(run)))
    found = preferences(*full, run)
    patterns = preferred_patterns(*full, example, groups=list(found), seed=run.seed, forward_fn=run.forward_fn)
    kept = {name: kept_channels(full[1][name], record) for name in found}
    left = {group.name: group.num_channels for group in small[1].prunable}
    starts = {name: values[kept[name]] for name, values in patterns.items() if left.get(name) == int(kept[name].sum())}
    after = preferred_patterns(*small, example, groups=list(starts), starts=starts, seed=run.seed, forward_fn=run.forward_fn)
    groups = [
        GalleryGroup(
            name=name,
            patterns=values,
            clusters=preference_clusters(found[name], seed=run.seed, **options),
            contributions=found[name][:, 0],
            removed=~kept[name],
            after={"recovery": after[name]} if name in after else {},
        )
        for name, values in patterns.items()
    ]
    write_gallery(groups, path, title="What each channel prefers", note="Before pruning, and after recovery.")
    return {"file": path.name, "lost_below": LOST, "rows": [_row(group) for group in groups]}


def kept_channels(group: ChannelGroup, record: SurgeryRecord) -> Tensor:
    """Which channels of a group of the full network the record keeps: bool (num_channels,)."""
    member = group.with_role("writes")[0]
    axis = member.parameter_axis
    entries = record.kept.get(axis.parameter, {}).get(axis.axis)
    if entries is None:
        return torch.ones(group.num_channels, dtype=torch.bool)
    return torch.isin(member.positions[:, 0], entries)


def _row(group: GalleryGroup) -> dict[str, Any]:
    similar = group.similarities("recovery") if group.after else None
    return {
        "name": group.name,
        "channels": len(group.patterns),
        "clusters": len(group.clusters.unique()),
        "removed": int(group.removed.sum()),
        "similarity": None if similar is None or not len(similar) else float(similar.quantile(0.5)),
        "lost": None if similar is None else int((similar < LOST).sum()),
    }
