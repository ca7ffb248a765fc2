"""He et al.'s channel pruning as a whole: select a layer's inputs, refit the layer, go on to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import NothingPruned, UnknownName, UnsupportedNetwork, VerificationFailed
from prunus.graph import trace
from prunus.graph.build import fingerprint
from prunus.importance import CRITERIA, score
from prunus.importance.evidence import DataRun
from prunus.reconstruction.branch_inputs import inputs_kept
from prunus.reconstruction.lasso_selection import SLACK
from prunus.reconstruction.layer_fit import POINTS_PER_IMAGE, LayerFit, refit_layer
from prunus.reconstruction.layer_samples import check_repeatable
from prunus.reconstruction.layer_sites import Site, find_sites
from prunus.reconstruction.original import Original
from prunus.reconstruction.partly_pruned import PartlyPruned, Selection
from prunus.reconstruction.regression import ReconstructionReport, fittable
from prunus.surgery import SurgeryRecord, silence, verify
from prunus.types import ChannelGraph, ForwardFn, PruningPlan, Scores


@dataclass(frozen=True, eq=False)
class ChannelPruning:
    """The small network, how it was made, which channels stay, and every layer's error before and after its re-fit.

    ``branch_inputs``: layer -> which inputs of the full-size layer it reads, int64, for layers that select their inputs;
    ``macs``: multiply-adds of one input with that counted, which ``plan.predicted`` doesn't.
    """

    model: nn.Module
    record: SurgeryRecord
    plan: PruningPlan
    report: ReconstructionReport
    branch_inputs: Mapping[str, Tensor]
    macs: float


def prune_channels(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    data: Iterable[Any],
    selection: Selection = "lasso",
    *,
    branch_inputs: float | Mapping[str, float] = 1.0,
    refit: bool = True,
    skip: Iterable[str] = (),
    forward_fn: ForwardFn | None = None,
    batches: int | None = None,
    points: int = POINTS_PER_IMAGE,
    ridge: float | None = None,
    behind_relu: bool = False,
    slack: float = SLACK,
    seed: int = 0,
    on_layer: Callable[[LayerFit], None] | None = None,
) -> ChannelPruning:
    """Channel pruning by selection and reconstruction, layer by layer from front to back.

    He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017. At the first layer that reads a
    group the channels that stay are chosen: those by which a Lasso explains best what all its readers gave in the original
    network. They are removed, the layer is refitted to the original's output (see `reconstruct`), and the next one follows, which
    reads what the pruned and refitted layers give. How many channels stay in each group, ``plan`` says; which, is decided here.

    Departures: all points and outputs make up the regression (the released code draws 400 points), by their sums alone; of the
    up to 10 % channels more that its search leaves, the weakest go, so that the plan's widths hold; channels of a residual stream
    that ``plan`` removes are selected once, for all that read it.

    Args:
        plan: from `prunus.allocate`; its numbers of channels are kept.
        data: batches ``(inputs, targets)`` or inputs alone: a loader or a list.
        selection: ``"lasso"``: once, on the layer's own weights, as released; ``"lasso_alternating"``: selection and re-fit in
            turn until the selection stays, as written in the paper; the name of a criterion that needs no data (the paper's
            baselines are ``first_k`` and ``max_response``), or scores.
        branch_inputs: the sampler of the paper's section 3.3. The first layer of a residual branch can't have the stream narrowed
            that others read, too, but it can read some of its channels only: this share of them, selected by a Lasso for that
            layer alone, behind an index (see `prunus.surgery.select_inputs`). A number is for all branches (see
            `prunus.reconstruction.branch_inputs.beginning_branches`), a table for layers or globs over them. ``plan`` and its
            budget know nothing of it; it may be a plan that removes nothing.
        behind_relu: as in `reconstruct`.
        refit: off: channels are selected and removed, and nothing else is changed.
        skip: weights or globs over them that aren't refitted.
        slack: of the search for the penalty.

    Raises:
        NothingPruned: the plan removes no channel, and no branch is given fewer inputs.
        InvalidBudget: a share in ``branch_inputs`` isn't above 0 and up to 1.
        UnknownName: the plan names an unknown or frozen group, or there is no such selection.
        EvidenceError, UnsupportedNetwork: as `reconstruct`.
        VerificationFailed: the small network isn't the silenced one.
    """
    if fingerprint(model) != graph.fingerprint:
        raise UnsupportedNetwork("the model's parameters don't have the names and shapes of the traced one: trace it again")
    shares = inputs_kept(model, graph, branch_inputs)
    if plan.num_removed == 0 and not shares:
        raise NothingPruned("the plan removes no channel: lower the budget")
    run = DataRun(data, forward_fn=forward_fn, batches=batches)
    check_repeatable(run)
    scores = selection if isinstance(selection, Scores) else _scores(model, graph, selection)
    fits: list[LayerFit] = []
    with Original(model, run, points, seed) as original:
        work = PartlyPruned(original, graph, plan)
        sites = find_sites(work.small, work.example, forward_fn)
        fitted, not_fitted = fittable(work.small, sites, tuple(skip))
        to_fit = {site.weight for site in fitted} if refit else set[str]()
        layers = {site.weight: site for site in fittable(work.small, sites)[0]}
        _check_sampled(shares, layers, not_fitted)
        looked_at = to_fit | {f"{name}.weight" for name in shares}
        original.remember({name: site for name, site in layers.items() if scores is None or name in looked_at})
        for name in layers:
            for group in work.first_read_by(name):
                work.remove(
                    group, work.select(group, selection, slack) if scores is None else _best(scores, group, work.count(group))
                )
            if (share := shares.get(name.removesuffix(".weight"))) is not None:
                work.sample(name, share, selection, slack)
            if name in to_fit:
                fits.append(refit_layer(work.small, original, work.site(name), work.record, ridge=ridge, behind_relu=behind_relu))
                work.write_back(name)
                if on_layer is not None:
                    on_layer(fits[-1])
    for group in [name for name, keep in plan.keep.items() if name not in work.keep and not bool(keep.all())]:
        work.remove(group, plan.keep[group])  # no convolution or linear layer reads it through a plain weight
    final = work.plan()
    checked = verify(silence(work.without_unsampled(), graph, final), work.small, work.example, forward_fn=forward_fn)
    if not checked.passed:
        raise VerificationFailed(f"channel pruning gave a network that isn't the silenced one: {checked.detail}", checked)
    macs = trace(work.small, work.example, forward_fn=forward_fn).cost().macs if work.sampled else final.predicted.macs
    sampled = {name.removesuffix(".weight"): inputs for name, inputs in work.sampled.items()}
    return ChannelPruning(work.small, work.record, final, ReconstructionReport(tuple(fits), not_fitted), sampled, macs)


def _check_sampled(shares: Mapping[str, float], layers: Mapping[str, Site], not_fitted: Mapping[str, str]) -> None:
    """Refuse to select inputs of layers that can't be looked at."""
    for name in shares:
        if f"{name}.weight" not in layers:
            why = not_fitted.get(f"{name}.weight", "its weight is used in another way, too, or not on the first batch")
            raise UnsupportedNetwork(f"the inputs of `{name}` can't be selected: {why}; leave it out of branch_inputs")


def _scores(model: nn.Module, graph: ChannelGraph, selection: str) -> Scores | None:
    """Scores of a criterion without data, by the unpruned network's weights; None for the Lasso."""
    if selection in ("lasso", "lasso_alternating"):
        return None
    row = CRITERIA.get(selection)
    if row is None or row.needs:
        free = [name for name, row in CRITERIA.items() if not row.needs]
        raise UnknownName.among(
            "selection (a Lasso, or a criterion without data)", selection, ["lasso", "lasso_alternating", *free]
        )
    return score(model, graph, selection)


def _best(scores: Scores, group: str, count: int) -> Tensor:
    """The channels of highest score: bool (num_channels,)."""
    if group not in scores.by_group:
        raise UnknownName.among("group in the scores", group, scores.by_group)
    values = scores.by_group[group]
    keep = torch.zeros(len(values), dtype=torch.bool)
    keep[values.argsort(descending=True, stable=True)[:count]] = True
    return keep
