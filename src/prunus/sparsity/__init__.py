"""Training that makes channels removable: the table of methods, which the training loop calls, and their formulas."""

from prunus.sparsity.compactors import merge_compactor, resrep_gradient
from prunus.sparsity.methods import SPARSITY_METHODS, SparsityRow, resolve_method
from prunus.sparsity.penalties import ista_step, memory_cost, rescaled
from prunus.sparsity.two_temperature import two_temperature_gate

__all__ = [
    "SPARSITY_METHODS",
    "SparsityRow",
    "ista_step",
    "memory_cost",
    "merge_compactor",
    "rescaled",
    "resolve_method",
    "resrep_gradient",
    "two_temperature_gate",
]
