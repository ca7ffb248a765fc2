"""How much each channel matters: a table of criteria, pure functions on the matrices of a group."""

from prunus.importance.criteria import CRITERIA, CriterionRow, score

__all__ = ["CRITERIA", "CriterionRow", "score"]
