"""A gallery of preferred patterns: by cluster, with what was removed, and what a training made of the channels that stayed."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.errors import ExportError
from prunus.report.offline import resource, write_page
from prunus.report.wording import MISSING, escape, table, tag

LOST = 0.5
"""A channel whose pattern's cosine similarity falls below this counts as having lost its function."""
LARGEST_SIDE = 112  # pixels
SMALL = 56  # pixels: up to here single pixels are shown as squares, and stored as such


@dataclass(frozen=True, eq=False)
class GalleryGroup:
    """One channel group: what each channel prefers, and what became of it.

    ``patterns``: (num_channels, C, H, W), C being 1 or 3, zero being the mean input; all zeros where nothing wakes the channel.
    ``clusters``: whole numbers (num_channels,); ``contributions``: (num_channels,), higher = keep; ``removed``: bool
    (num_channels,). ``after``: name of a training -> patterns of the kept channels (num_kept, C, H, W), in their order. Channels
    are shown by what the first training did to them; others are for comparison.
    """

    name: str
    patterns: Tensor
    clusters: Tensor
    contributions: Tensor
    removed: Tensor
    after: Mapping[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())

    def __post_init__(self) -> None:
        shape, kept = tuple(self.patterns.shape), int((~self.removed.bool()).sum())
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise ExportError(
                f"patterns of group `{self.name}` have the shape {shape}: the gallery shows (num_channels, 1 or 3, height, "
                "width); pick or average the input channels to be shown"
            )
        if any(values.shape != (shape[0],) for values in (self.clusters, self.contributions, self.removed)):
            raise ExportError(
                f"group `{self.name}` has {shape[0]} patterns: give as many clusters, contributions and removed flags"
            )
        for training, patterns in self.after.items():
            if tuple(patterns.shape) != (kept, *shape[1:]):
                raise ExportError(
                    f"patterns of group `{self.name}` after {training} have the shape {tuple(patterns.shape)}, not "
                    f"{(kept, *shape[1:])}: one for each channel that was kept"
                )

    @property
    def kept(self) -> Tensor:
        """Indices of the kept channels: int64 (num_kept,)."""
        return (~self.removed.bool()).nonzero()[:, 0]

    def similarities(self, training: str) -> Tensor:
        """Cosine of each kept channel's patterns before and after the training: float64 (num_kept,), 0 where one is all zeros."""
        before, after = self.patterns[self.kept].flatten(1).double(), self.after[training].flatten(1).double()
        return F.cosine_similarity(before, after, dim=1)


def write_gallery(groups: Sequence[GalleryGroup], path: Path, *, title: str, note: str = "") -> None:
    """Write the gallery as one HTML file that works offline, replacing an old one only when complete.

    Raises:
        ExportError: Pillow isn't installed, or ``path`` can't be written.
    """
    page = _PAGE.format(title=escape(title), note=escape(note), style=resource("style.css") + _STYLE, body=gallery(groups))
    write_page(page, Path(path), "gallery")


def gallery(groups: Sequence[GalleryGroup]) -> str:
    """The gallery's sections: an overview, then each group's clusters and what trainings did to its channels."""
    sections = "".join(
        f"<section><h2>Group {escape(group.name)}</h2>{_clusters(group)}{_losses(group) if group.after else ''}</section>"
        for group in groups
    )
    return _overview(groups) + sections


def _overview(groups: Sequence[GalleryGroup]) -> str:
    trainings = list(dict.fromkeys(name for group in groups for name in group.after))
    head = ["group", "channels", "clusters", "removed"]
    head += [f"{what}, {name}" for name in trainings for what in ("similarity", "lost")]
    rows: list[list[str]] = []
    for group in groups:
        row = [escape(group.name), str(len(group.patterns)), str(len(group.clusters.unique())), str(int(group.removed.sum()))]
        for name in trainings:
            found = group.similarities(name) if name in group.after else torch.zeros(0)
            row += [_number(found.quantile(0.5)), f"{int((found < LOST).sum())} of {len(found)}"] if len(found) else [MISSING] * 2
        rows.append(row)
    words = (
        "Similarity: cosine of a channel's preferred patterns before and after, the median of the kept channels. A function "
        f"counts as lost below {LOST:g}. Grey is the mean input; every picture has its own contrast."
    )
    shown = table("Preferred patterns by group", head, rows, numeric=range(1, len(head)))
    return f'<section class="summary"><h2>Overview</h2>{shown}<p class="note">{words}</p></section>'


