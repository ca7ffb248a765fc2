"""`score`: from a network, its graph, a criterion and, where it needs them, data to the importance of every channel."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import EvidenceError, NothingPruned, PrunusWarning, UnknownName
from prunus.graph.group_view import GroupView
from prunus.graph.labels import named_tensors
from prunus.importance.collectors import COLLECTORS, collect
from prunus.importance.combine import moving_average
from prunus.importance.criteria import resolve_criterion
from prunus.importance.evidence import DataRun, Evidence
from prunus.importance.greedy import RemainingWeights
from prunus.importance.row import CriterionRow
from prunus.types import ChannelGraph, Criterion, ForwardFn, LossFn, PruningPlan, Scores
from prunus.wrapping import refuse_wrapped


def score(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str | Criterion = "taylor",
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    *,
    forward_fn: ForwardFn | None = None,
    batches: int | None = None,
    seed: int = 0,
    removed: PruningPlan | None = None,
    previous: Scores | None = None,
    momentum: float = 0.9,
    **options: Any,
) -> Scores:
    """Importance of every channel of every prunable group, higher = keep. The model is left as found.

    Where several processes run (torchrun, accelerate launch), call it in all of them with the same data, not with shares of it:
    the oracle splits its channels over the processes, means over data (taylor, apoz) are collected by each on a part of the
    minibatches, anything else is computed in each, and all get the same scores.

    Args:
        criterion: a name from `CRITERIA`, a weighted sum such as ``"l1 + 0.5*taylor"``, or your own `Criterion`.
        data: batches ``(inputs, targets)``, only where the criterion needs data; ``batches`` limits how many are used.
        loss_fn: ``loss_fn(output, batch)``, a mean over the batch; cross entropy where none is given.
        seed: of criteria that draw.
        removed: with ``greedy=True``, the plan whose channels count as removed from the inputs of a filter.
        previous: scores of the pruning step before (`kept` by its plan); ``momentum`` is their share of the result.
        options: of the criterion, e.g. ``per_example=True`` for taylor. Every criterion takes ``normalisation`` (none, mean,
            max, l2 or rank within each group: scores of different groups are then comparable) and ``macs_penalty``, taken off
            the score for each million multiply-adds that go with the channel, after normalisation; magnitude criteria take
            ``layer_adaptive=True``; those with several members to a group take ``members`` (mean, sum, max, l2); l1, l2 and
            max_response take ``greedy``: a share of every earlier group whose lowest channels count as removed, or True.

    Raises:
        UnknownName: no such criterion, option or evidence.
        EvidenceError: data are missing, empty, or give a non-finite loss or score.
        NothingPruned: the criterion can't score any group.
        UnsupportedNetwork: the model is wrapped or divided (DDP, FSDP).
    """
    refuse_wrapped(model)
    row = resolve_criterion(criterion, options)
    evidence = Evidence(seed=seed)
    if row.needs:
        evidence = Evidence(_collected(model, graph, row, data, loss_fn, forward_fn, batches, seed), seed)
    by_group = _plain_scores(model, graph, row, evidence, removed)
    _check_scored(graph, by_group, row.name)
    if isinstance(row, CriterionRow):
        if row.doubt is not None and by_group and (doubt := row.doubt(by_group)):
            warnings.warn(f"criterion {row.name}: {doubt}", PrunusWarning, stacklevel=2)
        by_group = {name: row.on_scale(v) - row.macs_penalty * _millions_freed(graph, row, name) for name, v in by_group.items()}
    scores = Scores(by_group, row.name, bool(getattr(row, "comparable", False)))
    return scores if previous is None else moving_average(scores, previous, momentum)


def _plain_scores(
    model: nn.Module, graph: ChannelGraph, row: CriterionRow | Criterion, evidence: Evidence, removed: PruningPlan | None
) -> dict[str, Tensor]:
    """Scores before any normalisation, float64 on the CPU: group name -> (num_channels,)."""
    own = isinstance(row, CriterionRow)
    # Matrices may be views of the weights: a user's criterion gets copies, so that writing into them does no harm.
    tensors = {name: tensor if own else tensor.detach().clone() for name, tensor in named_tensors(model)}
    remaining = RemainingWeights(tensors, graph, row.greedy if isinstance(row, CriterionRow) else False, removed)
    by_group: dict[str, Tensor] = {}
    with torch.no_grad():
        for group in graph.prunable:
            view = GroupView(group, remaining.tensors, graph.norms)
            values = row.plain_score(view, evidence) if isinstance(row, CriterionRow) else row.score(view, evidence)
            if values is not None:
                by_group[group.name] = _checked(values, group.name, group.num_channels, row.name)
                remaining.after(group, by_group[group.name])
    return by_group


def _millions_freed(graph: ChannelGraph, row: CriterionRow, name: str) -> float:
    """Million multiply-adds that go with one channel of a group: those that write it and those that read it."""
    if not row.macs_penalty:
        return 0.0
    return (graph.cost().macs - graph.cost_model.cost({name: graph[name].num_channels - 1}).macs) / 1e6


def _collected(
    model: nn.Module,
    graph: ChannelGraph,
    row: CriterionRow | Criterion,
    data: Iterable[Any] | None,
    loss_fn: LossFn | None,
    forward_fn: ForwardFn | None,
    batches: int | None,
    seed: int,
) -> dict[str, dict[str, Tensor]]:
    """Every kind of evidence that the criterion needs: kind -> group name -> (num_channels,)."""
    if data is None:
        raise EvidenceError(f"criterion {row.name} needs data: pass data=loader, which yields (inputs, targets)")
    for kind in sorted(row.needs - COLLECTORS.keys()):
        raise UnknownName.among("kind of evidence", kind, COLLECTORS)
    return collect(row.needs, model, graph, DataRun(data, loss_fn, forward_fn, batches, seed))


def _check_scored(graph: ChannelGraph, by_group: Mapping[str, Tensor], criterion: str) -> None:
    """Refuse scores of no group, warn where some groups have none."""
    unscored = [g.name for g in graph.prunable if g.name not in by_group]
    if graph.prunable and not by_group:
        raise NothingPruned(
            f"criterion {criterion} can score none of the {len(unscored)} groups "
            "(bn_scale needs norm layers, taylor needs weights that read, feature_map_rank needs maps)"
        )
    if unscored:
        shown = ", ".join(unscored[:5]) + (", ..." if len(unscored) > 5 else "")
        text = f"criterion {criterion} says nothing about {len(unscored)} of {len(graph.prunable)} groups, kept whole: {shown}"
        warnings.warn(text, PrunusWarning, stacklevel=3)


def _checked(values: Tensor, group: str, num_channels: int, criterion: str) -> Tensor:
    values = values.detach().to("cpu", torch.float64)
    if values.shape != (num_channels,):
        shape = tuple(values.shape)
        raise EvidenceError(f"criterion {criterion} gave {shape} scores for group `{group}`, which has {num_channels} channels")
    if not bool(torch.isfinite(values).all()):
        raise EvidenceError(f"criterion {criterion} gave a non-finite score in group `{group}`: check the weights and the data")
    return values
