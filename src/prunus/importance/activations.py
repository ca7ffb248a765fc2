"""Criteria and evidence from activations, taken where the channel is read: behind norm, activation function and pooling."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.errors import EvidenceError, PrunusWarning
from prunus.graph.as_found import as_found
from prunus.graph.group_view import GroupView
from prunus.importance.evidence import DataRun, Evidence, to_device
from prunus.importance.readers import ReadingCall, reading_call, reading_members, readings
from prunus.types import ChannelGraph, call_model

Score: TypeAlias = Callable[[GroupView, Evidence], "Tensor | None"]
ENTROPY_BINS = 100
ENTROPY_IMAGES = 4096
"""Entropy looks at so many images (times readers) of a group at most: this bounds its memory."""


def apoz(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Share of activations that aren't zero: one minus APoZ, the average percentage of zeros, over images and positions.

        score[c] = 1 - mean over n, y, x of (1 if a[n, c, y, x] = 0 else 0)

    Hu et al. 2016 prune the channels with the most zeros. It says something behind a ReLU only; a warning tells where no
    activation is exactly zero. Formula as in third-party code; the paper was not at hand.

    When to use: on ReLU networks with many dead or nearly dead channels, without labels. Normalise or rank within layers: deep
    layers have more zeros than early ones without mattering less.
    """
    zeros = evidence.of("apoz", view.group)
    return None if zeros is None else 1 - zeros