def _clusters(group: GalleryGroup) -> str:
    """Every cluster, numbered by size, the largest first; in it the channels with the largest contribution first."""
    largest = max(float(group.contributions.max()), torch.finfo(torch.float64).tiny)
    numbers, sizes = group.clusters.unique(return_counts=True)
    parts: list[str] = []
    for number, cluster in enumerate(numbers[sizes.argsort(descending=True, stable=True)], start=1):
        inside = (group.clusters == cluster).nonzero()[:, 0]
        order = inside[group.contributions[inside].argsort(descending=True, stable=True)].tolist()
        removed = int(group.removed[inside].sum())
        words = f"Cluster {number}: {len(order)} channel{'s' * (len(order) != 1)}, {removed} removed"
        tiles = "".join(_tile(group, channel, largest) for channel in order)
        parts.append(f'<div><h3>{words}</h3><ul class="samples patterns">{tiles}</ul></div>')
    return f'<div class="clusters">{"".join(parts)}</div>'


def _tile(group: GalleryGroup, channel: int, largest: float) -> str:
    value, removed = float(group.contributions[channel]), bool(group.removed[channel])
    share = max(0.0, min(1.0, value / largest))
    kind = ' class="removed"' if removed else ""
    state = tag("removed", "bad") if removed else tag("kept", "good")
    return (
        f'<li{kind}>{_picture(group.patterns[channel], f"channel {channel}")}<p class="label">channel {channel}</p>{state}'
        f'<p>contribution {value:.3g}</p><div class="meter"><span style="width:{share * 100:.1f}%"></span></div></li>'
    )


def _losses(group: GalleryGroup) -> str:
    """Kept channels before and after, those that lost most in the first training first."""
    found = {name: group.similarities(name) for name in group.after}
    first = next(iter(found))
    kept, parts = group.kept.tolist(), list[str]()
    for row in found[first].argsort(stable=True).tolist():
        lost = tag("lost", "bad") if float(found[first][row]) < LOST else ""
        pictures = _framed(group.patterns[kept[row]], "before") + "".join(
            _framed(group.after[name][row], f"{name}: {_number(values[row])}") for name, values in found.items()
        )
        parts.append(f'<li><p class="label">channel {kept[row]} {lost}</p><div class="pair">{pictures}</div></li>')
    words = f"What became of the kept channels: those that {escape(first)} changed most come first"
    return f'<h3>{words}</h3><ul class="samples changes">{"".join(parts)}</ul>'


def _framed(pattern: Tensor, caption: str) -> str:
    return f"<figure>{_picture(pattern, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _number(value: Tensor) -> str:
    text = f"{float(value):.2f}"
    return ("0.00" if text == "-0.00" else text).replace("-", "\u2212")


def _picture(pattern: Tensor, description: str) -> str:
    """An image element with the pattern inside, grey being zero; words where there is none."""
    if not bool(pattern.any()):
        return '<p class="silent">never active</p>'
    scaled = pattern.detach().float().cpu()
    scaled = 0.5 + 0.5 * scaled / scaled.abs().max()
    array: Any = scaled.mul(255).round().to(torch.uint8).movedim(0, 2).numpy()
    uri = _encoded(array if array.shape[2] == 3 else array[:, :, 0])
    kind = ' class="small"' if max(array.shape[:2]) <= SMALL else ""
    return f'<img src="{uri}" alt="{escape(description)}"{kind}>'


def _encoded(array: Any) -> str:
    try:
        from PIL import Image
    except ImportError as error:
        raise ExportError(f"Pillow can't be imported ({error}): the gallery needs it, pip install 'prunus[data]'") from error
    picture = Image.fromarray(array)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer, kind = io.BytesIO(), "PNG" if max(picture.size) <= SMALL else "JPEG"
    picture.save(buffer, kind, **({"optimize": True} if kind == "PNG" else {"quality": 80}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


_STYLE = """
.clusters { display: flex; flex-wrap: wrap; gap: 0 32px; }
.patterns { display: flex; flex-wrap: wrap; }
.patterns li { width: 118px; }
.patterns img { width: 80px; height: 80px; }
.patterns .removed { outline: 2px dashed var(--bad); outline-offset: -2px; }
.changes { grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr)); }
.pair { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 8px; max-width: 420px; }
.pair figure { margin: 6px 0 0; }
.pair img { width: 100%; max-width: 72px; height: auto; margin: 0 0 4px; }
.pair figcaption { line-height: 1.3; overflow-wrap: anywhere; }
.samples .silent { max-width: 72px; height: 72px; border: 1px dashed var(--line); }
.samples .silent { display: grid; place-items: center; text-align: center; }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title} \u2013 Prunus gallery</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p class="subtitle">{note}</p></header>
<main>{body}</main>
<footer><p>Made by Prunus; nothing on this page was loaded from anywhere else.</p></footer>
</body>
</html>
"""
