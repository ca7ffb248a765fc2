"""He et al.'s channel pruning as a whole: select a layer's inputs, refit the layer, go on to the next."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from prunus.errors import NothingPruned, UnknownName, UnsupportedNetwork, VerificationFailed
from prunus.graph.build import fingerprint
from prunus.graph.labels import named_tensors
from prunus.importance import CRITERIA, score
from prunus.importance.evidence import DataRun, to_device
from prunus.importance.readers import Reading, reading_members, readings
from prunus.reconstruction.lasso_selection import SLACK, LassoProblem, alternate
from prunus.reconstruction.layer_fit import POINTS_PER_IMAGE, LayerFit, gather, refit_layer
from prunus.reconstruction.layer_samples import check_repeatable
from prunus.reconstruction.layer_sites import Site, find_sites
from prunus.reconstruction.normal_equations import NormalEquations
from prunus.reconstruction.original import Original
from prunus.reconstruction.regression import ReconstructionReport, fittable
from prunus.surgery import SurgeryRecord, remove, silence, verify
from prunus.types import ChannelGraph, ForwardFn, PruningPlan, Scores

Selection: TypeAlias = "Literal['lasso', 'lasso_alternating'] | str | Scores"


@dataclass(frozen=True, eq=False)
class ChannelPruning:
    """The small network, how it was made, which channels stay, and every layer's error before and after its re-fit."""

    model: nn.Module
    record: SurgeryRecord
    plan: PruningPlan
    report: ReconstructionReport


