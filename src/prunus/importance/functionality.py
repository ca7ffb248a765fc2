"""Functionality: channels that prefer the same pattern repeat each other; of such a cluster the strongest stay."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import EvidenceError
from prunus.graph.as_found import as_found
from prunus.graph.group_view import GroupView
from prunus.importance.evidence import DataRun, Evidence
from prunus.importance.evidence_gradients import gradient_means
from prunus.importance.functionality_patterns import Ascent, PatternSearch
from prunus.importance.row import Number
from prunus.types import ChannelGraph

CONTRIBUTION_WEIGHT = 1e-9
"""Of the contribution beside the share in the cluster: it orders equal shares and never outweighs different ones."""
MOST_NUMBERS = 24
"""So many numbers of clusters are compared at most, evenly spaced on a logarithmic scale."""
SAME = 1e-9
"""Patterns no farther apart than this (one minus their cosine) are one pattern."""
SAME_RESPONSE = 1e-5
"""A channel whose responses to all patterns spread less than this share of the largest tells none from another."""
_RESTARTS = 4


@dataclass(frozen=True)
class ClusterNumber(Number):
    """The values of the option ``clusters``: auto, or a whole number."""

    def __contains__(self, value: object) -> bool:
        return value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)

    def __str__(self) -> str:
        return "auto, or a whole number from 1 up"


CLUSTERS = ClusterNumber()


def functionality(view: GroupView, evidence: Evidence, *, clusters: int | str = "auto", by: str = "responses") -> Tensor | None:
    """Share of its cluster that the channel's contribution exceeds: channels that repeat another's preferred pattern go first.

    Qin et al., BMVC 2019, of which only the abstract was at hand: the whole formula is a reconstruction. (1) A channel's
    preferred pattern is found by activation maximisation (`preferred_patterns`). (2) The group's patterns are clustered by
    k-means on vectors of length one, so by cosine; k is ``clusters``, or has the best silhouette (``auto``). The vectors are the
    responses of the group's channels to a pattern (`response_profiles`); with ``by="images"`` the patterns themselves, of which
    the start noise decides much: on digits (benchmarks/functionality.py) a channel's pattern from another seed lay nearest to its
    own in 3 of 10 cases, its profile in all. (3) The contribution is the mean over examples and positions of
    abs(d log P(y_n) / dA), A the activation where it is read and P the probability of the true class: minus its logarithm is the
    cross entropy, and any ``loss_fn`` takes its place. (4) The channel with the j-th lowest contribution of a cluster of m scores

        j / m + 1e-9 * contribution / the group's largest contribution     in (0, 1 + 1e-9]

    so that for any pruning ratio r < 1 the lowest floor(r * m) of every cluster score at most r (but for the 1e-9). The
    strongest of a cluster, and a channel that is alone in one, score 1 and go last, by contribution. Scores are pruning ratios
    and so on one scale over all groups. Both patterns and clusters depend on the seed.

    When to use: where a layer has many channels that answer to the same pattern, and to look at what each of them prefers.
    Dear: the patterns take forty forward and backward passes of an image for every channel.
    """
    found = evidence.of("preferences", view.group)
    if found is None:
        return None
    return scores_in_clusters(found[:, 0], preference_clusters(found, clusters, by, evidence.seed))


def preference_clusters(found: Tensor, clusters: int | str = "auto", by: str = "responses", seed: int = 0) -> Tensor:
    """Clusters of the channels of a group, int64 (num_channels,), from its evidence (see `preferences`)."""
    patterns = found[:, 1 + len(found) :]
    if by == "images":
        return pattern_clusters(patterns, clusters, seed)
    return pattern_clusters(response_profiles(found[:, 1 : 1 + len(found)], patterns.any(1)), clusters, seed)


def response_profiles(responses: Tensor, awake: Tensor) -> Tensor:
    """Which channels each pattern excites more than others do: float64 (num_channels, num_channels), a row for each pattern.

    Args:
        responses: (num_channels, num_channels) of the channels (columns) to the patterns (rows). Each column is centred and
            divided by its standard deviation over the patterns of channels that are ``awake``, bool (num_channels,).

    Rows of channels that aren't awake are zeros; a single one that is awake keeps a row of ones.
    """
    found = torch.zeros_like(responses, dtype=torch.float64)
    live = responses[awake].double()
    if len(live):
        deviation, mean = torch.std_mean(live, 0, correction=0)
        spread = deviation > SAME_RESPONSE * live.abs().amax(0)
        found[awake] = torch.where(spread, (live - mean) / torch.where(spread, deviation, torch.ones_like(deviation)), 0.0)
        found[awake] += (~spread.any()).double()  # all patterns alike: one direction, not the silent channels' none
    return found


def scores_in_clusters(contributions: Tensor, clusters: Tensor) -> Tensor:
    """The score that `functionality` describes, float64 (num_channels,), from contributions and cluster numbers, both as long.

    Of equal contributions the channel of the lower index counts as the lower.
    """
    contributions = contributions.double()
    order = contributions.argsort(stable=True)
    order = order[clusters[order].argsort(stable=True)]
    sizes = torch.bincount(clusters)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(clusters)
    rank[order] = torch.arange(len(clusters)) - starts[clusters[order]]
    largest = contributions.max() if float(contributions.max()) > 0 else contributions.new_ones(())
    return (rank + 1).double() / sizes[clusters] + CONTRIBUTION_WEIGHT * contributions / largest


def pattern_clusters(patterns: Tensor, clusters: int | str = "auto", seed: int = 0) -> Tensor:
    """Clusters of patterns by k-means on their directions: int64 (num_channels,), numbered as they first occur.

    Args:
        patterns: (num_channels, ...), or their profiles. Those of zeros (of channels that nothing wakes) are a cluster of their
            own beside the others.
        clusters: their number, or ``"auto"``: of at most `MOST_NUMBERS` the one with the best mean silhouette (Rousseeuw 1987;
            one minus the cosine as distance), against every pattern on its own, whose silhouette is zero.
        seed: of the centres that k-means starts from.

    Raises:
        EvidenceError: scikit-learn isn't installed.
    """
    points = coordinates(patterns)
    lengths = torch.linalg.vector_norm(points, dim=1)
    live = (lengths > 0).nonzero()[:, 0]
    labels = np.zeros(len(points), dtype=np.int64)  # 0: the silent ones
    if len(live):
        unit = points[live] / lengths[live].unsqueeze(1)
        cosines = unit @ unit.T
        # k-means starts from points by their order: one that follows the channels keeps clusters when channels are permuted.
        order = cosines.sum(1).argsort()
        distances = (1 - cosines[order][:, order]).clamp_min(0).fill_diagonal_(0).numpy()
        labels[live[order].numpy()] = 1 + _clustered(unit[order].numpy(), distances, clusters, seed)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return torch.from_numpy(first.argsort().argsort()[inverse])


def coordinates(patterns: Tensor) -> Tensor:
    """Patterns as float64 (num_channels, d) with all lengths and angles as they are, d no larger than num_channels."""
    flat = patterns.flatten(1).cpu().double()
    return flat if flat.shape[1] <= len(flat) else torch.linalg.qr(flat.T, mode="r").R.T


def _clustered(points: Any, distances: Any, clusters: int | str, seed: int) -> Any:
    """Cluster numbers of points (n, d) of length one with these distances (n, n)."""
    if distances.max() <= SAME:
        return np.zeros(len(points), dtype=np.int64)
    if clusters != "auto":
        return _k_means(points, min(int(clusters), len(points)), seed)
    try:
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise _missing() from error
    best, labels = 0.0, np.arange(len(points))
    for number in _numbers(len(points)):
        found = _k_means(points, number, seed)
        if 1 < len(np.unique(found)) < len(points):
            value = float(silhouette_score(distances, found, metric="precomputed"))
            best, labels = (value, found) if value > best else (best, labels)
    return labels


def _numbers(points: int) -> list[int]:
    if points < 3:
        return []
    return sorted({round(float(number)) for number in np.geomspace(2, points - 1, MOST_NUMBERS)})


def _k_means(points: Any, number: int, seed: int) -> Any:
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise _missing() from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than clusters: some stay empty
        means = KMeans(number, n_init=_RESTARTS, random_state=seed % 2**32)  # pyright: ignore[reportArgumentType]
        return means.fit_predict(points).astype(np.int64)


def _missing() -> EvidenceError:
    return EvidenceError("the functionality criterion needs scikit-learn: pip install 'prunus[all]'")


def preferences(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Contributions and preferred patterns: group name -> float64 (num_channels, 1 + num_channels + d), a row for each channel.

    The first column is the contribution, the mean of abs(dL/dactivation) with L each example's own loss; then come the mean
    responses of the group's channels to the channel's pattern, and the pattern's `coordinates`. All batches are used for
    contributions; the first gives the patterns' shape and scale.

    Raises:
        EvidenceError: the data are empty, a loss or activation isn't finite, or there is no image to change among the inputs.
    """
    first: list[Any] = []

    def batches() -> Iterator[Any]:
        for batch in run.data:
            if not first:
                first.append(batch)
            yield batch

    contributions = gradient_means(model, graph, replace(run, data=batches()))
    found: dict[str, Tensor] = {}
    with as_found(model):
        search = PatternSearch(model, graph, run.inputs(first[0]), run.seed, Ascent(), run.forward_fn)
        for name, values in contributions.items():
            patterns = search.patterns(name)
            if patterns is not None:
                columns = [values.unsqueeze(1), search.responses(name, patterns), coordinates(patterns)]
                found[name] = torch.cat([column.cpu().double() for column in columns], dim=1)
    return found