def activation_mean(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean activation of the channel where it is read, over images, positions and readers.

        score[c] = mean over n, y, x of a[n, c, y, x]

    When to use: without labels, to rank the channels of a layer behind a ReLU; elsewhere the sign would count. Normalise it over
    layers.
    """
    return evidence.of("activation_mean", view.group)


def activation_std(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Standard deviation (of the population) of the channel's activations, over images, positions and readers.

        score[c] = sqrt(mean over n, y, x of (a[n, c, y, x] - mean of a[., c, ., .])^2)

    When to use: without labels: a channel that hardly varies can be replaced by a constant, whatever its mean. It suits a removal
    that is followed by a repair of the next layer's bias.
    """
    return evidence.of("activation_std", view.group)


def activation_max(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Largest activation of the channel, over images, positions and readers.

        score[c] = max over n, y, x of a[n, c, y, x]

    When to use: to find channels that never fire on any image; among those that do, one outlier decides, so as a ranking it is a
    baseline.
    """
    return evidence.of("activation_max", view.group)


def entropy(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Entropy (nats) over images of the channel's mean activation, from a histogram of 100 bins between its extremes.

        p[c, b]  = share of images whose mean over y, x of a[n, c, y, x] lies in bin b
        score[c] = -sum over b of p[c, b] * ln p[c, b]

    Luo and Wu 2017; a reconstruction: the range of the histogram isn't known, here it is each channel's own. At most
    `ENTROPY_IMAGES` images are looked at, the first ones.

    When to use: without labels and with some hundred images at least: below that, bins are nearly empty and all channels score
    alike.
    """
    return evidence.of("entropy", view.group)


def feature_map_rank(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean rank, over images, of the channel's feature map as a matrix (height, width): HRank.

        score[c] = mean over n of rank(a[n, c])

    Lin et al. 2020. None where the group is read without a map (behind global pooling or flattening); maps of one row or column
    count with rank one or zero.

    When to use: without labels and with few images, on convolutional layers with maps large enough to differ in rank; small maps
    tie.
    """
    return evidence.of("feature_map_rank", view.group)


class _Read:
    """What a layer reads, reduced to vectors along its weight's axis; each reduction is made once for all groups and kinds."""

    def __init__(self, call: ReadingCall) -> None:
        x = call.x if call.axis > 0 else call.x.unsqueeze(0)
        self._maps = x if call.weight.ndim == 4 else None
        length = call.weight.shape[call.weight_axis]
        first = x.movedim(x.ndim - call.weight.ndim + 1, 1)
        self.values = first.reshape(len(x), first.shape[1] // length, length, -1)  # image, group of the convolution, index, place
        self.count = self.values.numel() // length

    @cached_property
    def sums(self) -> Tensor:
        return self.values.sum((0, 1, 3), dtype=torch.float64)

    @cached_property
    def squares(self) -> Tensor:
        return torch.linalg.vector_norm(self.values, 2, (0, 1, 3), dtype=torch.float64) ** 2

    @cached_property
    def zeros(self) -> Tensor:
        return (self.values == 0).sum((0, 1, 3)).double()

    @cached_property
    def maxima(self) -> Tensor:
        return self.values.amax((0, 1, 3)).double()

    @cached_property
    def of_images(self) -> Tensor:
        return self.values.sum((1, 3), dtype=torch.float64)

    @cached_property
    def ranks(self) -> Tensor | None:
        """Sum over images of each map's rank; None where there are no maps."""
        if self._maps is None or self._maps.shape[2:].numel() == 1:
            return None
        maps = self._maps.to(torch.promote_types(self._maps.dtype, torch.float32))
        ranks = torch.linalg.matrix_rank(maps).reshape(self.values.shape[:3])
        return ranks.sum((0, 1), dtype=torch.float64)


class _Statistic:
    """What one kind of evidence knows of one group, in float64. ``add`` takes a read and the positions (num_channels, k)."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Any = 0.0

    def add(self, read: _Read, positions: Tensor) -> None:
        self.total = self.total + self.part(read)[positions].sum(1)
        self.count += read.count * positions.shape[1]

    def part(self, read: _Read) -> Tensor:
        return read.sums

    def value(self) -> Tensor | None:
        return self.total / self.count if self.count else None


class _Zeros(_Statistic):
    def part(self, read: _Read) -> Tensor:
        return read.zeros


class _Spread(_Statistic):
    def __init__(self) -> None:
        super().__init__()
        self.squares: Any = 0.0

    def add(self, read: _Read, positions: Tensor) -> None:
        super().add(read, positions)
        self.squares = self.squares + read.squares[positions].sum(1)

    def value(self) -> Tensor | None:
        return (self.squares / self.count - (self.total / self.count) ** 2).clamp_min(0).sqrt()


class _Maximum(_Statistic):
    def add(self, read: _Read, positions: Tensor) -> None:
        found = read.maxima[positions].amax(1)
        self.total = torch.maximum(self.total, found) if isinstance(self.total, Tensor) else found

    def value(self) -> Tensor | None:
        return self.total if isinstance(self.total, Tensor) else None


class _Entropy(_Statistic):
    def __init__(self) -> None:
        super().__init__()
        self.means: list[Tensor] = []

    def add(self, read: _Read, positions: Tensor) -> None:
        room = ENTROPY_IMAGES - self.count
        if room > 0:
            places = read.count // len(read.values) * positions.shape[1]
            self.means.append(read.of_images[:room, positions].sum(2) / places)
            self.count += len(self.means[-1])

    def value(self) -> Tensor | None:
        return histogram_entropy(torch.cat(self.means)) if self.means else None


class _Rank(_Statistic):
    def add(self, read: _Read, positions: Tensor) -> None:
        if read.ranks is not None:
            self.total = self.total + read.ranks[positions].sum(1)
            self.count += read.values.shape[0] * read.values.shape[1] * positions.shape[1]


ACTIVATION_KINDS: dict[str, Callable[[], _Statistic]] = {
    "apoz": _Zeros,
    "activation_mean": _Statistic,
    "activation_std": _Spread,
    "activation_max": _Maximum,
    "entropy": _Entropy,
    "feature_map_rank": _Rank,
}


def histogram_entropy(values: Tensor, bins: int = ENTROPY_BINS) -> Tensor:
    """Entropy in nats of every column's histogram between its extremes: (samples, num_channels) -> (num_channels,)."""
    low, high = values.aminmax(dim=0)
    width = torch.where(high > low, high - low, torch.ones_like(low))
    index = ((values - low) / width * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(bins, values.shape[1], dtype=torch.float64, device=values.device)
    shares = counts.scatter_add_(0, index, torch.ones_like(values, dtype=torch.float64)) / len(values)
    return torch.special.entr(shares).sum(0)


class _Watch(TorchFunctionMode):
    """While active, hands every read through one of ``weights`` to ``note``."""

    def __init__(self, weights: Collection[int], note: Callable[[int, _Read], None]) -> None:
        super().__init__()
        self._weights = weights
        self._note = note

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = reading_call(func, args, kwargs or {})
        if call is not None and id(call.weight) in self._weights:
            self._note(id(call.weight), _Read(call))
        return func(*args, **(kwargs or {}))


def activation_statistics(
    kinds: Collection[str], model: nn.Module, graph: ChannelGraph, run: DataRun
) -> dict[str, dict[str, Tensor]]:
    """All ``kinds`` of `ACTIVATION_KINDS` in one pass over the data: kind -> group name -> (num_channels,).

    Memory holds vectors only (for entropy also a mean for each of `ENTROPY_IMAGES` images). No loss is taken, so batches may come
    without targets. Groups that no convolution or linear layer reads are left out.

    Raises:
        EvidenceError: the data are empty, or an activation isn't finite.
    """
    members = reading_members(model, graph)
    found = {name: {kind: ACTIVATION_KINDS[kind]() for kind in kinds} for name in members}
    readers: dict[int, list[tuple[str, Tensor]]] = {}
    for name, parts in members.items():
        for weight, reading in readings(model, parts).items():
            readers.setdefault(weight, []).append((name, reading.positions))

    def note(weight: int, read: _Read) -> None:
        for name, positions in readers[weight]:
            if not bool(torch.isfinite(read.sums).all()):
                raise EvidenceError(f"activations of group `{name}` aren't finite on a scoring batch: check the data and weights")
            for statistic in found[name].values():
                statistic.add(read, positions.to(read.values.device))

    with as_found(model), _Watch(readers.keys(), note):
        model.eval()
        for batch in run:
            batch = to_device(batch, model)
            call_model(model, run.inputs(batch), run.forward_fn)
    values = {kind: {n: v for n, s in found.items() if (v := s[kind].value()) is not None} for kind in kinds}
    _warn_of_no_zeros(values.get("apoz", {}))
    return values


def _warn_of_no_zeros(zeros: dict[str, Tensor]) -> None:
    groups = [name for name, share in zeros.items() if not bool(share.any())]
    if groups:
        shown = ", ".join(groups[:5]) + (", ..." if len(groups) > 5 else "")
        text = (
            f"APoZ counts exact zeros, and {len(groups)} of {len(zeros)} groups have none ({shown}), so their channels all score "
            "alike: there is no ReLU right in front of what reads them; try activation_mean or taylor"
        )
        warnings.warn(text, PrunusWarning, stacklevel=2)
