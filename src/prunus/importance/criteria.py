"""The table of criteria, and `score`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from prunus.errors import EvidenceError, NothingPruned, PrunusWarning, UnknownName
from prunus.graph.group_view import GroupView
from prunus.graph.labels import named_tensors
from prunus.importance import gradients, weights
from prunus.importance.evidence import COLLECTORS, DataRun, Evidence
from prunus.types import ChannelGraph, Criterion, ForwardFn, LossFn, Scores

ScoreFunction: TypeAlias = Callable[[GroupView, Evidence], "Tensor | None"]


@dataclass(frozen=True)
class CriterionRow:
    """A row of `CRITERIA`. ``needs``: kinds of evidence; ``comparable``: scores of different groups are on one scale;
    ``variants``: option -> value -> the row that replaces this one."""

    name: str
    function: ScoreFunction
    paper: str
    needs: frozenset[str] = frozenset()
    comparable: bool = False
    variants: Mapping[str, Mapping[Any, CriterionRow]] = field(default_factory=lambda: dict[str, Mapping[Any, "CriterionRow"]]())

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def score(self, view: GroupView, evidence: Evidence) -> Tensor | None:
        """Importance (num_channels,), higher = keep, or None where the criterion says nothing about this group."""
        return self.function(view, evidence)

    def with_options(self, options: Mapping[str, Any]) -> CriterionRow:
        """The row for these options.

        Raises:
            UnknownName: an option or a value that this criterion doesn't have.
        """
        row = self
        for option, value in options.items():
            if not self.variants:
                raise UnknownName(f"criterion {self.name} takes no options, so {option!r} means nothing")
            if option not in self.variants:
                raise UnknownName.among(f"option of criterion {self.name}", option, self.variants)
            if not isinstance(value, Hashable) or value not in self.variants[option]:
                raise UnknownName.among(f"value of {self.name}.{option}", value, map(str, self.variants[option]))
            row = self.variants[option][value]
        return row


_TAYLOR = CriterionRow(
    "taylor",
    gradients.taylor,
    "Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019",
    needs=frozenset({"gate_gradients"}),
    comparable=True,
)
_PER_EXAMPLE = replace(_TAYLOR, function=gradients.taylor_per_example, needs=frozenset({"example_gate_gradients"}))

CRITERIA: dict[str, CriterionRow] = {
    row.name: row
    for row in (
        CriterionRow("random", weights.random, "the control of every comparison", comparable=True),
        CriterionRow("l1", weights.l1, "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017"),
        CriterionRow("l2", weights.l2, "He et al., Soft Filter Pruning, IJCAI 2018 (its norm)"),
        CriterionRow(
            "bn_scale",
            weights.bn_scale,
            "Liu et al., Learning Efficient ConvNets through Network Slimming, ICCV 2017",
            comparable=True,
        ),
        replace(_TAYLOR, variants={"per_example": {False: _TAYLOR, True: _PER_EXAMPLE}}),
    )
}


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
    **options: Any,
) -> Scores:
    """Importance of every channel of every prunable group, higher = keep. The model is left as found.

    Args:
        criterion: a name from `CRITERIA`, or your own `Criterion`.
        data: batches ``(inputs, targets)``, only where the criterion needs data; ``batches`` limits how many are used.
        loss_fn: ``loss_fn(output, batch)``, a mean over the batch; cross entropy where none is given.
        seed: of criteria that draw.
        options: of the criterion, e.g. ``per_example=True`` for taylor.

    Raises:
        UnknownName: no such criterion, option or evidence.
        EvidenceError: data are missing, empty, or give a non-finite loss or score.
        NothingPruned: the criterion can't score any group.
    """
    row = resolve_criterion(criterion, options)
    evidence = Evidence(seed=seed)
    if row.needs:
        evidence = Evidence(_collected(model, graph, row, data, loss_fn, forward_fn, batches), seed)
    own = isinstance(row, CriterionRow)
    # Matrices may be views of the weights: a user's criterion gets copies, so that writing into them does no harm.
    tensors = {name: tensor if own else tensor.detach().clone() for name, tensor in named_tensors(model)}
    by_group: dict[str, Tensor] = {}
    with torch.no_grad():
        for group in graph.prunable:
            values = row.score(GroupView(group, tensors, graph.norms), evidence)
            if values is not None:
                by_group[group.name] = _checked(values, group.name, group.num_channels, row.name)
    _check_scored(graph, by_group, row.name)
    return Scores(by_group, row.name, bool(getattr(row, "comparable", False)))


def _collected(
    model: nn.Module,
    graph: ChannelGraph,
    row: CriterionRow | Criterion,
    data: Iterable[Any] | None,
    loss_fn: LossFn | None,
    forward_fn: ForwardFn | None,
    batches: int | None,
) -> dict[str, dict[str, Tensor]]:
    """Every kind of evidence that the criterion needs: kind -> group name -> (num_channels,)."""
    if data is None:
        raise EvidenceError(f"criterion {row.name} needs data: pass data=loader, which yields (inputs, targets)")
    for kind in sorted(row.needs - COLLECTORS.keys()):
        raise UnknownName.among("kind of evidence", kind, COLLECTORS)
    run = DataRun(data, loss_fn, forward_fn, batches)
    return {kind: COLLECTORS[kind](model, graph, run) for kind in sorted(row.needs)}


def _check_scored(graph: ChannelGraph, by_group: Mapping[str, Tensor], criterion: str) -> None:
    """Refuse scores of no group, warn where some groups have none."""
    unscored = [g.name for g in graph.prunable if g.name not in by_group]
    if graph.prunable and not by_group:
        raise NothingPruned(
            f"criterion {criterion} can score none of the {len(unscored)} groups "
            "(bn_scale needs norm layers, taylor needs weights that read)"
        )
    if unscored:
        shown = ", ".join(unscored[:5]) + (", ..." if len(unscored) > 5 else "")
        text = f"criterion {criterion} says nothing about {len(unscored)} of {len(graph.prunable)} groups, kept whole: {shown}"
        warnings.warn(text, PrunusWarning, stacklevel=3)


def resolve_criterion(criterion: str | Criterion, options: Mapping[str, Any]) -> CriterionRow | Criterion:
    """The criterion of this name and options; an object is taken as it is."""
    if not isinstance(criterion, str):
        if options:
            raise UnknownName(f"options {sorted(options)} are for criteria that are given by name")
        return criterion
    if criterion not in CRITERIA:
        raise UnknownName.among("criterion", criterion, CRITERIA)
    return CRITERIA[criterion].with_options(options)


def _checked(values: Tensor, group: str, num_channels: int, criterion: str) -> Tensor:
    values = values.detach().to("cpu", torch.float64)
    if values.shape != (num_channels,):
        shape = tuple(values.shape)
        raise EvidenceError(f"criterion {criterion} gave {shape} scores for group `{group}`, which has {num_channels} channels")
    if not bool(torch.isfinite(values).all()):
        raise EvidenceError(f"criterion {criterion} gave a non-finite score in group `{group}`: check the weights and the data")
    return values
