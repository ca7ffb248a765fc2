"""The table of criteria, and what a criterion's name and options mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunus.errors import UnknownName
from prunus.importance import gradients, weights
from prunus.importance.assumptions import gammas_were_penalised, norms_tell_apart
from prunus.importance.combine import AGGREGATIONS
from prunus.importance.measured import MEASURED
from prunus.importance.row import CriterionRow, Number, Values, sum_of_rows
from prunus.types import Criterion

MEMBERS: Mapping[str, Values] = {"members": tuple(AGGREGATIONS)}
_LI = "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017"
_L1 = CriterionRow("l1", weights.l1, _LI, settings=MEMBERS, magnitude=True, counts_inputs=True, doubt=norms_tell_apart)
_MOLCHANOV = "Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019"
_TAYLOR = CriterionRow(
    "taylor",
    gradients.taylor,
    _MOLCHANOV,
    needs=frozenset({"gate_gradients"}),
    comparable=True,
    settings={"division": ("none", "mean", "released")},
)
_PER_EXAMPLE = replace(_TAYLOR, function=gradients.taylor_per_example, needs=frozenset({"example_gate_gradients"}))
_ON = replace(_TAYLOR, settings=MEMBERS)
_TAYLOR_ON = {
    "gates": _TAYLOR,
    "weights": replace(_ON, function=gradients.taylor_on_weights, needs=frozenset({"weight_products"})),
    "norms": replace(_ON, function=gradients.taylor_on_norms, needs=frozenset({"norm_products"})),
    "norm_scales": replace(_ON, function=gradients.taylor_on_norm_scales, needs=frozenset({"norm_scale_products"})),
}
_2016 = CriterionRow(
    "taylor_2016",
    gradients.taylor_2016,
    "Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017",
    needs=frozenset({"product_means"}),
    comparable=True,
    normalisation="l2",
)
_2016_VARIANTS = {
    "paper": _2016,
    "blog": replace(_2016, function=gradients.taylor_2016_blog, needs=frozenset({"product_sums"})),
    "released": replace(
        _2016, function=gradients.taylor_2016_released, needs=frozenset({"absolute_products"}), normalisation="none"
    ),
}
_SECOND_ORDER = CriterionRow(
    "taylor_second_order",
    gradients.taylor_second_order,
    _MOLCHANOV,
    needs=frozenset({"second_order_changes"}),
    comparable=True,
)

CRITERIA: dict[str, CriterionRow] = {
    row.name: row
    for row in (
        CriterionRow("random", weights.random, "the control of every comparison", comparable=True),
        CriterionRow("first_k", weights.first_k, "He et al., Channel Pruning, ICCV 2017 (its baseline)", comparable=True),
        _L1,
        replace(_L1, name="max_response", paper="He et al., Channel Pruning, ICCV 2017 (its baseline, which is l1)"),
        replace(_L1, name="l2", function=weights.l2, paper="He et al., Soft Filter Pruning, IJCAI 2018 (its norm)"),
        CriterionRow(
            "fpgm",
            weights.fpgm,
            "He et al., Filter Pruning via Geometric Median, CVPR 2019",
            settings={"norm_share": Number(high=1.0), **MEMBERS},
        ),
        CriterionRow(
            "next_layer_weight",
            weights.next_layer_weight,
            "He et al., Channel Pruning, ICCV 2017 (a baseline beside its Lasso)",
            settings=MEMBERS,
            magnitude=True,
        ),
        CriterionRow(
            "bn_scale",
            weights.bn_scale,
            "Liu et al., Learning Efficient ConvNets through Network Slimming, ICCV 2017",
            comparable=True,
            settings=MEMBERS,
            magnitude=True,
            doubt=gammas_were_penalised,
        ),
        replace(_TAYLOR, variants={"per_example": {False: _TAYLOR, True: _PER_EXAMPLE}, "on": _TAYLOR_ON}),
        replace(_2016, variants={"variant": _2016_VARIANTS}),
        CriterionRow(
            "gradient_mean",
            gradients.gradient_mean,
            "a baseline of the gradient family: no paper's own",
            needs=frozenset({"gradient_means"}),
        ),
        _SECOND_ORDER,
        replace(
            _SECOND_ORDER,
            name="obd",
            function=gradients.obd,
            paper="LeCun et al., Optimal Brain Damage, NIPS 1989",
            needs=frozenset({"gate_curvatures"}),
        ),
        *MEASURED,
    )
}


def default_criterion(data: object | None) -> str:
    """The criterion where none is named, by what there is: what measured best in benchmarks/head_to_head.py (docs/adr/0028)."""
    return "l1" if data is None else "taylor"


def resolve_criterion(criterion: str | Criterion, options: Mapping[str, Any]) -> CriterionRow | Criterion:
    """The criterion of this name and options, or a weighted sum such as ``"l1 + 0.5*taylor"``; an object is taken as it is.

    Raises:
        UnknownName: no such criterion, option or value, or an object that isn't a criterion.
    """
    if not isinstance(criterion, str):
        if options:
            raise UnknownName(f"options {sorted(options)} are for criteria that are given by name")
        if absent := [name for name in ("name", "needs", "paper", "score") if not hasattr(criterion, name)]:
            raise UnknownName(
                f"{criterion!r} is no criterion, it has no {' and no '.join(absent)}: give a name (see prunus.CRITERIA), "
                "or an object like prunus.types.Criterion"
            )
        return criterion
    if "+" in criterion or "*" in criterion:
        return sum_of_rows([_term(part.strip(), criterion) for part in criterion.split("+")], options)
    return _named(criterion).with_options(options)


def _named(name: str) -> CriterionRow:
    if name not in CRITERIA:
        raise UnknownName.among("criterion", name, CRITERIA)
    return CRITERIA[name]


def _term(text: str, whole: str) -> tuple[CriterionRow, float]:
    """A row and its weight, from ``0.5*taylor`` or ``taylor``."""
    number, star, name = text.rpartition("*")
    try:
        weight = float(number) if star else 1.0
        if not 0 < weight < float("inf"):
            raise ValueError
    except ValueError:
        raise UnknownName(
            f"can't read the weight {number.strip()!r} in the sum of criteria {whole!r}: write names with positive weights, e.g. "
            "'l1 + 0.5*taylor'"
        ) from None
    return _named(name.strip()), weight
