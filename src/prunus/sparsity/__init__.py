"""Training that makes channels removable: so far the formulas of the methods, which the training loop will call."""

from prunus.sparsity.gradients import ThresholdForecast, prune_gradient, threshold_of_normal
from prunus.sparsity.penalties import ista_step, memory_cost, rescaled
from prunus.sparsity.resrep import merge_compactor, resrep_gradient
from prunus.sparsity.two_temperature import two_temperature_gate

__all__ = [
    "ThresholdForecast",
    "ista_step",
    "memory_cost",
    "merge_compactor",
    "prune_gradient",
    "rescaled",
    "resrep_gradient",
    "threshold_of_normal",
    "two_temperature_gate",
]
