"""Sensitivity scan (Li et al. 2016): each group is pruned alone, more and more; its curve of accuracy says how much it bears."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch

from prunus.allocation.widths import GroupWidths, allowed_widths
from prunus.errors import ArtifactError, EvidenceError, InvalidBudget, NothingPruned, UnknownName
from prunus.files import read_json_file
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores

Evaluate: TypeAlias = Callable[[PruningPlan], float]
SHARES = tuple(n / 10 for n in range(1, 10))
A_POINT = 0.01
WHOLE = ""
"""Stands for the group in the point of the unpruned network."""
_FREE = Budget(channels=1.0)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class SensitivityPoint:
    """Accuracy of the network without the ``removed`` lowest-scored of a group's ``channels``, all other groups whole."""

    group: str
    channels: int
    removed: int
    accuracy: float

    @property
    def share(self) -> float:
        """The share that is really removed."""
        return self.removed / self.channels if self.channels else 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields and the share, as `read_points` takes them."""
        return {**asdict(self), "share": self.share}


Points: TypeAlias = "str | Path | Iterable[SensitivityPoint | Mapping[str, Any]]"


def scan_plans(
    graph: ChannelGraph, scores: Scores, shares: Sequence[float] = SHARES, keep: Collection[str] = (), limits: Budget = _FREE
) -> list[PruningPlan]:
    """The plans of a scan: first that of the whole network, then one for every group and number of channels, in network order.

    A share p of n channels is int(p * n) channels, exactly, or fewer where the floors or ``multiple_of`` of ``limits`` say so.
    Shares that come to the same number make one plan, shares that come to none make none.

    Raises:
        InvalidBudget: a share that isn't between 0 and 1.
        NothingPruned: no group can lose a channel.
        UnknownName: a glob in ``keep`` that fits no group.
    """
    if not shares or not all(0 < share < 1 for share in shares):
        raise InvalidBudget(
            f"shares={list(shares)!r}: a scan removes shares of a group's channels, between 0 and 1, e.g. 0.1, 0.5"
        )
    for glob in keep:
        if not any(fnmatchcase(group.name, glob) for group in graph.groups):
            raise UnknownName.among("group in keep", glob, [group.name for group in graph.groups])
    plans = [PruningPlan({}, graph.cost(), {"allocator": "scan"})]
    for group in graph.prunable:
        if group.name not in scores.by_group or any(fnmatchcase(group.name, glob) for glob in keep):
            continue
        widths = allowed_widths(group, scores.by_group[group.name], limits, False)
        wanted = {group.num_channels - math.floor(share * group.num_channels + _ROUNDING) for share in shares}
        left = {min(level for level in widths.levels if level >= channels) for channels in wanted}
        plans += [_plan(graph, widths, channels) for channels in sorted(left - {group.num_channels}, reverse=True)]
    if len(plans) == 1:
        raise NothingPruned(
            f"there is nothing to scan: none of the {len(graph.prunable)} groups that may be pruned can lose one of these shares "
            f"({', '.join(f'{share:.0%}' for share in shares)}); scan larger shares, or lower min_channels, multiple_of or keep"
        )
    return plans


def _plan(graph: ChannelGraph, widths: GroupWidths, channels: int) -> PruningPlan:
    name = widths.group.name
    mask = torch.zeros(widths.group.num_channels, dtype=torch.bool)
    mask[widths.order[:channels]] = True
    return PruningPlan({name: mask}, graph.cost_model.cost({name: channels}), {"allocator": "scan"})


def scan(
    graph: ChannelGraph,
    scores: Scores,
    evaluate: Evaluate,
    shares: Sequence[float] = SHARES,
    *,
    known: Iterable[SensitivityPoint] = (),
    keep: Collection[str] = (),
    limits: Budget = _FREE,
    finished: Callable[[SensitivityPoint], None] = lambda _: None,
) -> tuple[SensitivityPoint, ...]:
    """Accuracy of the whole network and of each group pruned alone, without retraining (Li et al. 2016, section 3.3).

    Args:
        evaluate: plan -> accuracy, higher = better; called for the plans of `scan_plans` in their order.
        shares: of each group's channels, lowest scores first.
        known: points of an earlier scan by the same scores, which are not evaluated again.
        keep: names of groups, or globs, that aren't scanned.
        limits: its ``min_channels``, ``multiple_of`` and ``max_pruning_ratio`` hold; its targets mean nothing here.
        finished: gets every point as soon as it is evaluated, to be stored.

    Returns:
        Points of all plans, also the known ones; first that of the whole network, whose group is `WHOLE`.

    Raises:
        EvidenceError: ``evaluate`` gives no finite number, or ``known`` is of another network.
        PrunusError: what `scan_plans` and ``evaluate`` raise.
    """
    found = {(point.group, point.removed): point for point in check_points(known, graph)}
    points: list[SensitivityPoint] = []
    for plan in scan_plans(graph, scores, shares, keep, limits):
        name = next(iter(plan.keep), WHOLE)
        point = found.get((name, plan.num_removed))
        if point is None:
            point = SensitivityPoint(name, _channels(graph, name), plan.num_removed, float(evaluate(plan)))
            if not math.isfinite(point.accuracy):
                raise EvidenceError(
                    f"the accuracy of {_named(point)} is {point.accuracy}: no drop can be told from it. "
                    "Hand in an evaluate that returns a finite number, higher = better"
                )
            finished(point)
        points.append(point)
    return tuple(points)


def _channels(graph: ChannelGraph, name: str) -> int:
    return graph.num_prunable_channels if name == WHOLE else graph[name].num_channels


def _named(point: SensitivityPoint) -> str:
    return "the whole network" if point.group == WHOLE else f"the network without {point.removed} channels of `{point.group}`"


def check_points(points: Iterable[SensitivityPoint], graph: ChannelGraph) -> list[SensitivityPoint]:
    """The points themselves; `EvidenceError` if one's group isn't in the graph, with as many channels."""
    sizes = {group.name: group.num_channels for group in graph.groups}
    listed = list(points)
    for point in listed:
        if point.group != WHOLE and sizes.get(point.group) != point.channels:
            has = f"has {sizes[point.group]}" if point.group in sizes else "has no such group"
            raise EvidenceError(
                f"these points of a scan are of another network: they know {point.channels} channels of `{point.group}`, "
                f"this one {has}; scan this network with `prunus sensitivity`"
            )
    return listed


def drops(points: Iterable[SensitivityPoint]) -> dict[str, list[tuple[SensitivityPoint, float]]]:
    """Group -> its points by growing share, each with its drop of accuracy against the whole network (below zero: it gained).

    Raises:
        EvidenceError: the point of the whole network is missing.
    """
    listed = list(points)
    whole = next((point.accuracy for point in listed if point.group == WHOLE), None)
    if whole is None:
        raise EvidenceError(
            f"the points of the scan lack the accuracy of the whole network (group {WHOLE!r}), from which drops are counted: "
            "give all points of a finished scan"
        )
    curves: dict[str, list[tuple[SensitivityPoint, float]]] = {}
    for point in sorted((p for p in listed if p.group != WHOLE), key=lambda p: p.removed):
        curves.setdefault(point.group, []).append((point, whole - point.accuracy))
    return curves


def largest_shares(points: Iterable[SensitivityPoint], epsilon: float = A_POINT) -> dict[str, SensitivityPoint | None]:
    """Group -> the scanned point of the largest share whose accuracy drops by at most ``epsilon``; None where there is none."""
    allowed = {name: [point for point, drop in curve if drop <= epsilon + _ROUNDING] for name, curve in drops(points).items()}
    return {name: max(found, key=lambda point: point.removed, default=None) for name, found in allowed.items()}


def read_points(points: Points) -> tuple[tuple[SensitivityPoint, ...], str | None]:
    """Points as they are, or of a ``sensitivity.json``; with the criterion that file was scanned by.

    Raises:
        ArtifactError: the file can't be read, or holds something else.
        EvidenceError: a point lacks a field.
    """
    criterion = None
    if isinstance(points, str | Path):
        try:
            tree = read_json_file(Path(points))
            points, criterion = list(tree["points"]), str(tree["criterion"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"can't read the points of a scan from {points} ({type(error).__name__}: {error}): "
                "give the sensitivity.json that `prunus sensitivity` wrote"
            ) from None
    return tuple(_read(point) for point in cast("Iterable[Any]", points)), criterion


def _read(point: Any) -> SensitivityPoint:
    if isinstance(point, SensitivityPoint):
        return point
    try:
        read = SensitivityPoint(str(point["group"]), int(point["channels"]), int(point["removed"]), float(point["accuracy"]))
        if not (0 <= read.removed <= read.channels and math.isfinite(read.accuracy)):
            raise ValueError("numbers out of range")
        return read
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EvidenceError(
            f"{str(point)[:200]} is no point of a scan ({type(error).__name__}: {error}): it has group, channels, removed and "
            "accuracy"
        ) from None
