"""3C: spatial factors, channel factors and channel pruning together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from prunus.allocation import allocate
from prunus.errors import InvalidBudget
from prunus.graph import trace
from prunus.importance import score
from prunus.importance.evidence import DataRun, to_device
from prunus.reconstruction.channel_pruning import prune_channels
from prunus.reconstruction.factorize import Factorisation, factorize, macs_limit
from prunus.reconstruction.layer_fit import POINTS_PER_IMAGE
from prunus.reconstruction.layer_samples import check_repeatable
from prunus.types import Budget, ForwardFn


def three_c(
    model: nn.Module,
    data: Iterable[Any],
    budget: Budget,
    *,
    keep_channels: float = 1 / 1.15,
    keep: Iterable[str] = (),
    relu_aware: bool = True,
    forward_fn: ForwardFn | None = None,
    batches: int | None = None,
    points: int = POINTS_PER_IMAGE,
    seed: int = 0,
) -> Factorisation:
    """Spatial factors, channel factors, channel pruning: He et al.'s combination (ICCV 2017, section 4.1.2, 3C).

    The network is factorised to budget / ``keep_channels`` multiply-adds; then channels between the rows are selected by Lasso
    and the layers refitted (see `prune_channels`) until the budget is met, the same share of every group. Channels inside a
    row, which its ranks settled, stay.

    Args:
        keep_channels: share of the multiply-adds that channel pruning leaves (the released code: 1 / 1.15 of the channels).

    Raises:
        PrunusError: what `factorize`, `prunus.allocate` and `prune_channels` raise.
    """
    if not 0 < keep_channels < 1:
        raise InvalidBudget(f"keep_channels = {keep_channels}: give the share that channel pruning leaves, between 0 and 1")
    run = DataRun(data, forward_fn=forward_fn, batches=batches)
    check_repeatable(run)
    example = run.inputs(to_device(next(iter(run)), model))
    limit = macs_limit(trace(model, example, forward_fn=forward_fn).cost().macs, budget)
    found = factorize(
        model,
        data,
        Budget(macs=max(1, int(limit / keep_channels))),
        keep=keep,
        relu_aware=relu_aware,
        forward_fn=forward_fn,
        batches=batches,
        points=points,
        seed=seed,
    )
    inside = [f"{layer}.{i}.weight" for layer, row in found.rows.items() for i in range(len(row) - 1)]
    graph = trace(found.model, example, forward_fn=forward_fn)
    scores = score(found.model, graph, "max_response")
    held = [g.name for g in graph.prunable if any(m.parameter_axis.parameter in inside for m in g.with_role("writes"))]
    between = {name: values for name, values in scores.by_group.items() if name not in held}
    plan = allocate(graph, replace(scores, by_group=between), Budget(macs=int(limit), tolerance=0.02), "uniform")
    pruned = prune_channels(found.model, graph, plan, data, forward_fn=forward_fn, batches=batches, points=points, seed=seed)
    record = found.record.compose(pruned.record)
    return replace(found, model=pruned.model, record=record, macs=pruned.plan.predicted.macs, plan=pruned.plan)