def prune_channels(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    data: Iterable[Any],
    selection: Selection = "lasso",
    *,
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
    up to 10 % channels more that its search leaves, the weakest go, so that the plan's widths hold; a residual stream is selected
    once, for all that read it (the paper samples it anew in front of every branch).

    Args:
        plan: from `prunus.allocate`; its numbers of channels are kept.
        data: batches ``(inputs, targets)`` or inputs alone: a loader or a list.
        selection: ``"lasso"``: once, on the layer's own weights, as released; ``"lasso_alternating"``: selection and re-fit in
            turn until the selection stays, as written in the paper; the name of a criterion that needs no data (the paper's
            baselines are ``first_k`` and ``max_response``), or scores.
        behind_relu: as in `reconstruct`.
        refit: off: channels are selected and removed, and nothing else is changed.
        skip: weights or globs over them that aren't refitted.
        slack: of the search for the penalty.

    Raises:
        NothingPruned: the plan removes no channel.
        UnknownName: the plan names an unknown or frozen group, or there is no such selection.
        EvidenceError, UnsupportedNetwork: as `reconstruct`.
        VerificationFailed: the small network isn't the silenced one.
    """
    if fingerprint(model) != graph.fingerprint:
        raise UnsupportedNetwork("the model's parameters don't have the names and shapes of the traced one: trace it again")
    if plan.num_removed == 0:
        raise NothingPruned("the plan removes no channel: lower the budget")
    run = DataRun(data, forward_fn=forward_fn, batches=batches)
    check_repeatable(run)
    scores = selection if isinstance(selection, Scores) else _scores(model, graph, selection)
    fits: list[LayerFit] = []
    with Original(model, run, points, seed) as original:
        work = _Work(original, graph, plan)
        sites = find_sites(work.small, work.example, forward_fn)
        fitted, not_fitted = fittable(work.small, sites, tuple(skip))
        to_fit = {site.weight for site in fitted} if refit else set[str]()
        layers = {site.weight: site for site in fittable(work.small, sites)[0]}
        original.remember({name: site for name, site in layers.items() if scores is None or name in to_fit})
        for name in layers:
            for group in work.first_read_by(name):
                work.remove(
                    group, work.select(group, selection, slack) if scores is None else _best(scores, group, work.count(group))
                )
            if name in to_fit:
                fits.append(refit_layer(work.small, original, work.site(name), work.record, ridge=ridge, behind_relu=behind_relu))
                work.write_back(name)
                if on_layer is not None:
                    on_layer(fits[-1])
    for group in [name for name, keep in plan.keep.items() if name not in work.keep and not bool(keep.all())]:
        work.remove(group, plan.keep[group])  # no convolution or linear layer reads it through a plain weight
    final = work.plan()
    checked = verify(silence(work.model, graph, final), work.small, work.example, forward_fn=forward_fn)
    if not checked.passed:
        raise VerificationFailed(f"channel pruning gave a network that isn't the silenced one: {checked.detail}", checked)
    return ChannelPruning(work.small, work.record, final, ReconstructionReport(tuple(fits), not_fitted))


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


class _Work:
    """The network at full size with the weights as they are refitted, and what is left of it so far."""

    def __init__(self, original: Original, graph: ChannelGraph, plan: PruningPlan) -> None:
        self.original, self.graph, self._plan = original, graph, plan
        self._run, model = original.run, original.model
        self.model = copy.deepcopy(model)
        self.keep: dict[str, Tensor] = {}
        self.small, self.record = self.model, SurgeryRecord.nothing_removed(model)
        self.example: Any = self._run.inputs(to_device(next(iter(self._run)), model))
        names = {id(tensor): name for name, tensor in named_tensors(model)}
        self._reads: dict[str, dict[str, Reading]] = {}
        for group, members in reading_members(model, graph).items():
            along_inputs = [member for member in members if member.parameter_axis.axis == 1]
            self._reads[group] = {names[weight]: reading for weight, reading in readings(model, along_inputs).items()}

    def count(self, group: str) -> int:
        """Channels of a group that stay."""
        return int(self._plan.keep[group].sum())

    def first_read_by(self, weight: str) -> list[str]:
        """Groups that lose channels, aren't selected yet, and are read through this weight."""
        waiting = [name for name, keep in self._plan.keep.items() if name not in self.keep and not bool(keep.all())]
        return [name for name in waiting if weight in self._reads.get(name, {})]

    def plan(self) -> PruningPlan:
        """What has been selected so far."""
        counts = {name: int(keep.sum()) for name, keep in self.keep.items()}
        return PruningPlan(self.keep, self.graph.cost_model.cost(counts), self._plan.provenance)

    def remove(self, group: str, keep: Tensor) -> None:
        """Take channels of one more group out of the small network."""
        self.keep = {**self.keep, group: keep}
        self.small, self.record = remove(self.model, self.graph, self.plan())

    def site(self, weight: str) -> Site:
        """The layer of this weight as it is now."""
        return find_sites(self.small, self.example, self._run.forward_fn)[weight]

    @torch.no_grad()
    def select(self, group: str, selection: Selection, slack: float) -> Tensor:
        """The Lasso's choice: bool (num_channels,)."""
        sites = find_sites(self.small, self.example, self._run.forward_fn)
        chosen, _ = fittable(self.small, sites)
        tensors = dict(named_tensors(self.small))
        problems: list[tuple[NormalEquations, Tensor, Tensor, Tensor]] = []
        for site in chosen:
            if site.weight in self._reads[group]:
                fitting, held = gather(self.small, self.original, site, self.record)
                groups = fitting.xx.shape[0]
                weight = tensors[site.weight].detach()
                weight = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
                bias = tensors[site.bias] if site.bias is not None else weight.new_zeros(weight.shape[:2])
                at = self._now_at(site.weight, self._reads[group][site.weight].positions)
                problems.append((fitting.plus(held), weight, bias.detach().reshape(weight.shape[:2]), at))
        channels, count = len(self._plan.keep[group]), self.count(group)
        if selection == "lasso_alternating":
            return alternate(problems, channels, count, slack)
        problem = LassoProblem(channels)
        for given in problems:
            problem.add(*given)
        return problem.select(count, slack)

    def _now_at(self, weight: str, positions: Tensor) -> Tensor:
        """Where these inputs of the full-size weight are in the small network's."""
        kept = self.record.kept.get(weight, {}).get(1)
        if kept is None:
            return positions
        return torch.searchsorted(kept, positions)  # none of them is removed yet

    @torch.no_grad()
    def write_back(self, weight: str) -> None:
        """Put a layer of the small network, as it is now, into the full-size one."""
        now, full = dict(named_tensors(self.small)), dict(named_tensors(self.model))
        site = self.site(weight)
        for name in dict.fromkeys((weight, *(outlet.parameter for outlet in site.layer.outlets))):
            put_at(full[name], now[name], self.record.kept.get(name, {}))


def put_at(tensor: Tensor, values: Tensor, axes: Mapping[int, Tensor]) -> None:
    """Write ``values`` into the entries of ``tensor`` that ``axes`` (axis -> indices kept) left of it, in place."""
    if values is tensor:
        return
    index = [axes.get(axis, torch.arange(size)).to(tensor.device) for axis, size in enumerate(tensor.shape)]
    tensor[torch.meshgrid(*index, indexing="ij")] = values
