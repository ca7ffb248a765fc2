"""Training that makes channels removable: so far the formulas of the methods, which the training loop will call."""

from prunus.sparsity.penalties import ista_step, memory_cost, rescaled
from prunus.sparsity.resrep import merge_compactor, resrep_gradient
from prunus.sparsity.two_temperature import two_temperature_gate

__all__ = [
    "ista_step",
    "memory_cost",
    "merge_compactor",
    "rescaled",
    "resrep_gradient",
    "two_temperature_gate",
]
