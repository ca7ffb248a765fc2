"""How much each channel matters: a table of criteria, pure functions on the matrices of a group, and ways to combine them."""

from prunus.importance.combine import aggregate, kept, layer_adaptive, moving_average, normalise, weighted_sum
from prunus.importance.criteria import CRITERIA, CriterionRow
from prunus.importance.scoring import score

__all__ = [
    "CRITERIA",
    "CriterionRow",
    "aggregate",
    "kept",
    "layer_adaptive",
    "moving_average",
    "normalise",
    "score",
    "weighted_sum",
]
